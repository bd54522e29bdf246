"""How the page shows a conversation: plain data for Gradio's Chatbot, and one line about the last answer."""

import re
from collections.abc import Sequence
from typing import Any

from nanochat_lit.engine.chat_model import Answer, Message

# The Chatbot takes what looks like HTML for HTML, also where it renders no Markdown. An invisible character after the sign
# makes it text again. (The entity &lt; would do so too, but would appear as such when a person edits or copies the message.)
_HTML_SIGN = re.compile(r"<(?=[A-Za-z/!?])|&(?=[A-Za-z#])")
# fenced or in backticks; an unclosed fence is not code yet
_CODE = re.compile(r"(^```[^`\n]*\n.*?^```[ \t]*$|(?<![`\\])`[^`\n]+`(?!`))", re.DOTALL | re.MULTILINE)
_WORD_JOINER = "\u2060"


def shown_messages(messages: Sequence[Message], is_markdown: bool = False) -> list[tuple[int, dict[str, Any]]]:
    """The messages as the Chatbot takes them; each call of the calculator, with its result, becomes a folded one.

    Args:
        messages: Of a conversation.
        is_markdown: Whether the Chatbot renders Markdown; if not, every character is shown as it is. HTML is never rendered.

    Returns:
        (index in `messages`, message for the Chatbot), in order.
    """

    def literal(text: str) -> str:
        # in Markdown, code is shown as it is, and without the invisible characters when a person copies it
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
    """Speed of an answer, and what a person should know about it.

    Args:
        answer: The last one.
        is_running: Whether there is more to come.
        note: What else to say of it.
    """
    notes = [note] if note else []
    if answer.num_tokens and answer.elapsed_s > 0:
        notes.append(f"{answer.num_tokens} token{'s' * (answer.num_tokens > 1)}")
        notes.append(f"{answer.num_tokens / answer.elapsed_s:,.0f} tokens/s")
    if answer.finish_reason == "length":
        notes.append("cut: the new tokens allowed, or the model's context, were used up")
    elif answer.finish_reason is None and not is_running:
        notes.append("stopped")
    if answer.num_dropped_turns:
        turns = "turn is" if answer.num_dropped_turns == 1 else f"{answer.num_dropped_turns} turns are"
        notes.append(f"the oldest {turns} out of the model's sight: its context is full")
    return " · ".join(notes)


def typed_text(text: str) -> str:
    """What a person meant by a message that comes back from the page, where it may have been shown before."""
    return text.replace(_WORD_JOINER, "").strip()
