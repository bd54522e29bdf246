"""nanochat-lit serve: serve an export through an OpenAI-compatible chat completions API."""

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
    quantize: Literal["int8", "int4"] | None = None,
    adapter: str | None = None,
) -> None:
    """Serve a chat model over HTTP with an OpenAI-compatible API until SIGTERM or Ctrl-C.

    Endpoints: POST /v1/chat/completions, /v1/completions and /v1/responses (streamed or not), GET /v1/models,
    POST /tokenize and /detokenize, GET /health and /metrics.

    Args:
        model: Export, run folder, .ckpt file or hf://OWNER/NAME.
        host: Address to bind to; 0.0.0.0 accepts connections from other machines.
        port: Port to bind to; 0 selects a free port.
        api_key: Bearer token that clients must send; null reads the environment variable NANOCHAT_API_KEY, and disables
            the check if that is unset or empty. Prefer the variable: other users of the machine can see command-line
            options.
        name: Model name in the API; null is the name of the folder or of its run.
        slots: Concurrent requests per worker; each slot holds a KV cache of the full context.
        max_queue: Maximum number of queued requests per worker; further requests get 429.
        workers: Processes per device, each with its own copy of the model.
        devices: Number of GPUs.
        allowed_hosts: Allowed values of the Host header in addition to the address, for example '["chat.example.org"]';
            '["*"]' allows all. Other requests are rejected to prevent DNS rebinding.
        request_timeout_s: Time limit of a request in seconds, including queueing; then it gets 504.
        hang_timeout_s: Seconds without a sign of life after which a worker is replaced; increase it if one step of a
            large model takes longer.
        drain_timeout_s: Seconds that running requests get to finish after SIGTERM.
        max_body_bytes: Maximum size of a request body; larger ones get 413.
        cors_origins: Origins whose web pages may call the server, for example '["https://example.org"]'; '["*"]' allows
            all.
        device: cpu, cuda or mps; null selects the fastest available device.
        compute_dtype: auto, bfloat16, float16 or float32.
        quantize: int8 stores and multiplies the matrices in 8 bits, int4 stores them in 4.5 (CPU only); null disables it.
        adapter: Folder of a LoRA adapter of this model, as a run with model.lora writes; null serves the model as it is.
    """
    names = _devices(workers, devices, device)
    try:
        from nanochat_lit.serve.api import ServeSettings
        from nanochat_lit.serve.server import ChatServer
    except ModuleNotFoundError as error:
        raise missing_package("the server", error.name, "serve") from None

    found = _found(model)
    settings = ServeSettings(
        model=found,
        name=model_name(found) if name is None else name,
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
        adapter=adapter,
        # divide the cores: workers that each use all threads would slow one another down
        num_threads=max(1, (os.cpu_count() or 1) // workers) if workers > 1 and device in (None, "cpu") else None,
    )
    print(f"loading {model}", file=sys.stderr, flush=True)
    ChatServer(settings, names).run(port)


def _found(model: str) -> str:
    """Return the export or checkpoint of a path, resolved once: a run in training writes newer ones later."""
    if (Path(model) / "config.json").is_file():
        return model
    from nanochat_lit.engine.export import find_model, load_tokenizer  # with torch, which takes seconds

    found = find_model(model)
    load_tokenizer(found)  # raises if files are missing
    return str(found)


def _devices(workers: int, devices: int, device: str | None) -> list[str | None]:
    if workers < 1 or devices < 1:
        raise UserError(f"workers {workers} and devices {devices} must be at least 1")
    if devices > 1 and device not in (None, "cuda", "xpu"):
        raise UserError(f"devices is {devices}, but --device {device} is a single device; omit --devices or --device")
    if devices == 1:
        return [device] * workers
    return [f"{device or 'cuda'}:{index}" for index in range(devices)] * workers


def model_name(model: str) -> str:
    """Return the API name of a model: its folder's name, or that of its run for an export or a checkpoint in it."""
    *_, run, folder = ["", *Path(model).resolve().parts[: -1 if model.endswith(".ckpt") else None]]
    return run if folder in ("export", "checkpoints") and run.strip("/") else folder
