"""The templates that pages are made of: strict about names, escaping by default.

    environment = open_templates("efficientnet_advprop.studies")
    environment.get_template("study.html.jinja").render(...)
"""

import jinja2


def open_templates(package: str) -> jinja2.Environment:
    """The Jinja templates beside the modules of `package`; a name that a page is not given is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
