"""A worker's loop without processes, the shape of answers, and the metrics page."""

import asyncio
import json
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from nanochat_lit.engine.answer_text import Piece
from nanochat_lit.engine.sampling_params import Request, SamplingParams
from nanochat_lit.engine.scheduler import Scheduler
from nanochat_lit.serve.api import REPORT_EVERY_S, EngineWork, ServeSettings
from nanochat_lit.serve.chat_response import ChatWriter, usage
from nanochat_lit.serve.messages import Cancel, Close, Ready, Submit, Update, merged
from nanochat_lit.serve.metrics import Counter, Histogram, ServerMetrics
from nanochat_lit.serve.request_fields import ApiError
from nanochat_lit.serve.workers import ClientLeft, Reply, WorkerPool

END = 99


class Token(NamedTuple):
    slot: int
    token_id: int
    pieces: list[Piece]
    finish_reason: str | None
    logprob: float | None = None
    top: tuple[()] = ()
    prompt_scores: tuple[()] = ()


class Speaker:
    """Says token n with the text "n"; the prompt's first id is how many, then it ends."""

    num_slots = 2

    def __init__(self) -> None:
        self.rows: dict[int, list[int]] = {}

    @property
    def num_free(self) -> int:
        return self.num_slots - len(self.rows)

    def admit(self, request) -> int:
        if request.prompt_ids[0] < 0:
            raise RuntimeError("broken")
        slot = next(slot for slot in range(self.num_slots) if slot not in self.rows)
        self.rows[slot] = [0, request.prompt_ids[0]]
        return slot

    def release(self, slot) -> None:
        del self.rows[slot]

    def step(self) -> list[Token]:
        tokens = []
        for slot, row in list(self.rows.items()):
            row[0] += 1
            if row[0] > row[1]:
                del self.rows[slot]
                tokens.append(Token(slot, END, [], "stop"))
            else:
                tokens.append(Token(slot, row[0], [Piece("text", str(row[0]))], None))
        return tokens


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def submit(key, length, deadline_s=1e9) -> Submit:
    return Submit(key, Request(prompt_ids=[length]), "me", deadline_s)


def make(max_queue=2) -> tuple[EngineWork, Clock]:
    clock = Clock()
    return EngineWork(Scheduler(Speaker(), max_queue, clock), frozenset({END}), clock), clock


def test_first_and_last_tokens_are_sent_at_once_and_others_together():
    work, clock = make()
    assert work.take([submit(1, 5)])
    assert [update[1:] for update in work.step().updates] == [([("text", "1")], 1, None, None, (), ())]
    assert work.step() is None
    assert work.step() is None
    clock.now_s = REPORT_EVERY_S
    report = work.step()
    assert report.updates[0].parts == [("text", "234")]
    assert work.step() is None
    last = work.step()
    assert last.updates[0][1:] == ([("text", "5")], 1, "stop", None, (), ())  # the token that ends it is not counted
    assert (last.num_queued, last.num_active) == (0, 0)


def test_urgent_news_take_nobody_elses_along():
    work, clock = make()
    work.take([submit(1, 5), submit(2, 2)])
    assert [update.key for update in work.step().updates] == [1, 2]
    assert work.step() is None
    (update,) = work.step().updates  # the second has ended
    assert (update.key, update.parts, update.finish_reason) == (2, [("text", "2")], "stop")
    clock.now_s = REPORT_EVERY_S
    (update,) = work.step().updates
    assert (update.key, update.parts) == (1, [("text", "234")])


def test_cancelled_requests_are_silent_and_their_slots_reported():
    work, clock = make()
    work.take([submit(1, 50), submit(2, 50)])
    assert (work.step().num_active, work.step()) == (2, None)
    work.take([Cancel(1), Cancel(77)])
    clock.now_s = 1
    report = work.step()
    assert report.num_active == 1
    assert [update.key for update in report.updates] == [2]
    work.take([Cancel(2)])
    report = work.step()
    assert (report.num_active, report.updates) == (0, [])
    assert work.step() is None  # nothing new
    assert not work.take([Close()])


def test_errors_have_their_status_and_harm_nobody_else():
    work, clock = make(max_queue=1)
    work.take([submit(1, 50), submit(2, -1), submit(3, 50, deadline_s=3), submit(4, 1)])
    updates = {update.key: update for update in work.step().updates}
    assert updates[4].error[0] == 429
    assert updates[4].error[2] >= 1
    assert updates[2].error == (500, "the engine rejected the request (RuntimeError)", None)
    assert updates[1].error is updates[3].error is None
    clock.now_s = 3
    errors = {update.key: update.error for update in work.step().updates}
    assert errors[3][:1] == (504,)
    assert errors[1] is None


def test_a_whole_answer_and_its_stream_have_the_same_parts():
    parts = [("text", "So "), ("python", "1"), ("python", "+1"), ("python_output", "2"), ("text", "it is 2")]
    head = {"id": "x", "created": 1, "model": "m"}
    answer = Update(1, [], 0, None, None)
    for number, part in enumerate(parts, start=1):
        reason = "stop" if number == len(parts) else None
        answer = merged([answer, Update(1, [part], 9 * (number == 1), reason, None)])
    writer = ChatWriter(head, include_usage=True)
    whole = writer.whole([writer.choice(answer)], usage(4, answer.num_tokens))
    message = whole["choices"][0]["message"]
    assert message["content"] == "So it is 2"
    joined = [("text", "So "), ("python", "1+1"), ("python_output", "2"), ("text", "it is 2")]
    assert [(part["type"], part["text"]) for part in message["nanochat"]["parts"]] == joined
    assert whole["usage"] == {"prompt_tokens": 4, "completion_tokens": 9, "total_tokens": 13}
    text = writer.start() + writer.events(Update(1, parts, 9, "stop", None)) + writer.end(usage(4, 9))
    *events, done = [line.removeprefix("data: ") for line in text.split("\n\n")[:-1]]
    assert done == "[DONE]"
    deltas = [choice["delta"] for event in events for choice in json.loads(event)["choices"]]
    assert [d["nanochat"] for d in deltas if "nanochat" in d] == [
        {"type": "python", "text": "1+1"},
        {"type": "python_output", "text": "2"},
    ]
    assert "".join(delta.get("content", "") for delta in deltas) == "So it is 2"
    plain = Update(1, [("text", "hi")], 1, "stop", None)
    assert "nanochat" not in writer.choice(plain)["message"]


