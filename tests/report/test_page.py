"""Pages: everything is escaped, nothing is asked for, every block is in both forms."""

import base64
import re
import shutil
from html.parser import HTMLParser

import pytest

from nanochat_lit.report import page
from nanochat_lit.report.page import curves_png

NASTY = '<script src="https://x.example/a.js"></script> <img src=x onerror=alert(1)> "\'> ![p](http://x.example/p.png) `a` | b\x1b[31m'


class Tags(HTMLParser):
    """Collects tags with their attributes, and text."""

    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def read(text):
    parser = Tags()
    parser.feed(text)
    return parser


TEMPLATE = """
# {{ text }}

{{ text }}

{{ table(["a", text], [[text, 2]]) }}

<details><summary>{{ text }}</summary>

{{ verbatim("one\\n````\\n" ~ text) }}

</details>

{{ plots([text]) }}
"""


@pytest.fixture
def markdown(tmp_path, monkeypatch):
    def filled(template=TEMPLATE, **values):
        (tmp_path / "test.md").write_text(template)
        monkeypatch.setattr(page, "TEMPLATES", tmp_path)
        text = page.fill("test.md", **values)
        monkeypatch.undo()
        return text

    return filled


def test_html_shows_the_text_and_has_no_tag_of_it(markdown):
    parsed = read(page.as_html(NASTY, markdown(text=NASTY), {NASTY: b"png"}))
    tags = {tag for tag, _ in parsed.tags}
    frame = {"html", "head", "meta", "title", "style", "body"}
    assert tags == frame | {"h1", "p", "div", "table", "thead", "tbody", "tr", "th", "td", "pre", "code", "img"} | {
        "details", "summary"
    }  # fmt: skip
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert [image["src"] for image in images] == ["data:image/png;base64," + base64.b64encode(b"png").decode()]
    attributes = {name for _, attributes in parsed.tags for name in attributes}
    assert attributes <= {"lang", "charset", "http-equiv", "content", "name", "class", "alt", "src"}
    shown = NASTY.replace("\x1b", "\ufffd")
    assert sum(shown in text for text in parsed.text) == 7  # title, heading, paragraph, two cells, summary, verbatim
    assert images[0]["alt"] == shown
    policy = next(attributes["content"] for _, attributes in parsed.tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")


def test_markdown_is_only_text(markdown):
    text = markdown(text=NASTY)
    outside, fenced = text.split("`````text\n")
    assert fenced.split("\n`````")[0] == f"one\n````\n{NASTY}".replace("\x1b", "\ufffd")
    ours = outside.replace("<details><summary>", "").replace("</summary>", "")
    assert re.findall(r"(?<!\\)[<>`\[\]*_]", ours) == []
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3, 3, 3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("# a", "\\# a"), ("3. a", "3\\. a"), ("3.5 a", "3.5 a"), ("- a", "\\- a"), ("a_b _c_", "a_b \\_c\\_")],
)
def test_beginnings_of_lines(markdown, text, expected):
    assert markdown("{{ text }}", text=text) == expected + "\n"
    assert f"<p>{text}</p>" in page.as_html("t", markdown("{{ text }}", text=text), {})


def test_files(tmp_path):
    image = curves_png("loss", "nats", {"a": ([1, 2], [2.0, 1.0]), "b": ([1, 2], [-1.0, 1.0])}, log_x=True)
    assert image.startswith(b"\x89PNG")
    page.write_page(tmp_path / "page", "t", "![a](plots/a_loss_smoothed.png)", {"A loss, smoothed": image})
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert names == ["page/plots/a_loss_smoothed.png", "page/report.html", "page/report.md"]
    assert "(plots/a_loss_smoothed.png)" in (tmp_path / "page" / "report.md").read_text("utf-8")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_a_window(tmp_path, markdown, width):
    """Nothing is wider than the page, on a telephone either; a table that is wider scrolls by itself."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    plot = curves_png("loss", "nats", {"a": ([1, 2], [3.0, 2.0])}, "steps")
    rows = [["model.target_param_data_ratio", *3 * ["nanochat_lit.training.X"]]]
    text = markdown("{{ table(['', 'a', 'b', 'c'], rows) }}\n\n{{ plots(['a', 'b']) }}", rows=rows)
    (tmp_path / "page.html").write_text(page.as_html("t", text, {"a": plot, "b": plot}), "utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        window = browser.new_page(viewport={"width": width, "height": 800})
        window.goto((tmp_path / "page.html").as_uri())
        root = "document.documentElement"
        assert window.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
        browser.close()
