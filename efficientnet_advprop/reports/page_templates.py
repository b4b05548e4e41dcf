"""Opens the Jinja templates of the HTML pages.

Usage:

    environment = open_templates("advprop_experiments")
    environment.get_template("study.html.jinja").render(...)
"""

import jinja2


def open_templates(*packages: str) -> jinja2.Environment:
    """The Jinja templates in the folders of `packages`, so that one may extend another.

    Values are escaped by default. An undefined name in a template is an error.
    """
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package, ".") for package in packages]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
