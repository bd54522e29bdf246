import pytest

from nanochat_lit.engine.chat_session import Answer
from nanochat_lit.serve.chat_view import shown_messages, status_line, typed_text


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
    assert [message["content"] for message in folded] == ["1/0", "12+30 = 42", "stray"]
    assert all(message["metadata"]["title"] == "Calculator" for message in folded)
    assert all(message["metadata"]["status"] == "done" for message in folded), "done is what Gradio folds"
    assert [m["content"] for _, m in shown if m["role"] == "assistant" and "metadata" not in m] == ["Hm. ", "42."]


@pytest.mark.parametrize(
    "text", ["<b>bold</b>", "a<b", "</div>", "<!-- x -->", "&lt;b&gt;", "&#60;", "<?php", "<script>alert(1)</script>"]
)
def test_what_looks_like_html_is_text(text: str) -> None:
    """Against Python's own parser: all of it is data, nothing a tag, comment or entity; and it comes back as it was."""
    from html.parser import HTMLParser

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
