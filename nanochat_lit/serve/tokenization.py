"""POST /tokenize and /detokenize, in vLLM's format. Pure functions."""

from collections.abc import Mapping
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.serve.api_error import bad_field, kind_of
from nanochat_lit.serve.chat_messages import as_messages
from nanochat_lit.serve.request_fields import are_token_ids, boolean, check_fields
from nanochat_lit.tokenizer import Tokenizer, render_for_completion

_TRUE = {"add_generation_prompt": (True,)}


def tokenize(body: Mapping[str, Any], model_name: str, tokenizer: Tokenizer, context: int) -> dict[str, Any]:
    """Return the tokens of a text (`prompt`) or of a conversation (`messages`), as a request with it would have.

    Raises:
        ApiError: 404 for another model, 400 for everything else, with the field's name.
    """
    used = ("prompt", "messages", "add_special_tokens", "return_token_strs")
    check_fields(body, model_name, used, _TRUE)
    try:
        if body.get("messages") is not None:
            tokens = render_for_completion(tokenizer, {"messages": as_messages(body["messages"])})
        elif isinstance(prompt := body.get("prompt"), str):
            has_bos = body.get("add_special_tokens") is None or boolean(body, "add_special_tokens")
            tokens = tokenizer.encode(prompt, prepend_bos=has_bos)
        else:
            raise bad_field("prompt", f"prompt must be a string, not {kind_of(prompt)}; or send messages")
    except UserError as error:
        raise bad_field("prompt", str(error)) from None
    names = {token_id: name for name, token_id in tokenizer.special_ids.items()}
    strings = [names.get(token) or tokenizer.bytes_of(token).decode("utf-8", "replace") for token in tokens]
    shown = strings if boolean(body, "return_token_strs") else None
    return {"count": len(tokens), "max_model_len": context, "tokens": tokens, "token_strs": shown}


def detokenize(body: Mapping[str, Any], model_name: str, tokenizer: Tokenizer) -> dict[str, str]:
    """Return the text of token ids (`tokens`).

    Raises:
        ApiError: As `tokenize`.
    """
    check_fields(body, model_name, ("tokens",), {})
    tokens = body.get("tokens")
    if not are_token_ids(tokens):
        raise bad_field("tokens", "tokens must be a list of token ids")
    try:
        return {"prompt": tokenizer.decode(tokens)}
    except UserError as error:
        raise bad_field("tokens", str(error)) from None
