"""nanochat-lit ui: the chat page, for an export in this process or as a client of a running server."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Sequence

from nanochat_lit.commands.serve import model_name
from nanochat_lit.common.errors import UserError, missing_package
from nanochat_lit.engine.sampling_params import CHAT_PARAMS, SamplingParams
from nanochat_lit.model.packed import Quantization
from nanochat_lit.serve.chat_tab import ShownModel

MAX_NEW_TOKENS = 4096
"""Upper end of the slider for a server, whose context is unknown."""


def ui(  # noqa: PLR0913 - every option of the command is a parameter
    model: str | None = None,
    url: str | None = None,
    compare: str | None = None,
    api_key: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    allowed_hosts: list[str] | None = None,
    slots: int = 8,
    device: str | None = None,
    compute_dtype: str = "auto",
    quantize: Quantization | None = None,
) -> None:
    """Chat in the browser with an export or a running server, until Ctrl-C.

    Args:
        model: Export, run folder, .ckpt file or hf://OWNER/NAME; mutually exclusive with --url.
        url: Address of a server, such as http://127.0.0.1:8000; mutually exclusive with --model.
        compare: Another model to show side by side, which gets the same questions: as --model, or the address of a server
            with http:// or https://; null shows one model.
        api_key: API key of the server; null reads the environment variable NANOCHAT_API_KEY.
        host: Address to bind to. 0.0.0.0 gives the whole network access, without a password.
        port: Port to bind to; 0 selects a free port.
        allowed_hosts: Allowed values of the Host header in addition to the address, for example '["chat.example.org"]';
            '["*"]' allows all.
        slots: Concurrent conversations; further ones are queued. For --model.
        device: cpu, cuda or mps; null selects the fastest available device. For --model.
        compute_dtype: auto, bfloat16, float16 or float32. For --model.
        quantize: int8 stores the weights in 8 bits, int4 in 4.5 (CPU only); null keeps them in compute_dtype. For --model.
    """
    if (model is None) == (url is None):
        raise UserError("give either --model EXPORT or --url URL, as in --model runs/quickstart/export")
    sources = [source for source in (url or model, compare) if source is not None]
    is_url = [url is not None, compare is not None and compare.startswith(("http://", "https://"))]
    for index, source in enumerate(sources):
        if source.startswith("hf://"):
            from nanochat_lit.engine.export import find_model

            sources[index] = str(find_model(source))  # before the hub's client is disabled
    # gradio and huggingface_hub read these at import; the page needs no network access and thus no proxy
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", NO_PROXY="*", no_proxy="*")
    with contextlib.ExitStack() as stack:
        with _named_if_missing():
            from nanochat_lit.serve.gate import listen
        listener = stack.enter_context(listen(host, port))  # before the model is loaded, which takes time

        def load(source: str, is_server: bool) -> tuple[ShownModel, SamplingParams, int]:
            if is_server:
                from nanochat_lit.serve.client import ServerChat

                server = ServerChat(source, api_key or os.environ.get("NANOCHAT_API_KEY") or None)
                return ShownModel(server, server.name, server.about, server.problem), CHAT_PARAMS, MAX_NEW_TOKENS
            from nanochat_lit.engine.engine import Engine
            from nanochat_lit.engine.engine_chat import EngineChat
            from nanochat_lit.engine.export import about_model, find_model, load_export, load_generation_defaults

            settings = load_generation_defaults(source)
            gpt, tokenizer = load_export(source, device, compute_dtype, cast_weights=True, quantize=quantize)
            chat_model = stack.enter_context(EngineChat(Engine(gpt, tokenizer, num_slots=slots)))
            about = about_model(find_model(source), gpt.config)
            return ShownModel(chat_model, model_name(source), about), settings, gpt.config.sequence_len

        shown, settings, lengths = zip(*map(load, sources, is_url), strict=True)
        _serve(listener, host, allowed_hosts or (), shown, settings[0], max(lengths))


def _serve(
    listener: socket.socket,
    host: str,
    allowed_hosts: Sequence[str],
    shown: Sequence[ShownModel],
    settings: SamplingParams,
    max_new_tokens: int,
) -> None:
    with _named_if_missing():
        import uvicorn

        from nanochat_lit.serve.chat_ui import build_app, build_page
        from nanochat_lit.serve.gate import address_of, uvicorn_config
    page = build_page(shown, settings, max_new_tokens)
    app = build_app(page, host, allowed_hosts, lambda: next(filter(None, (one.problem() for one in shown)), None))
    names = " and ".join(one.name for one in shown)
    print(f"chat with {names} at {address_of(listener, host)}", file=sys.stderr, flush=True)
    # open tabs keep an event stream open indefinitely; do not wait for them
    uvicorn.Server(uvicorn_config(app, timeout_graceful_shutdown=1)).run(sockets=[listener])


@contextlib.contextmanager
def _named_if_missing() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise missing_package("the chat page", error.name, "serve") from None
