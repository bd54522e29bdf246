"""Conversion of a conversation to messages of Gradio's Chatbot, and what is shown of its last answer."""

import html
import math
import re
from collections.abc import Sequence
from typing import Any

from nanochat_lit.engine.chat_session import Answer, Message, TokenScore

# The Chatbot interprets HTML even without Markdown. An invisible character after the sign prevents it. (The entity &lt;
# would appear literally when the message is edited or copied.)
_HTML_SIGN = re.compile(r"<(?=[A-Za-z/!?])|&(?=[A-Za-z#])")
# fenced or in backticks; an unclosed fence does not count as code
_CODE = re.compile(r"(^```[^`\n]*\n.*?^```[ \t]*$|(?<![`\\])`[^`\n]+`(?!`))", re.DOTALL | re.MULTILINE)
_WORD_JOINER, _HAIR_SPACE = "\u2060", "\u200a"
# A person's text is shown as typed, without Markdown: a space around signs prevents emphasis, and an invisible character
# at the start of a line prevents headings, lists and blocks of code, and inside a link the link.
_EMPHASIS = re.compile(r"[*_~]+")
_LINK = re.compile(r"(?<=\])(?=[(\[:])")
_LINE_START = re.compile(r"^(?=    |\t|[ ]{0,3}(?:[#>|=+-]|\d+[.)]))", re.MULTILINE)
# Exceptions from the Markdown of answers: 2*3*4 is a product, and a line "42." not an empty list.
_PRODUCT = re.compile(r"(?<=\d)\*(?=\d)")
_NUMBER = re.compile(r"^(?=[ ]{0,3}\d+[.)][ \t]*$)", re.MULTILINE)


def shown_messages(messages: Sequence[Message], is_markdown: bool = False) -> list[tuple[int, dict[str, Any]]]:
    """Convert messages for the Chatbot; each calculator call with its result becomes a collapsible message.

    Args:
        messages: Messages of a conversation.
        is_markdown: Render Markdown in answers; otherwise text is shown literally. HTML is never rendered.

    Returns:
        (index in `messages`, message for the Chatbot), in order.
    """

    def literal(text: str, is_answer: bool = True) -> str:
        # Markdown shows code literally, so it needs no invisible characters, which would be copied
        between = _CODE.split(text) if is_markdown else [text]
        for index, part in enumerate(between[::2]):
            shown = _HTML_SIGN.sub(lambda sign: sign.group() + _WORD_JOINER, part)
            if is_markdown:
                shown = (_PRODUCT if is_answer else _EMPHASIS).sub(_spaced, shown)
                for place in (_NUMBER,) if is_answer else (_LINE_START, _LINK):
                    shown = place.sub(_WORD_JOINER, shown)
            between[2 * index] = shown
        return "".join(between)

    shown: list[tuple[int, dict[str, Any]]] = []
    for index, message in enumerate(messages):
        if isinstance(message["content"], str):
            content = literal(message["content"], is_answer=message["role"] != "user")
            shown.append((index, {"role": message["role"], "content": content}))
            continue
        call, expression = None, ""
        for part in message["content"]:
            if part["type"] == "text":
                call = None
                shown.append((index, {"role": "assistant", "content": literal(part["text"])}))
            elif part["type"] == "python_output" and call is not None:
                call["content"] = literal(f"The model wrote {expression}\nThe calculator computed {part['text']}")
                call["metadata"]["log"] = literal(f"{expression} = {part['text']}")
                call = None
            else:
                expression = part["text"]
                metadata = {"title": "Calculator", "log": literal(expression), "status": "done"}
                call = {"role": "assistant", "content": literal(expression), "metadata": metadata}
                shown.append((index, call))
    return shown


def escaped(text: str) -> str:
    """Return untrusted text so that Markdown shows it literally."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def _spaced(sign: re.Match[str]) -> str:
    return f"{_HAIR_SPACE}{sign.group()}{_HAIR_SPACE}"


def tokens_html(scores: Sequence[TokenScore]) -> str:
    """Return the tokens of an answer as HTML, coloured by probability, with the alternatives in a tooltip.

    Args:
        scores: Tokens; their texts are untrusted and escaped.
    """
    spans = []
    for score in scores:
        chance = math.exp(min(score.logprob, 0.0))
        rows = [f"{math.exp(min(logprob, 0.0)):6.1%}  {_visible(text)}" for text, logprob in score.top]
        tip = html.escape("\n".join([f"{_visible(score.text)}: {chance:.1%}", "", *rows]))
        spans.append(f'<span tabindex="0" style="--p: {chance:.3f}" data-tip="{tip}">{html.escape(score.text)}</span>')
    return f"<p>{''.join(spans)}</p>" if spans else ""


def _visible(text: str) -> str:
    return text.replace(" ", "\N{OPEN BOX}").replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")


def status_line(answer: Answer, is_running: bool, note: str = "") -> str:
    """Return the speed of an answer and notes on truncation."""
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
    return text.replace(_WORD_JOINER, "").replace(_HAIR_SPACE, "").strip()
