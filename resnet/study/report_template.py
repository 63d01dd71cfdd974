"""Pages from templates: everything escaped, every script known by its hash, nothing asked of anybody."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from resnet.study import report_tables
from resnet.study.report_figures import bokeh_script

FOLDER = Path(__file__).resolve().parent / "pages"


def render(template: str, context: dict[str, Any], *, figure_script: str, data: str = "{}") -> str:
    """The page. figure_script: what puts the figures into their places ('' for none). data: JSON for page.js.

    The page's policy lets the browser run the scripts of these very bytes and no other, and load nothing: a name that
    slipped through the escaping would still be dead text.
    """
    code = (FOLDER / "page.js").read_text(encoding="utf-8")
    scripts = [bokeh_script(), figure_script, code] if figure_script else [code]
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": report_tables.percent,
        "decimal": report_tables.decimal,
        "amount": report_tables.amount,
        "interval": report_tables.interval,
        "shortened": report_tables.shortened,
    }
    return environment.get_template(template).render(
        **context,
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        # '</script' inside a script would end it; in JavaScript and JSON strings '<\/' is the same text.
        scripts=[Markup(closed(script)) for script in scripts],
        data=Markup(data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")),
        policy=policy([closed(script) for script in scripts]),
    )


def closed(script: str) -> str:
    """`script` as it may stand in a script element."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def policy(scripts: list[str]) -> str:
    """The Content-Security-Policy: pictures from the page itself, its own scripts by hash, no connection anywhere."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')}'"
        for script in scripts
    )
    # bokeh styles its figures by elements of its own making, hence the styles.
    others = "img-src data: blob:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; {others}; script-src {hashes}"
