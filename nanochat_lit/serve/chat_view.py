"""Conversion of a conversation to messages of Gradio's Chatbot, and the status line of an answer."""

import re
from collections.abc import Sequence
from typing import Any

from nanochat_lit.engine.chat_session import Answer, Message

# The Chatbot interprets HTML even without Markdown. An invisible character after the sign prevents it. (The entity &lt;
# would appear literally when the message is edited or copied.)
_HTML_SIGN = re.compile(r"<(?=[A-Za-z/!?])|&(?=[A-Za-z#])")
# fenced or in backticks; an unclosed fence does not count as code
_CODE = re.compile(r"(^```[^`\n]*\n.*?^```[ \t]*$|(?<![`\\])`[^`\n]+`(?!`))", re.DOTALL | re.MULTILINE)
_WORD_JOINER = "\u2060"


def shown_messages(messages: Sequence[Message], is_markdown: bool = False) -> list[tuple[int, dict[str, Any]]]:
    """Convert messages for the Chatbot; each calculator call with its result becomes a collapsible message.

    Args:
        messages: Messages of a conversation.
        is_markdown: Render Markdown; otherwise text is shown literally. HTML is never rendered.

    Returns:
        (index in `messages`, message for the Chatbot), in order.
    """

    def literal(text: str) -> str:
        # Markdown shows code literally, so it needs no invisible characters, which would be copied
        between = _CODE.split(text) if is_markdown else [text]
        between[::2] = [_HTML_SIGN.sub(lambda sign: sign.group() + _WORD_JOINER, part) for part in between[::2]]
        return "".join(between)

    shown: list[tuple[int, dict[str, Any]]] = []
    for index, message in enumerate(messages):
        if isinstance(message["content"], str):
            shown.append((index, {"role": message["role"], "content": literal(message["content"])}))
            continue
        call, expression = None, ""
        for part in message["content"]:
            if part["type"] == "text":
                call = None
                shown.append((index, {"role": "assistant", "content": literal(part["text"])}))
            elif part["type"] == "python_output" and call is not None:
                call["content"] = literal(f"{expression} = {part['text']}")
                call["metadata"]["log"] = call["content"]
                call = None
            else:
                expression = part["text"]
                metadata = {"title": "Calculator", "log": literal(expression), "status": "done"}
                call = {"role": "assistant", "content": literal(expression), "metadata": metadata}
                shown.append((index, call))
    return shown


def status_line(answer: Answer, is_running: bool, note: str = "") -> str:
    """Return the speed of an answer and notes on truncation.

    Args:
        answer: The last one.
        is_running: Whether the answer is still being generated.
        note: Additional note.
    """
    notes = [note] if note else []
    if answer.num_tokens and answer.elapsed_s > 0:
        notes.append(f"{answer.num_tokens} token{'s' * (answer.num_tokens > 1)}")
        notes.append(f"{answer.num_tokens / answer.elapsed_s:,.0f} tokens/s")
    if answer.finish_reason == "length":
        notes.append("truncated by max_new_tokens or the model's context")
    elif answer.finish_reason is None and not is_running:
        notes.append("stopped")
    if answer.num_dropped_turns:
        turns = "turn is" if answer.num_dropped_turns == 1 else f"{answer.num_dropped_turns} turns are"
        notes.append(f"the oldest {turns} dropped: the context is full")
    return " · ".join(notes)


def typed_text(text: str) -> str:
    """Return the original text of a message from the page, which may contain the invisible characters."""
    return text.replace(_WORD_JOINER, "").strip()
