"""Counters, gauges and histograms in Prometheus' text format, version 0.0.4, for one thread."""

from collections.abc import Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the latency buckets."""

TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""The same for the time between two tokens."""


class Counter:
    """Sums that only grow, one per combination of labels."""

    kind = "counter"

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self.name, self.text, self.labels = name, text, tuple(labels)
        self.values: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def add(self, *labels: str, by: float = 1) -> None:
        """Count."""
        self.values[labels] = self.values.get(labels, 0) + by

    def lines(self) -> list[str]:
        """The samples."""
        return [
            f"{self.name}{_braces(zip(self.labels, own, strict=True))} {value:g}"
            if value < 1e6
            else f"{self.name}{_braces(zip(self.labels, own, strict=True))} {value:.0f}"
            for own, value in sorted(self.values.items())
        ]


class Gauge(Counter):
    """A value that is set."""

    kind = "gauge"

    def set(self, value: float) -> None:
        """Replace the value."""
        self.values[()] = value


class Histogram:
    """How often a value was at most each bound."""

    kind = "histogram"

    def __init__(self, name: str, text: str, bounds: Sequence[float] = SECONDS) -> None:
        self.name, self.text, self.bounds = name, text, tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Take in a value, `count` times."""
        place = next((i for i, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[place] += count
        self.sum += value * count

    def lines(self) -> list[str]:
        """The samples, cumulative as Prometheus wants them."""
        total, lines = 0, []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            lines.append(f'{self.name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{self.name}_sum {self.sum:.6f}", f"{self.name}_count {total}"]


class ServerMetrics:
    """What the server counts."""

    def __init__(self) -> None:
        self.requests = Counter("nanochat_requests_total", "HTTP requests by path and status.", ("path", "status"))
        self.prompt_tokens = Counter("nanochat_prompt_tokens_total", "Tokens of the prompts that were accepted.")
        self.completion_tokens = Counter("nanochat_completion_tokens_total", "Tokens that were generated.")
        self.disconnects = Counter("nanochat_disconnects_total", "Clients that left before their answer was whole.")
        self.restarts = Counter("nanochat_worker_restarts_total", "Workers that died and were started again.")
        self.queued = Gauge("nanochat_queue_requests", "Requests that wait for a slot.")
        self.active = Gauge("nanochat_slots_active", "Slots in use.")
        self.slots = Gauge("nanochat_slots", "Slots of all workers that are ready.")
        self.workers = Gauge("nanochat_workers_ready", "Workers that are ready.")
        self.in_flight = Gauge("nanochat_requests_in_flight", "Chat completions between their request and their end.")
        self.first_token = Histogram("nanochat_time_to_first_token_seconds", "From the request to its first token.")
        self.between_tokens = Histogram(
            "nanochat_inter_token_seconds", "Between two tokens of an answer.", TOKEN_SECONDS
        )
        self.request = Histogram("nanochat_request_seconds", "From a request to the end of its answer.")

    def render(self) -> str:
        """The page."""
        lines = []
        for metric in vars(self).values():
            lines += [f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
        return "\n".join(lines) + "\n"


def _braces(labels: "zip[tuple[str, str]]") -> str:
    text = ",".join(f'{name}="{_escape(value)}"' for name, value in labels)
    return f"{{{text}}}" if text else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
