"""POST /v1/completions: continues texts, without a chat template, and reports the log-probabilities of a prompt's tokens.

The evaluation harness lm_eval scores answers with `echo` and `logprobs`. Also POST /tokenize and /detokenize, in vLLM's
format. Pure functions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_lit.engine.answer_text import TokenScore
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.serve.chat_request import as_messages
from nanochat_lit.serve.chat_response import TokenNames, Writer, usage
from nanochat_lit.serve.messages import Update
from nanochat_lit.serve.request_fields import (
    MAX_TOP_LOGPROBS,
    Options,
    are_token_ids,
    bad_field,
    boolean,
    check_fields,
    errors_of,
    is_same,
    kind_of,
    parse_options,
    whole_number,
)
from nanochat_lit.tokenizer import Tokenizer, render_for_completion

MAX_PROMPTS = 64

_REFUSED: dict[str, tuple[Any, ...]] = {"suffix": ("",), "best_of": (1,)}
"""Unsupported features, and their values that disable them."""


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(Options):
    """A parsed request."""

    prompts: list[list[int]]
    """Token ids of each prompt; those of texts begin with bos."""
    texts: list[str]
    """Text of each prompt."""
    echo: bool
    """Whether the answer begins with the prompt."""
    is_prompt_only: bool
    """Whether nothing is generated (max_tokens 0)."""


def parse_completion_request(
    body: Mapping[str, Any], model_name: str, defaults: SamplingParams, tokenizer: Tokenizer, context: int
) -> CompletionRequest:
    """Check every field of a request; `defaults` are the export's.

    Raises:
        ApiError: 404 for another model, 400 for everything else, with the field's name.
    """
    check_fields(body, model_name, ("prompt", "echo"), _REFUSED)
    echo = boolean(body, "echo")
    is_prompt_only = echo and is_same(body.get("max_tokens"), 0)
    if is_prompt_only and body.get("stream"):
        raise bad_field("stream", "max_tokens 0 generates nothing to stream; set stream to false")
    prompts, texts = _prompts(body.get("prompt"), tokenizer)
    for prompt in prompts:
        if not 0 < len(prompt) <= context:
            code = "context_length_exceeded" if prompt else None
            message = f"a prompt has {len(prompt)} tokens; use 1 to {context}, the model's context"
            raise bad_field("prompt", message, code)
    return CompletionRequest(
        prompts=prompts,
        texts=texts,
        echo=echo,
        is_prompt_only=is_prompt_only,
        logprobs=body.get("logprobs") is not None,
        top_logprobs=whole_number(body, "logprobs", 0, MAX_TOP_LOGPROBS, 0),
        **parse_options({**body, "max_tokens": 1} if is_prompt_only else body, defaults),
    )


def _prompts(given: object, tokenizer: Tokenizer) -> tuple[list[list[int]], list[str]]:
    """Return ids and texts of the prompts: a text, token ids, or a list of either."""
    is_one = isinstance(given, str) or (given and are_token_ids(given))
    items = [given] if is_one else given
    if not isinstance(items, list) or not 0 < len(items) <= MAX_PROMPTS:
        raise bad_field("prompt", f"prompt must be a text, token ids, or a list of 1 to {MAX_PROMPTS} of them")
    prompts, texts = [], []
    with errors_of("prompt", "prompt: "):
        for item in items:
            if isinstance(item, str):
                prompts.append(tokenizer.encode(item, prepend_bos=True))
                texts.append(item)
            elif are_token_ids(item):
                prompts.append(item)
                texts.append(tokenizer.decode(item))
            else:
                raise bad_field("prompt", f"prompt must contain texts or lists of token ids, not {kind_of(item)}")
    return prompts, texts


@dataclass
class TextWriter(Writer):
    """Writes a continuation."""

    echo: tuple[str, Sequence[int]] | None = None
    """Text and token ids of the prompt, if the answer begins with it."""
    is_prompt_only: bool = False
    """Whether the answer ends with it."""
    object = event_object = "text_completion"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._offset = 0

    def choice(self, answer: Update) -> dict[str, Any]:
        """Return the finished answer, or the next part of it."""
        text = "".join(text for kind, text in answer.parts if kind == "text")
        scores: list[TokenScore | int] = [*answer.scores]
        if self.is_prompt_only:  # the engine reads a prompt for a token at least
            text, scores, answer = "", [], answer._replace(finish_reason="length")
        if self.echo:
            text, scores = self.echo[0] + text, [self.echo[1][0], *answer.prompt_scores, *scores]
            self.echo = None  # it begins the answer
        logprobs = None
        if self.names:
            logprobs, self._offset = self.names.text_logprobs(scores, self._offset)
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": answer.finish_reason}

    def whole(self, choices: Sequence[dict[str, Any]], counts: dict[str, int]) -> dict[str, Any]:
        """Return the body with all answers."""
        return super().whole(choices, usage(counts["prompt_tokens"], 0) if self.is_prompt_only else counts)

    def events(self, update: Update) -> str:
        """Return the event of an update."""
        return self._event(self.choice(update))


_TRUE = {"add_generation_prompt": (True,)}


def tokenize(body: Mapping[str, Any], model_name: str, tokenizer: Tokenizer, context: int) -> dict[str, Any]:
    """Return the tokens of a text (`prompt`) or of a conversation (`messages`), as a request with it would have.

    Raises:
        ApiError: 404 for another model, 400 for everything else, with the field's name.
    """
    used = ("prompt", "messages", "add_special_tokens", "return_token_strs")
    check_fields(body, model_name, used, _TRUE)
    with errors_of("prompt"):
        if body.get("messages") is not None:
            tokens = render_for_completion(tokenizer, {"messages": as_messages(body["messages"])})
        elif isinstance(prompt := body.get("prompt"), str):
            has_bos = body.get("add_special_tokens") is None or boolean(body, "add_special_tokens")
            tokens = tokenizer.encode(prompt, prepend_bos=has_bos)
        else:
            raise bad_field("prompt", f"prompt must be a string, not {kind_of(prompt)}; or send messages")
    shown = [*map(TokenNames(tokenizer).text_of, tokens)] if boolean(body, "return_token_strs") else None
    return {"count": len(tokens), "max_model_len": context, "tokens": tokens, "token_strs": shown}


def detokenize(body: Mapping[str, Any], model_name: str, tokenizer: Tokenizer) -> dict[str, str]:
    """Return the text of token ids (`tokens`); raises ApiError as `tokenize`."""
    check_fields(body, model_name, ("tokens",), {})
    tokens = body.get("tokens")
    if not are_token_ids(tokens):
        raise bad_field("tokens", "tokens must be a list of token ids")
    with errors_of("tokens"):
        return {"prompt": tokenizer.decode(tokens)}
