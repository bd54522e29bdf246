from html import unescape
from html.parser import HTMLParser

import pytest

from nanochat_lit.engine.chat_session import Answer, TokenScore
from nanochat_lit.serve.chat_tab import escaped, shown_messages, status_line, tokens_html, typed_text


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def test_calculator_calls_are_folded() -> None:
    parts = [
        {"type": "python", "text": "1/0"},
        {"type": "text", "text": "Hm. "},
        {"type": "python", "text": "12+30"},
        {"type": "python_output", "text": "42"},
        {"type": "python_output", "text": "stray"},
        {"type": "text", "text": "42."},
    ]
    shown = shown_messages([user("x"), {"role": "assistant", "content": parts}, user("y")])
    assert [index for index, _ in shown] == [0, 1, 1, 1, 1, 1, 2]
    folded = [message for _, message in shown if "metadata" in message]
    assert [message["content"] for message in folded] == [
        "1/0",
        "The model wrote 12+30\nThe calculator computed 42",
        "stray",
    ]
    assert [message["metadata"]["log"] for message in folded] == ["1/0", "12+30 = 42", "stray"]
    assert all(message["metadata"]["title"] == "Calculator" for message in folded)
    assert all(message["metadata"]["status"] == "done" for message in folded), "done is what Gradio folds"
    assert [m["content"] for _, m in shown if m["role"] == "assistant" and "metadata" not in m] == ["Hm. ", "42."]


@pytest.mark.parametrize(
    "text", ["<b>bold</b>", "a<b", "</div>", "<!-- x -->", "&lt;b&gt;", "&#60;", "<?php", "<script>alert(1)</script>"]
)
def test_what_looks_like_html_is_text(text: str) -> None:
    """Against Python's own parser: all of it is data, nothing a tag, comment or entity; and it comes back as it was."""
    seen: list[str] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            seen.append(data)

    reader = Reader(convert_charrefs=True)
    ((_, shown),) = shown_messages([user(text)])
    reader.feed(shown["content"])
    reader.close()
    assert "".join(seen) == shown["content"]
    assert typed_text(shown["content"]) == text
    ((_, markdown),) = shown_messages([user(text)], is_markdown=True)
    assert markdown["content"] == shown["content"]
    fenced = f"`{text}`, and\n```html\n{text}\n```"
    ((_, code),) = shown_messages([user(fenced)], is_markdown=True)
    assert code["content"] == fenced  # nothing invisible in what a person copies
    ((_, escaped),) = shown_messages([user(f"\\`{text}\\`")], is_markdown=True)
    assert "\u2060" in escaped["content"]


@pytest.mark.parametrize("text", ["1 < 2 & 3 > 2", "a <= b", "x << 3", "R & D &", "2*3*4", "日本 <3"])
def test_other_text_is_left_alone(text: str) -> None:
    assert shown_messages([user(text)])[0][1]["content"] == text


def test_status_line() -> None:
    answer = Answer(num_dropped_turns=2, stop=lambda: None)
    answer.num_tokens, answer.elapsed_s = 30, 2.0
    sight = "the oldest 2 turns are dropped: the context is full"
    assert status_line(answer, is_running=True) == f"30 tokens · 15 tokens/s · {sight}"
    assert status_line(answer, is_running=False) == f"30 tokens · 15 tokens/s · stopped · {sight}"
    answer.finish_reason, answer.num_dropped_turns, answer.num_tokens, answer.elapsed_s = "stop", 0, 1, 0.5
    assert status_line(answer, is_running=False) == "1 token · 2 tokens/s"
    answer.finish_reason, answer.num_tokens = "length", None
    assert status_line(answer, is_running=False).startswith("truncated by")


@pytest.mark.parametrize(
    "text",
    ["2*3*4", "_a_ **b** ~~c~~", "# x", "1. x\n- y\n+ z\n* y", "    code", "> q", "| a |", "[a](b) ![c](d)", "=\n==="],
)
def test_markdown_of_a_person_is_text(text: str) -> None:
    """Against another parser: paragraphs of text only; and it comes back as it was."""
    from markdown_it import MarkdownIt

    ((_, shown),) = shown_messages([user(text)], is_markdown=True)
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(shown["content"])
    kinds = {token.type for token in tokens} | {child.type for token in tokens for child in token.children or ()}
    assert kinds <= {"paragraph_open", "paragraph_close", "inline", "text", "softbreak"}
    assert typed_text(shown["content"]) == text.strip()


def test_markdown_of_an_answer_is_rendered_but_no_product() -> None:
    answer = {"role": "assistant", "content": [{"type": "text", "text": "**yes** 2*3*4\n\n42."}]}
    ((_, shown),) = shown_messages([answer], is_markdown=True)
    assert shown["content"] == "**yes** 2\u200a*\u200a3\u200a*\u200a4\n\n\u206042."


def test_tokens_are_escaped() -> None:
    scores = [TokenScore("<b>\"'&", -0.5, [("<i>", -0.5), (" a\n", -3.0)]), TokenScore("x", 0.1, [])]

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append((tag, dict(attrs)))

        def handle_data(self, data):
            found.append(data)

    found: list = []
    Reader().feed(tokens_html(scores))
    assert [item[0] for item in found if isinstance(item, tuple)] == ["p", "span", "span"]
    assert [item for item in found if isinstance(item, str)] == ["<b>\"'&", "x"]
    assert found[1][1]["data-tip"] == "<b>\"'&: 60.7%\n\n 60.7%  <i>\n  5.0%  ␣a↵"
    assert found[1][1]["style"] == "--p: 0.607"
    assert tokens_html([]) == ""


@pytest.mark.parametrize("text", ["<b>x</b>", "**x** [a](b) ![c](http://d)", "1. x\n# y", "`x` &lt; a_b_"])
def test_escaped_text_is_text_in_markdown(text: str) -> None:
    from markdown_it import MarkdownIt

    html = MarkdownIt().render(escaped(text))
    assert unescape(html) == f"<p>{' '.join(text.split())}</p>\n"
