"""A worker: the LitAPI that loads the model and authorizes requests, and its main loop.

LitServe's continuous loop (0.2.19) waits up to a second per admission, continues requests of disconnected clients, and
ends at the first exception, so only its interface is used. Here a thread receives messages, and the main thread, which
owns the engine, never blocks while there is work.
"""

import contextlib
import hmac
import math
import multiprocessing
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

import litserve
from fastapi import Request
from litserve.loops import LitLoop

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import folder_fingerprint
from nanochat_lit.engine.answer_text import TokenScore
from nanochat_lit.engine.sampling_params import FAILED, TOO_COMPLEX
from nanochat_lit.serve.messages import Beat, Cancel, Close, Failed, Ready, Report, Submit, Update, merged
from nanochat_lit.serve.request_fields import ApiError

if TYPE_CHECKING:
    from nanochat_lit.engine.scheduler import Scheduler

REPORT_EVERY_S = 0.04
"""Minimum interval between text messages in seconds, except for an answer's first and last tokens. A small model
generates thousands of tokens per second, and a message per token would cost more than the token; 25 updates per second
look smooth."""
BEAT_EVERY_S = 1.0
"""Interval of heartbeats in seconds. They are sent by the thread that steps the engine, so that a hanging step is
detected."""


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


def fingerprint_of(settings: ServeSettings) -> str:
    """Return a digest of the files of the export, and of its adapter, that determine its answers."""
    folders = [folder for folder in (settings.model, settings.adapter) if folder is not None]
    return " ".join(folder_fingerprint(folder, (".json", ".safetensors", ".model", ".tiktoken")) for folder in folders)


class ChatAPI(litserve.LitAPI):
    """One worker's model behind a scheduler.

    It refuses to load an export with another fingerprint, the digest when the server started.
    """

    scheduler: "Scheduler"
    end_ids: frozenset[int]
    ready: Ready

    def __init__(self, settings: ServeSettings, fingerprint: str, spec: Any = None) -> None:
        super().__init__(api_path="/v1/chat/completions", stream=True, loop=ChatLoop(), spec=spec)
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
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class ChatLoop(LitLoop):
    """LitServe calls `run` in the worker once the model is loaded; it returns when the server sends Close."""

    def run(
        self,
        lit_api: Any,  # a ChatAPI
        device: str | None,  # noqa: ARG002
        worker_id: int,  # noqa: ARG002
        request_queue: Any,
        transport: Any,
        workers_setup_status: Any,  # noqa: ARG002
        callback_runner: Any,  # noqa: ARG002
    ) -> None:
        """Serve until the server sends Close."""
        if lit_api.failure is not None:
            transport.send(Failed(lit_api.failure), 0)
            raise SystemExit(1)
        transport.send(lit_api.ready, 0)
        inbox: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=_collect, args=(request_queue.recv, inbox), daemon=True).start()
        work = EngineWork(lit_api.scheduler, lit_api.end_ids)
        beat_s = time.monotonic()
        while work.take(_messages(inbox, wait=not lit_api.scheduler.has_work)):
            message = work.step()
            if message is None and time.monotonic() - beat_s >= BEAT_EVERY_S:
                message = Beat()
            if message is not None:
                beat_s = time.monotonic()
                transport.send(message, 0)
        raise SystemExit(0)


class EngineWork:
    """Processes messages and returns reports, one step at a time; independent of processes and pipes for tests.

    The tokens `end_ids` end an answer and do not belong to it.
    """

    def __init__(self, scheduler: Any, end_ids: frozenset[int], clock: Any = time.monotonic) -> None:
        self._scheduler = scheduler
        self._end_ids = end_ids
        self._clock = clock
        self._news: defaultdict[int, list[Update]] = defaultdict(list)  # not yet reported
        self._started: set[int] = set()  # keys whose first token was reported
        self._last_state = (0, 0)
        self._last_report_s = clock()

    def take(self, messages: Iterable[Any]) -> bool:
        """Process messages of the server; return False on Close."""
        for message in messages:
            if isinstance(message, Close):
                return False
            if isinstance(message, Cancel):
                self._scheduler.cancel(message.key)
                self._news.pop(message.key, None)
                self._started.discard(message.key)
            else:
                self._submit(message)
        return True

    def step(self) -> Report | None:
        """Step the engine; return a report if one is due, or if an answer begins or ends."""
        for key, emitted, error in self._scheduler.step():
            self._news[key].append(_update_of(key, emitted, error, self._end_ids))
        state, now_s = (self._scheduler.num_queued, self._scheduler.num_active), self._clock()
        is_due = now_s - self._last_report_s >= REPORT_EVERY_S or not self._scheduler.has_work
        keys = [key for key, news in self._news.items() if is_due or key not in self._started or news[-1].is_last]
        if not keys and not (is_due and state != self._last_state):
            return None
        self._last_state, self._last_report_s = state, now_s if is_due else self._last_report_s
        updates = [merged(self._news.pop(key)) for key in keys]
        self._started = self._started.union(keys) - {update.key for update in updates if update.is_last}
        return Report(*state, updates)

    def _submit(self, message: Submit) -> None:
        from nanochat_lit.engine.scheduler import QueueFull

        try:
            self._scheduler.submit(message.key, message.request, message.client, message.deadline_s - self._clock())
        except QueueFull as full:
            self._news[message.key].append(Update(message.key, error=(429, str(full), full.retry_after_s)))


def _update_of(key: int, emitted: Any, error: Exception | None, end_ids: frozenset[int]) -> Update:
    if error is not None:
        return Update(key, error=(*_status_of(error), None))
    if emitted.finish_reason == FAILED:
        return Update(key, error=(400 if emitted.error == TOO_COMPLEX else 500, emitted.error, None))
    scores = [] if emitted.logprob is None else [TokenScore(emitted.token_id, emitted.logprob, emitted.top)]
    num_tokens = int(emitted.token_id not in end_ids)
    return Update(key, emitted.pieces, num_tokens, emitted.finish_reason, None, scores, emitted.prompt_scores)


def _collect(receive: Callable[[], Any], inbox: SimpleQueue[Any]) -> None:
    with contextlib.suppress(EOFError, OSError):  # the server has exited
        while True:
            inbox.put(receive())
    inbox.put(Close())


def _messages(inbox: SimpleQueue[Any], wait: bool) -> Iterable[Any]:
    """Yield received messages; if idle, wait for the first, at most until the next heartbeat."""
    if wait:
        with contextlib.suppress(Empty):
            yield inbox.get(timeout=BEAT_EVERY_S)
    with contextlib.suppress(Empty):
        while True:
            yield inbox.get_nowait()


def _status_of(error: Exception) -> tuple[int, str]:
    from nanochat_lit.engine.scheduler import DeadlineExceeded

    if isinstance(error, DeadlineExceeded):
        return 504, str(error)
    if isinstance(error, UserError):
        return 400, str(error)
    return 500, f"the engine rejected the request ({type(error).__name__})"
