"""The templates that pages are made of: strict about names, escaping by default.

Usage:

    environment = open_templates("efficientnet_advprop.studies")
    environment.get_template("study.html.jinja").render(...)
"""

import jinja2


def open_templates(*packages: str) -> jinja2.Environment:
    """The Jinja templates that lie beside the modules of `packages`, so that one may extend another.

    A name that a page uses and is not given is an error.
    """
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package, ".") for package in packages]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
