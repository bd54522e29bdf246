"""The LitAPI of a worker: loads the model and authorizes requests."""

import hmac
import math
import multiprocessing
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import litserve
from fastapi import Request

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import folder_fingerprint
from nanochat_lit.serve.loop import BEAT_EVERY_S
from nanochat_lit.serve.request_fields import ApiError

if TYPE_CHECKING:
    from nanochat_lit.engine.scheduler import Scheduler
    from nanochat_lit.serve.messages import Ready


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Settings of a server."""

    model: str
    """Export folder."""
    name: str
    """Model name in the API."""
    num_slots: int = 16
    """Concurrent requests per worker."""
    max_queue: int = 64
    """Maximum number of queued requests per worker."""
    host: str = "127.0.0.1"
    """Address to bind to."""
    allowed_hosts: tuple[str, ...] = ()
    """Allowed values of the Host header in addition to the address; "*" allows all."""
    request_timeout_s: float = 120.0
    """Time limit of a request in seconds, including queueing."""
    hang_timeout_s: float = 8.0
    """Seconds without a message from a worker before it is replaced; a worker sends one per step."""
    drain_timeout_s: float = 20.0
    """Seconds that running requests get to finish after SIGTERM."""
    max_body_bytes: int = 1_000_000
    """Maximum size of a request body."""
    api_key: str | None = None
    """Bearer token that clients must send; None disables the check."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose web pages may call this server; "*" allows all."""
    compute_dtype: str = "auto"
    """auto, bfloat16, float16 or float32."""
    quantize: Literal["int8", "int4"] | None = None
    """Store the matrices in 8 bits, or in 4.5."""
    adapter: str | None = None
    """Folder of a LoRA adapter to merge."""
    num_threads: int | None = None
    """Compute threads per worker; None is torch's default."""

    def __post_init__(self) -> None:
        for name in ("num_slots", "max_body_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; use at least 1")
        if self.max_queue < 0:
            raise UserError(f"max_queue is {self.max_queue}; use 0 (no waiting) or more")
        for name, low in (("request_timeout_s", 0.001), ("hang_timeout_s", 2 * BEAT_EVERY_S), ("drain_timeout_s", 0)):
            if not low <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; use at least {low:g} seconds")
        if self.api_key is not None and not (
            self.api_key.isascii() and self.api_key.isprintable() and self.api_key.strip()
        ):
            raise UserError("the API key must be non-empty printable ASCII, so that clients can send it in a header")


def fingerprint_of(settings: "ServeSettings") -> str:
    """Return a digest of the files of the export, and of its adapter, that determine its answers."""
    folders = [folder for folder in (settings.model, settings.adapter) if folder is not None]
    return " ".join(folder_fingerprint(folder, (".json", ".safetensors", ".model", ".tiktoken")) for folder in folders)


class ChatAPI(litserve.LitAPI):
    """One worker's model behind a scheduler.

    It refuses to load an export with another fingerprint, the digest when the server started.
    """

    scheduler: "Scheduler"
    end_ids: frozenset[int]
    ready: "Ready"

    def __init__(self, settings: ServeSettings, fingerprint: str, **arguments: Any) -> None:
        super().__init__(api_path="/v1/chat/completions", stream=True, **arguments)
        self.settings = settings
        self.failure: str | None = None
        self.fingerprint = fingerprint

    def setup(self, device: str | None) -> None:
        """Load the model and run it once, in the worker's process."""
        threading.Thread(target=_die_with_parent, daemon=True).start()
        import torch

        from nanochat_lit.engine.engine import Engine
        from nanochat_lit.engine.export import about_model, find_model, load_export, load_generation_defaults
        from nanochat_lit.engine.scheduler import Scheduler
        from nanochat_lit.model.packed import describe_kernel
        from nanochat_lit.serve.messages import Ready

        settings = self.settings
        if settings.num_threads is not None:
            torch.set_num_threads(settings.num_threads)
        try:
            defaults = load_generation_defaults(settings.model)
            model, tokenizer = load_export(
                settings.model,
                device,
                settings.compute_dtype,
                cast_weights=True,
                quantize=settings.quantize,
                adapter=settings.adapter,
            )
            if fingerprint_of(settings) != self.fingerprint:
                raise UserError(
                    f"{settings.model} has changed since the server started; restart the server to serve it"
                )
            engine = Engine(model, tokenizer, num_slots=settings.num_slots)
            engine.warm_up()
        except UserError as error:
            self.failure = str(error)  # the loop sends it to the server, which exits with this message
            return
        self.end_ids = engine.end_ids
        self.scheduler = Scheduler(engine, settings.max_queue)
        about = about_model(find_model(settings.model), model.config)
        self.ready = Ready(settings.num_slots, model.config.sequence_len, defaults, describe_kernel(model), about)

    async def authorize(self, request: Request) -> None:
        """Check the Bearer token; LitServe calls this for every endpoint of the spec."""
        key = self.settings.api_key
        if key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # constant-time comparison against timing attacks; headers are decoded as latin-1
        is_right = hmac.compare_digest(given.strip().encode("latin-1"), key.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise ApiError(
                401, "this server requires an API key; send 'Authorization: Bearer KEY'", code="invalid_api_key"
            )


def _die_with_parent() -> None:
    """End this worker when the server process dies."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
