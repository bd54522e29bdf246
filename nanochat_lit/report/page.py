"""Pages of reports: Markdown templates and plots, as report.md and as one HTML file.

Template values come from models, data and untrusted files. All of them are escaped, so that model output cannot become
a tag, a link or an image. The HTML makes no requests: images and style are embedded, and its Content-Security-Policy
forbids everything else.
"""

import base64
import html
import io
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
    """Convert a page to one HTML file."""
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
    """Write report.html, report.md and the latter's images, plots/*.png."""
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


Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def curves_png(
    title: str,
    y_label: str,
    curves: Curves,
    x_label: str = "step",
    *,
    log_x: bool = False,
    log_y: bool = True,
    points: Curves | None = None,
) -> bytes:
    """Plot curves, name to (x, y) values, as a PNG image.

    The vertical axis is logarithmic unless a value is not positive. `points` are drawn as dots, in the color of the
    curve with their name.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    points = points or {}
    names = list(dict.fromkeys([*curves, *points]))
    for number, name in enumerate(names):
        color = f"C{number % 10}"
        if name in curves:
            places, values = curves[name]
            axes.plot(places, values, marker="o" if len(places) < 12 and not points else None, color=color, label=name)
        if name in points:
            places, values = points[name]
            axes.plot(places, values, "o", color=color, label=None if name in curves else name)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    heights = [value for _, values in [*curves.values(), *points.values()] for value in values]
    if log_y and all(value > 0 for value in heights):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")  # 4 instead of 4 x 10^0
        if heights and max(heights) < 20 * min(heights):  # label some values between the powers of ten
            axes.yaxis.set_minor_formatter("{x:g}")
    if log_x:
        axes.set_xscale("log")
    axes.grid(alpha=0.3, which="both")
    if len(names) > 5:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    elif len(names) > 1:
        axes.legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    return file.getvalue()


def plot_bars(path: str | Path, panels: Mapping[str, Mapping[str, float]]) -> None:
    """Plot shares as horizontal bars, one panel per kind of share."""
    from matplotlib.figure import Figure

    heights = [max(2, len(shares)) for shares in panels.values()]
    figure = Figure(figsize=(7, 1 + 0.28 * sum(heights) + 0.5 * len(heights)), layout="constrained")
    rows = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, shares) in zip(rows, panels.items(), strict=True):
        axes.barh(list(shares), [100 * share for share in shares.values()])
        axes.invert_yaxis()
        axes.set(title=title, xlabel="%")
        axes.grid(alpha=0.3, axis="x")
    with atomic_write(path) as file:
        figure.savefig(file, dpi=120, format="svg" if Path(path).suffix == ".svg" else "png")
