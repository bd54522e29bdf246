"""nanochat-lit serve: an export behind OpenAI's chat completions interface."""

import os
import sys
from pathlib import Path
from typing import Literal

from nanochat_lit.common.errors import UserError, missing_package


def serve(  # noqa: PLR0913 - every option of the command is a parameter
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    name: str | None = None,
    slots: int = 16,
    max_queue: int = 64,
    workers: int = 1,
    devices: int = 1,
    allowed_hosts: list[str] | None = None,
    request_timeout_s: float = 120.0,
    hang_timeout_s: float = 8.0,
    drain_timeout_s: float = 20.0,
    max_body_bytes: int = 1_000_000,
    cors_origins: list[str] | None = None,
    device: str | None = None,
    compute_dtype: str = "auto",
    quantize: Literal["int8"] | None = None,
) -> None:
    """Serve a chat model over HTTP, as OpenAI's clients expect it, until SIGTERM or Ctrl-C.

    Endpoints: POST /v1/chat/completions (streamed or not), GET /v1/models, /health, /metrics.

    Args:
        model: Export, run folder, or .ckpt file.
        host: Address to listen on; 0.0.0.0 lets other machines in.
        port: Port to listen at; 0 is any that is free.
        api_key: What clients must send as Bearer token; null is the environment variable NANOCHAT_API_KEY (which other users
            of the machine cannot see, unlike an option), and no check if that is unset or empty.
        name: What requests call the model; null is the folder's name, or that of its run.
        slots: Requests that a worker answers at once; each holds a KV cache of the whole context.
        max_queue: Most requests that wait for a slot of a worker; more are refused with 429.
        workers: Processes per device, each with a model of its own.
        devices: GPUs to use, one or more workers on each.
        allowed_hosts: Names of this server in addition to its address, as in '["chat.example.org"]'; requests that use another
            name are refused, because a web page may have made it. '["*"]' allows all.
        request_timeout_s: Longest time for a request, waiting included; then it gets 504.
        hang_timeout_s: Longest silence of a worker before it is replaced; raise it if one step of a large model takes longer.
        drain_timeout_s: Longest time that running requests get to finish after SIGTERM.
        max_body_bytes: Longest body of a request; more gets 413.
        cors_origins: Origins whose web pages may call the server, as in '["https://example.org"]', '["*"]' for all.
        device: cpu, cuda or mps; null is the fastest there is.
        compute_dtype: auto, bfloat16, float16 or float32.
        quantize: int8 stores and multiplies the matrices in 8 bits (CPU); null does not.
    """
    names = _devices(workers, devices, device)
    try:
        from nanochat_lit.serve.api import ServeSettings
        from nanochat_lit.serve.server import ChatServer
    except ModuleNotFoundError as error:
        raise missing_package("the server", error.name, "serve") from None

    settings = ServeSettings(
        model=model,
        name=model_name(model) if name is None else name,
        host=host,
        allowed_hosts=tuple(allowed_hosts or ()),
        num_slots=slots,
        max_queue=max_queue,
        request_timeout_s=request_timeout_s,
        hang_timeout_s=hang_timeout_s,
        drain_timeout_s=drain_timeout_s,
        max_body_bytes=max_body_bytes,
        api_key=os.environ.get("NANOCHAT_API_KEY") or None if api_key is None else api_key,
        cors_origins=tuple(cors_origins or ()),
        compute_dtype=compute_dtype,
        quantize=quantize,
        # several models on one CPU share its cores: all of them with all threads would wait for each other
        num_threads=max(1, (os.cpu_count() or 1) // workers) if workers > 1 and device in (None, "cpu") else None,
    )
    server = ChatServer(settings, names)
    print(f"loading {model}", file=sys.stderr, flush=True)
    server.run(port)


def _devices(workers: int, devices: int, device: str | None) -> list[str | None]:
    """Where each worker computes."""
    if workers < 1 or devices < 1:
        raise UserError(f"workers is {workers} and devices {devices}; use at least 1 of each")
    if devices > 1 and device not in (None, "cuda", "xpu"):
        raise UserError(f"devices is {devices}, but there is one device {device}; leave --devices or --device out")
    if devices == 1:
        return [device] * workers
    return [f"{device or 'cuda'}:{index}" for index in range(devices)] * workers


def model_name(model: str) -> str:
    """What requests call an export: its folder, or the run's folder when that is called export."""
    folder = Path(model).resolve()
    return folder.parent.name if folder.name == "export" and folder.parent.name else folder.name