def test_histograms_are_cumulative():
    histogram = Histogram("h", "Help.", (0.1, 1.0))
    for value in (0.05, 0.1, 0.5):
        histogram.observe(value)
    histogram.observe(7, 2)
    assert histogram.lines() == [
        'h_bucket{le="0.1"} 2',
        'h_bucket{le="1.0"} 3',
        'h_bucket{le="+Inf"} 5',
        "h_sum 14.650000",
        "h_count 5",
    ]


def test_labels_are_escaped_and_large_counts_exact():
    counter = Counter("c", "Help.", ("path",))
    counter.add('a"\\\n')
    counter.add("big", by=123_456_789)
    assert counter.lines() == ['c{path="a\\"\\\\\\n"} 1', 'c{path="big"} 123456789']


def test_every_metric_is_described():
    page = ServerMetrics().render().splitlines()
    names = {line.split()[2] for line in page if line.startswith("# TYPE")}
    assert len(names) == len(vars(ServerMetrics()))
    for line in page:
        assert line.startswith("#") or any(line.startswith(name) for name in names)


@pytest.mark.parametrize("is_over", [False, True])
def test_a_reader_that_stops_cancels_what_is_not_over(is_over):
    sent = []
    worker = SimpleNamespace(ready=Ready(1, 64, SamplingParams(), "kernel"), is_able=True, replies={}, send=sent.append)
    metrics = ServerMetrics()
    pool = WorkerPool(ServeSettings(model="m", name="m"), "", [None], metrics, print, print)
    pool._workers = [worker]

    async def read() -> None:
        reply = pool.ask([Request(prompt_ids=[1])], "me", 0.0)
        first = asyncio.ensure_future(reply.next())
        await asyncio.sleep(0)
        (key,) = worker.replies
        reply.put(Update(key, [], 1, "stop" if is_over else None, None))
        assert [(index, update.num_tokens) for index, update in await first] == [(0, 1)]
        reply.close()
        reply.close()
        assert worker.replies == {}

    asyncio.run(read())
    assert [type(message) for message in sent] == ([Submit] if is_over else [Submit, Cancel])
    assert is_over or sent[1].key == sent[0].key
    assert metrics.in_flight.values[()] == 0
    assert metrics.disconnects.values[()] == (0 if is_over else 1)


def test_news_for_a_busy_reader_become_one():
    async def read() -> None:
        reply = Reply(ServerMetrics(), 0.0, [1], lambda unfinished: None)
        reply.put(Update(1, [("text", "a")], 1, None, None))
        reply.put(Update(1, [("text", "b")], 2, "stop", None))
        reply.put(Update(1, [], 0, None, (503, "the worker died", 5)))  # after the end, which stands
        assert await reply.next() == [(0, Update(1, [("text", "ab")], 3, "stop", None))]
        gone = Reply(ServerMetrics(), 0.0, [1], lambda unfinished: None)
        waiting = asyncio.ensure_future(gone.next())
        await asyncio.sleep(0)
        gone.leave()
        with pytest.raises(ClientLeft):
            await waiting
        with pytest.raises(ClientLeft):
            await gone.next()

    asyncio.run(read())


def test_answers_of_one_request_end_one_by_one():
    """The rest is cancelled where one fails, which is not a disconnect."""
    cancelled = []

    async def read(last: Update) -> ServerMetrics:
        metrics = ServerMetrics()
        reply = Reply(metrics, 0.0, [7, 8, 9], cancelled.append)
        reply.put(Update(9, [("text", "c")], 1, None, None))
        reply.put(Update(7, [("text", "a")], 1, "stop", None))
        assert [(index, update.key) for index, update in await reply.next()] == [(2, 9), (0, 7)]
        reply.put(Update(9, [], 0, "length", None))
        reply.put(last)
        if last.error:
            with pytest.raises(ApiError):
                await reply.next()
        else:
            assert not reply.is_over
            assert [index for index, _ in await reply.next()] == [2, 1]
            assert reply.is_over
        reply.close()
        return metrics

    assert asyncio.run(read(Update(8, [], 0, "stop", None))).disconnects.values[()] == 0
    assert cancelled == [set()]
    assert asyncio.run(read(Update(8, [], 0, None, (504, "too late", None)))).disconnects.values[()] == 0


def test_events_are_json_whatever_the_text_and_the_name_are():
    for name in ("tiny", "\0text\0", 'a"b'):
        writer = ChatWriter({"id": "1", "created": 2, "model": name}, include_usage=True)
        for text in (
            "plain",
            "\0text\0",
            '"quoted" \n\u2028 \ud83d\ude42'.encode("utf-16", "surrogatepass").decode("utf-16"),
        ):
            (line,) = writer.events(Update(1, [("text", text)], 1, None, None)).strip().split("\n")
            event = json.loads(line.removeprefix("data: "))
            assert event["choices"][0]["delta"] == {"content": text}
            assert (event["model"], event["usage"], event["object"]) == (name, None, "chat.completion.chunk")
