"""LitServe's view of the model: what a worker loads, and who may ask."""

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
from nanochat_lit.serve.api_error import ApiError
from nanochat_lit.serve.loop import BEAT_EVERY_S

if TYPE_CHECKING:
    from nanochat_lit.engine.scheduler import Scheduler
    from nanochat_lit.serve.messages import Ready


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """What a server is started with."""

    model: str
    """Export folder."""
    name: str
    """What requests call the model."""
    num_slots: int = 16
    """Requests that a worker answers at once."""
    max_queue: int = 64
    """Most requests that wait for a slot of a worker."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    allowed_hosts: tuple[str, ...] = ()
    """Names of this server in addition to those of its address; "*" allows all."""
    request_timeout_s: float = 120.0
    """Longest time for a request, waiting included."""
    hang_timeout_s: float = 8.0
    """Longest silence of a worker, whose every step ends one, before it is replaced."""
    drain_timeout_s: float = 20.0
    """Longest time that running requests get to finish after SIGTERM."""
    max_body_bytes: int = 1_000_000
    """Longest body of a request."""
    api_key: str | None = None
    """What clients must send as Bearer token; None for no check."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose web pages may call this server; "*" is all."""
    compute_dtype: str = "auto"
    """auto, bfloat16, float16 or float32."""
    quantize: Literal["int8"] | None = None
    """Store the matrices in 8 bits."""
    num_threads: int | None = None
    """Threads per worker for arithmetic; None is torch's choice."""

    def __post_init__(self) -> None:
        for name in ("num_slots", "max_body_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; use at least 1")
        if self.max_queue < 0:
            raise UserError(f"max_queue is {self.max_queue}; use 0 (no waiting) or more")
        for name, low in (("request_timeout_s", 0.001), ("hang_timeout_s", 2 * BEAT_EVERY_S), ("drain_timeout_s", 0)):
            if not low <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; use a number of seconds of at least {low:g}")
        if self.api_key is not None and not (
            self.api_key.isascii() and self.api_key.isprintable() and self.api_key.strip()
        ):
            raise UserError("the API key must be printable ASCII, which is all that clients can send, and not empty")


def fingerprint_of(export: str) -> str:
    """Of all that an export answers with."""
    return folder_fingerprint(export, (".json", ".safetensors", ".model", ".tiktoken"))


class ChatAPI(litserve.LitAPI):
    """One worker's model behind a scheduler.

    Args:
        settings: Of the server.
        fingerprint: Of the export, when the server started; a worker does not load another.
        arguments: For LitServe: spec and loop.
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
        from nanochat_lit.engine.export import load_export, load_generation_defaults
        from nanochat_lit.engine.scheduler import Scheduler
        from nanochat_lit.model.packed import describe_kernel
        from nanochat_lit.serve.messages import Ready

        settings = self.settings
        if settings.num_threads is not None:
            torch.set_num_threads(settings.num_threads)
        try:
            defaults = load_generation_defaults(settings.model)
            model, tokenizer = load_export(
                settings.model, device, settings.compute_dtype, cast_weights=True, quantize=settings.quantize
            )
            if fingerprint_of(settings.model) != self.fingerprint:
                raise UserError(
                    f"{settings.model} has changed since the server started; restart the server to serve it"
                )
            engine = Engine(model, tokenizer, num_slots=settings.num_slots)
            engine.warm_up()
        except UserError as error:
            self.failure = str(error)  # the loop tells the server, which ends with the message
            return
        self.end_ids = engine.end_ids
        self.scheduler = Scheduler(engine, settings.max_queue)
        self.ready = Ready(settings.num_slots, model.config.sequence_len, defaults, describe_kernel(model))

    async def authorize(self, request: Request) -> None:
        """LitServe's hook for every endpoint of the spec. Bearer, because that is what OpenAI's clients send."""
        key = self.settings.api_key
        if key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # compared in constant time, so that the time tells nothing about the key; headers are read as latin-1, whatever was sent
        is_right = hmac.compare_digest(given.strip().encode("latin-1"), key.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise ApiError(401, "this server wants its API key as 'Authorization: Bearer KEY'", code="invalid_api_key")


def _die_with_parent() -> None:
    """A worker must not outlive a server that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
