"""nanochat-lit ui: the chat page, for an export in this process or in front of a running server."""

import contextlib
import os
import socket
import sys
from pathlib import Path

from nanochat_lit.common.errors import UserError, missing_package
from nanochat_lit.engine.chat_model import ChatModel
from nanochat_lit.engine.chat_settings import ChatSettings
from nanochat_lit.model.packed import Quantization

MAX_NEW_TOKENS = 4096
"""Where the slider ends for a server, whose context is not known here."""


def ui(
    model: str | None = None,
    url: str | None = None,
    api_key: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    slots: int = 8,
    device: str | None = None,
    compute_dtype: str = "auto",
    quantize: Quantization | None = None,
) -> None:
    """Chat in the browser: with an export, or through a running server. Ctrl-C ends it.

    Args:
        model: Export folder; leave it out with --url.
        url: Address of a server, such as http://127.0.0.1:8000; leave it out with --model.
        api_key: The server's key, if it has one; null takes it from the environment variable NANOCHAT_API_KEY.
        host: Address to listen on. 0.0.0.0 lets the whole network chat: there is no password.
        port: Port to listen on; 0 is a free one.
        slots: Conversations that are answered at once; further ones wait. For --model.
        device: cpu, cuda or mps; null is the fastest there is. For --model.
        compute_dtype: auto, bfloat16, float16 or float32. For --model.
        quantize: int8 keeps the weights in 8 bits (CPU); null keeps them in compute_dtype. For --model.
    """
    if (model is None) == (url is None):
        raise UserError("give either --model EXPORT or --url URL, as in --model runs/quickstart/export")
    # read when gradio and huggingface_hub are imported; the page works without a network
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(host, port))
        if url is not None:
            from nanochat_lit.serve.client import ServerChat

            chat_model = ServerChat(url, api_key or os.environ.get("NANOCHAT_API_KEY"))
            _serve(listener, chat_model, chat_model.name, ChatSettings(), MAX_NEW_TOKENS)
            return
        assert model is not None
        from nanochat_lit.engine.engine import Engine
        from nanochat_lit.engine.engine_chat import EngineChat
        from nanochat_lit.engine.export import load_export, load_generation_defaults

        settings = ChatSettings.of(load_generation_defaults(model))
        gpt, tokenizer = load_export(model, device, compute_dtype, cast_weights=True, quantize=quantize)
        chat_model = stack.enter_context(EngineChat(Engine(gpt, tokenizer, num_slots=slots)))
        _serve(listener, chat_model, _name_of(model), settings, gpt.config.sequence_len)


def _serve(
    listener: socket.socket, chat_model: ChatModel, name: str, settings: ChatSettings, max_new_tokens: int
) -> None:
    try:
        import uvicorn

        from nanochat_lit.serve.chat_ui import build_app, build_page

        app = build_app(build_page(chat_model, name, settings, max_new_tokens))
    except ImportError as error:
        raise missing_package("the chat page", error.name, "serve") from None
    host, port = listener.getsockname()[:2]
    print(f"chat with {name} at http://{host}:{port}", file=sys.stderr, flush=True)
    # open tabs hold a stream of events for as long as they like; they are not waited for
    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65_535:
        raise UserError(f"port is {port}; use 1 to 65535, or 0 for a free one")
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port} ({error}); choose another with --port") from None


def _name_of(export: str) -> str:
    """runs/quickstart/export -> quickstart."""
    path = Path(export).resolve()
    return path.parent.name if path.name == "export" and path.parent.name else path.name
