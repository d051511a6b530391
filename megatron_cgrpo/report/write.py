"""``index.html``, ``report.md`` and the figures of a report."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from megatron_cgrpo.observe.atomic import write_text
from megatron_cgrpo.report.page import Page
from megatron_cgrpo.report.png import write_png
from megatron_cgrpo.report.series import Figure
from megatron_cgrpo.report.svg import style, svg
from megatron_cgrpo.report.tables import escaped, markdown

HTML = "index.html"
MARKDOWN = "report.md"


def write_report(out: Path, page: Page) -> list[Path]:
    """Writes below ``out`` and returns the two files; an earlier report there is replaced.

    The HTML file needs nothing beside it; the Markdown file shows ``figures/*.png``.
    """
    for figure in (figure for part in page.parts for figure in part.figures):
        write_png(figure, out / _png(figure))
    write_text(out / HTML, _render("index.html.j2", page, escape=True))
    write_text(out / MARKDOWN, _render("report.md.j2", page, escape=False))
    return [out / HTML, out / MARKDOWN]


def _render(template: str, page: Page, escape: bool) -> str:
    environment = Environment(
        loader=PackageLoader("megatron_cgrpo.report"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"svg": lambda figure: Markup(svg(figure)), "style": style, "markdown": markdown}
    environment.globals |= {"png": _png, "escaped": escaped}
    text = environment.get_template(template).render(page=page)
    return text if escape else re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _png(figure: Figure) -> str:
    return f"figures/{figure.name}.png"
