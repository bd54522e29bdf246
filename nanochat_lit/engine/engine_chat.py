"""An engine in a separate thread, shared by concurrent conversations."""

import itertools
import queue
import threading
import time
import traceback
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.answer_text import Piece
from nanochat_lit.engine.chat_session import Answer, Message, TokenScore
from nanochat_lit.engine.engine import Emitted, Engine
from nanochat_lit.engine.sampling_params import FAILED, Request, SamplingParams
from nanochat_lit.engine.scheduler import QueueFull, Scheduler
from nanochat_lit.tokenizer import Tokenizer, render_for_completion

_Outbox = queue.SimpleQueue[tuple[float, Emitted] | Exception | None]
"""Results of one request: tokens with times, or an error; None once the client has disconnected."""


def fit_chat_prompt(
    tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], context: int, max_new_tokens: int
) -> tuple[list[int], int]:
    """Return the prompt for the next answer, with as many recent turns as fit.

    Reserves max_new_tokens for the answer, but at most a quarter of the context, because most answers are much shorter
    than the limit. The system message is never dropped.

    Returns:
        Token ids, and the number of turns (question and answer) dropped from the beginning.

    Raises:
        UserError: If the last message is too long, or the conversation is malformed.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    limit = context - min(max_new_tokens, context // 4)

    def render(start: int) -> list[int]:
        return render_for_completion(tokenizer, {"messages": [*system, *turns[start:]]})

    start = max(len(turns) - 1, 0)
    prompt = render(start)
    if len(prompt) > context:
        what = "the message with the system prompt" if system else "the message"
        raise UserError(f"{what} has {len(prompt)} tokens, but the model's context is {context}; shorten it")
    while start >= 2 and len(longer := render(start - 2)) <= limit:
        start, prompt = start - 2, longer
    return prompt, start // 2


class EngineChat:
    """A `ChatModel` in this process. A context manager, whose exit ends all answers and the thread.

    The thread isolates the engine from Ctrl-C and slow readers, which only access a queue. The engine is afterwards
    used only by the thread.
    """

    def __init__(self, engine: Engine, max_queue: int = 64) -> None:
        self._engine = engine
        self._scheduler = Scheduler(engine, max_queue)
        self._names = {token_id: name for name, token_id in engine.tokenizer.special_ids.items()}
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._outboxes: dict[Hashable, _Outbox] = {}
        self._keys = itertools.count()
        self._lock = threading.Lock()  # prevents orders after the end, which would never be answered
        self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> "EngineChat":
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.put(None)
        self._thread.join()

    def answer(self, messages: Sequence[Message], settings: SamplingParams, top_logprobs: int = 0) -> Answer:
        """Start an answer; see `ChatModel`."""
        context = self._engine.model.config.sequence_len
        prompt_ids, num_dropped = fit_chat_prompt(self._engine.tokenizer, messages, context, settings.max_new_tokens)
        scores = {"logprobs": top_logprobs > 0, "top_logprobs": top_logprobs}
        request = Request(prompt_ids=prompt_ids, **scores, **vars(settings))
        self._engine.check(request)
        key, outbox = next(self._keys), _Outbox()

        def stop() -> None:
            self._orders.put(lambda: self._cancel(key))
            outbox.put(None)

        answer = Answer(num_dropped_turns=num_dropped, stop=stop)
        answer.pieces = self._pieces(answer, outbox, time.perf_counter())
        with self._lock:
            if self._has_ended:
                raise UserError("the engine has stopped; restart the program")
            self._orders.put(lambda: self._submit(key, request, outbox))
        return answer

    def _pieces(self, answer: Answer, outbox: _Outbox, started_s: float) -> Generator[Piece, None, None]:
        while (item := outbox.get()) is not None:
            if isinstance(item, Exception):
                raise item
            time_s, emitted = item
            answer.elapsed_s = time_s - started_s
            answer.num_tokens = (answer.num_tokens or 0) + (emitted.token_id not in self._engine.end_ids)
            answer.finish_reason = emitted.finish_reason
            if emitted.logprob is not None:
                top = [(self._text(token_id), logprob) for token_id, logprob in emitted.top]
                answer.scores.append(TokenScore(self._text(emitted.token_id), emitted.logprob, top))
            yield from emitted.pieces
            if emitted.finish_reason is not None:
                return

    def _text(self, token_id: int) -> str:
        return self._names.get(token_id) or self._engine.tokenizer.bytes_of(token_id).decode("utf-8", "replace")

    def _run(self) -> None:
        try:
            while True:
                while not (self._orders.empty() and self._scheduler.has_work):
                    if (order := self._orders.get()) is None:
                        return
                    order()
                self._step()
        finally:
            with self._lock:
                self._has_ended = True
                while not self._orders.empty():
                    if (order := self._orders.get()) is not None:
                        order()
            self._fail_all(None)

    def _step(self) -> None:
        try:
            for event in self._scheduler.step():
                self._deliver(event.key, event.error or event.emitted)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next request may fare better
            traceback.print_exc()
            self._fail_all(UserError(f"the engine failed ({type(error).__name__}: {error}); ask again"))

    def _fail_all(self, item: UserError | None) -> None:
        for key in list(self._outboxes):
            self._scheduler.cancel(key)
            self._deliver(key, item)
        self._engine.reset()

    def _submit(self, key: int, request: Request, outbox: _Outbox) -> None:
        self._outboxes[key] = outbox
        try:
            self._scheduler.submit(key, request)
        except QueueFull as full:
            self._deliver(key, UserError(f"too many requests are queued: {full}"))

    def _cancel(self, key: int) -> None:
        self._outboxes.pop(key, None)
        self._scheduler.cancel(key)

    def _deliver(self, key: Hashable, item: Emitted | Exception | None) -> None:
        outbox = self._outboxes.get(key)
        if outbox is None:
            return
        if isinstance(item, Emitted) and item.finish_reason == FAILED:
            item = UserError(item.error)
        outbox.put((time.perf_counter(), item) if isinstance(item, Emitted) else item)
        if not isinstance(item, Emitted) or item.finish_reason is not None:
            del self._outboxes[key]
