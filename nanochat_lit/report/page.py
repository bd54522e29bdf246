"""A template of markdown filled with what was measured, written as report.md and, converted, as one HTML file.

Everything that a template names is text from models, data and files of unknown origin, so all of it is escaped: nothing
that a model wrote becomes a tag, a link or a picture. The HTML asks for nothing: pictures and style are inside, and its
Content-Security-Policy forbids the rest.
"""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanochat_lit.common.paths import atomic_write

TEMPLATES = Path(__file__).parent / "templates"
PLOTS = "plots"
# How a part of the page is folded, in markdown as in HTML, where all other tags are only text.
_FOLDS = {
    r"<p>&lt;details&gt;&lt;summary&gt;([^<]*)&lt;/summary&gt;</p>": r"<details><summary>\1</summary>",
    r"<p>&lt;/details&gt;</p>": "</details>",
}


class Markdown(str):
    """Markdown of our own making, which is not escaped."""

    __slots__ = ()


def fill(template: str, **values: object) -> str:
    """The page as markdown: a template of templates/ with its values escaped."""
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
    """The page as one HTML file.

    Args:
        title: Of the window.
        markdown: Of `fill`.
        images: PNG files by the name of what they show.
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
    """Write report.html, report.md and the pictures of the latter, plots/*.png.

    Args:
        folder: Made if needed; files of these names are replaced.
        title: Of the window.
        markdown: Of `fill`.
        images: PNG files by the name of what they show.
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
    """Text that keeps its lines and spaces: commands, samples."""
    text = _visible(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return Markdown(f"{fence}text\n{text}\n{fence}")


def _plots(names: Sequence[str]) -> Markdown:
    """Pictures beside each other."""
    return Markdown("\n".join(f"![{_inline(name)}]({PLOTS}/{_file_name(name)})" for name in names))


def _inline(value: object) -> str:
    """Text on one line in which markdown sees nothing but text; no heading, list or rule at the beginning either."""
    if isinstance(value, Markdown):
        return value
    one_line = re.sub(r"\s+", " ", _visible(str(value))).strip()
    escaped = re.sub(r"([\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w))", r"\\\1", one_line)
    return re.sub(r"^(?:([#+=-])|(\d+)([.)])(?=\s|$))", r"\2\\\1\3", escaped)


def _visible(text: str) -> str:
    """Control characters, which terminals and browsers may obey, become a replacement mark."""
    return re.sub(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]", "\ufffd", text)


def _file_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") + ".png"
