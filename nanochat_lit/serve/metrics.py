"""Counters, gauges and histograms in Prometheus' text format 0.0.4; not thread-safe."""

from collections.abc import Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the latency buckets, seconds."""

TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Upper bounds of the inter-token latency buckets, seconds."""


class Counter:
    """Monotonic sums, one per combination of labels."""

    kind = "counter"

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self.name, self.text, self.labels = name, text, tuple(labels)
        self.values: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def add(self, *labels: str, by: float = 1) -> None:
        """Increment the sum of these labels."""
        self.values[labels] = self.values.get(labels, 0) + by

    def lines(self) -> list[str]:
        """Return the sample lines."""
        return [
            f"{self.name}{_braces(zip(self.labels, own, strict=True))} {value:{'g' if value < 1e6 else '.0f'}}"
            for own, value in sorted(self.values.items())
        ]


class Gauge(Counter):
    """A value that can be set."""

    kind = "gauge"

    def set(self, value: float) -> None:
        """Replace the value."""
        self.values[()] = value


class Histogram:
    """Cumulative counts of values by upper bound."""

    kind = "histogram"

    def __init__(self, name: str, text: str, bounds: Sequence[float] = SECONDS) -> None:
        self.name, self.text, self.bounds = name, text, tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Record a value `count` times."""
        place = next((i for i, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[place] += count
        self.sum += value * count

    def lines(self) -> list[str]:
        """Return the sample lines, cumulative as Prometheus requires."""
        total, lines = 0, []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            lines.append(f'{self.name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{self.name}_sum {self.sum:.6f}", f"{self.name}_count {total}"]


class ServerMetrics:
    """Metrics of the server."""

    def __init__(self) -> None:
        self.requests = Counter("nanochat_requests_total", "HTTP requests by path and status.", ("path", "status"))
        self.prompt_tokens = Counter("nanochat_prompt_tokens_total", "Prompt tokens of accepted requests.")
        self.completion_tokens = Counter("nanochat_completion_tokens_total", "Generated tokens.")
        self.disconnects = Counter(
            "nanochat_disconnects_total", "Clients that disconnected before their answer was complete."
        )
        self.restarts = Counter("nanochat_worker_restarts_total", "Restarts of workers that died.")
        self.queued = Gauge("nanochat_queue_requests", "Requests waiting for a slot.")
        self.active = Gauge("nanochat_slots_active", "Slots in use.")
        self.slots = Gauge("nanochat_slots", "Slots of all ready workers.")
        self.workers = Gauge("nanochat_workers_ready", "Ready workers.")
        self.in_flight = Gauge("nanochat_requests_in_flight", "Requests in progress.")
        self.first_token = Histogram("nanochat_time_to_first_token_seconds", "Time from request to first token.")
        self.between_tokens = Histogram(
            "nanochat_inter_token_seconds", "Time between two tokens of an answer.", TOKEN_SECONDS
        )
        self.request = Histogram("nanochat_request_seconds", "Time from request to end of answer.")

    def render(self) -> str:
        """Return all metrics in text format."""
        lines = []
        for metric in vars(self).values():
            lines += [f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
        return "\n".join(lines) + "\n"


def _braces(labels: "zip[tuple[str, str]]") -> str:
    text = ",".join(f'{name}="{_escape(value)}"' for name, value in labels)
    return f"{{{text}}}" if text else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
