"""A page of headings, text, tables, code and plots, written as one self-contained HTML file and as markdown.

Everything is text from models, data and files of unknown origin, so everything is escaped: nothing that a model wrote
becomes a tag, a link or a picture. The HTML asks for nothing: pictures and style are inside, and its
Content-Security-Policy forbids the rest.
"""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from nanochat_lit.common.paths import atomic_write

STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.8rem; } h2 { font-size: 1.3rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.92rem; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line); }
th { background: var(--soft); }
td { font-variant-numeric: tabular-nums; unicode-bidi: isolate; overflow-wrap: anywhere; min-width: 6rem; }
pre { background: var(--soft); padding: 0.8rem; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere;
  unicode-bidi: isolate; font-size: 0.88rem; }
img { max-width: 100%; background: white; border-radius: 6px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
"""

PLOTS = "plots"

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A title of a part of the page."""

    text: str
    """What it says."""
    level: int = 2
    """1 is the page's own."""


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """Running text."""

    text: str
    """What it says."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under a heading."""

    heading: Sequence[str]
    """Names of the columns."""
    rows: Sequence[Sequence[str]]
    """Cells, as many a row as there are columns."""


@dataclass(frozen=True, kw_only=True)
class Verbatim:
    """Text that keeps its lines and spaces: commands, samples."""

    text: str
    """As it is."""


@dataclass(frozen=True, kw_only=True)
class Plots:
    """Pictures beside each other."""

    images: dict[str, bytes]
    """PNG files by the name of what they show."""


Block: TypeAlias = Heading | Paragraph | Table | Verbatim | Plots


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """The page as one HTML file.

    Args:
        title: Of the window; the page's own heading is a block.
        blocks: From top to bottom.
    """
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    )
    return head + "\n".join(_html(block) for block in blocks) + "\n</body>\n</html>\n"


def as_markdown(blocks: Sequence[Block]) -> str:
    """The page as markdown, with its pictures in the folder PLOTS beside it.

    Args:
        blocks: From top to bottom.
    """
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def write_page(folder: Path, title: str, blocks: Sequence[Block]) -> None:
    """Write report.html, report.md and the pictures of the latter, plots/*.png.

    Args:
        folder: Made if needed; files of these names are replaced.
        title: Of the window.
        blocks: From top to bottom.
    """
    for block in blocks:
        if isinstance(block, Plots):
            for name, image in block.images.items():
                with atomic_write(folder / PLOTS / _file_name(name)) as file:
                    file.write(image)
    with atomic_write(folder / "report.md", "w") as file:
        file.write(as_markdown(blocks))
    with atomic_write(folder / "report.html", "w") as file:
        file.write(as_html(title, blocks))


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{_escape(block.text)}</p>"
    if isinstance(block, Verbatim):
        return f"<pre>{_escape(block.text)}</pre>"
    if isinstance(block, Plots):
        images = (
            f'<img alt="{_escape(name)}" src="data:image/png;base64,{base64.b64encode(image).decode("ascii")}">'
            for name, image in block.images.items()
        )
        return '<div class="plots">\n' + "\n".join(images) + "\n</div>"
    head = "".join(f"<th>{_escape(cell)}</th>" for cell in block.heading)
    rows = ("".join(f"<td>{_escape(cell)}</td>" for cell in row) for row in block.rows)
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_inline(block.text)}"
    if isinstance(block, Paragraph):
        return _paragraph(block.text)
    if isinstance(block, Verbatim):
        text = _visible(block.text)
        fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
        return f"{fence}text\n{text}\n{fence}"
    if isinstance(block, Plots):
        return "\n\n".join(f"![{_inline(name)}]({PLOTS}/{_file_name(name)})" for name in block.images)
    lines = [_row(block.heading), "|" + "---|" * len(block.heading)]
    return "\n".join([*lines, *(_row(row) for row in block.rows)])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_inline(cell) for cell in cells) + " |"


def _escape(text: str) -> str:
    return html.escape(_visible(text), quote=True)


def _inline(text: str) -> str:
    """Text on one line in which markdown sees nothing but text."""
    one_line = re.sub(r"\s+", " ", _visible(text)).strip()
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", one_line)


def _paragraph(text: str) -> str:
    """As `_inline`, and no heading, list or rule at the beginning of a line."""
    return re.sub(r"^(?:([#+=-])|(\d+)([.)]))", r"\2\\\1\3", _inline(text))


def _visible(text: str) -> str:
    """Control characters, which terminals and browsers may obey, become a replacement mark."""
    return re.sub(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]", "\ufffd", text)


def _file_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") + ".png"
