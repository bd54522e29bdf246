"""Renders Markdown templates to report.md and to one HTML file.

Template values come from models, data and untrusted files. All of them are escaped, so that model output cannot become
a tag, a link or an image. The HTML makes no requests: images and style are embedded, and its Content-Security-Policy
forbids everything else.
"""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanochat_lit.common.paths import atomic_write

TEMPLATES = Path(__file__).parent / "templates"
PLOTS = "plots"
# Collapsible sections; the only HTML tags that are not escaped.
_FOLDS = {
    r"<p>&lt;details&gt;&lt;summary&gt;([^<]*)&lt;/summary&gt;</p>": r"<details><summary>\1</summary>",
    r"<p>&lt;/details&gt;</p>": "</details>",
}


class Markdown(str):
    """Trusted Markdown, which is not escaped."""

    __slots__ = ()


def fill(template: str, **values: object) -> str:
    """Render a template of templates/ to Markdown, with escaped values."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # noqa: S701 - `finalize` escapes, for markdown
        loader=FileSystemLoader(TEMPLATES),
        finalize=_inline,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"table": _table, "verbatim": _verbatim, "plots": _plots}
    text = environment.get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def as_html(title: str, markdown: str, images: Mapping[str, bytes]) -> str:
    """Convert a page to one HTML file.

    Args:
        title: Title of the page.
        markdown: Result of `fill`.
        images: PNG images by name.
    """
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    for pattern, tag in _FOLDS.items():
        body = re.sub(pattern, tag, body)
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    for name, image in images.items():
        data = base64.b64encode(image).decode("ascii")
        body = body.replace(f'src="{PLOTS}/{_file_name(name)}"', f'src="data:image/png;base64,{data}"')
    frame = (TEMPLATES / "page.html").read_text("utf-8")
    return frame.replace("TITLE", html.escape(_visible(title))).replace("BODY", body)


def write_page(folder: Path, title: str, markdown: str, images: Mapping[str, bytes]) -> None:
    """Write report.html, report.md and the latter's images, plots/*.png.

    Args:
        folder: Output folder; created if needed, and existing files are replaced.
        title: Title of the page.
        markdown: Result of `fill`.
        images: PNG images by name.
    """
    for name, image in images.items():
        with atomic_write(folder / PLOTS / _file_name(name)) as file:
            file.write(image)
    for name, text in (("report.md", markdown), ("report.html", as_html(title, markdown, images))):
        with atomic_write(folder / name, "w") as file:
            file.write(text)


def _table(heading: Sequence[object], rows: Sequence[Sequence[object]]) -> Markdown:
    lines = [heading, *rows]
    cells = ["| " + " | ".join(_inline(cell) for cell in line) + " |" for line in lines]
    return Markdown("\n".join([cells[0], "|" + "---|" * len(heading), *cells[1:]]))


def _verbatim(text: str) -> Markdown:
    """Format text that keeps its line breaks and spaces: commands, samples."""
    text = _visible(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return Markdown(f"{fence}text\n{text}\n{fence}")


def _plots(names: Sequence[str]) -> Markdown:
    """Arrange images side by side."""
    return Markdown("\n".join(f"![{_inline(name)}]({PLOTS}/{_file_name(name)})" for name in names))


def _inline(value: object) -> str:
    """Escape text for one line of Markdown, including headings, lists and rules at its beginning."""
    if isinstance(value, Markdown):
        return value
    one_line = re.sub(r"\s+", " ", _visible(str(value))).strip()
    escaped = re.sub(r"([\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w))", r"\\\1", one_line)
    return re.sub(r"^(?:([#+=-])|(\d+)([.)])(?=\s|$))", r"\2\\\1\3", escaped)


def _visible(text: str) -> str:
    """Replace control characters, which terminals and browsers may interpret."""
    return re.sub(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]", "\ufffd", text)


def _file_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") + ".png"
