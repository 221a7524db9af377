"""What a server counts, in the text format that Prometheus reads."""

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_fastapi_instrumentator import Instrumentator
from prometheus_fastapi_instrumentator.metrics import Info

from hf_reward.scoring.serving.batcher import Batcher, BatchReport

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_POWERS = tuple(4**power for power in range(11))
_REASONS = {
    401: "unauthorized",
    408: "request_timeout",
    413: "too_large",
    422: "invalid_or_unscorable",
    429: "queue_full",
    431: "headers_too_large",
}


class Metrics:
    """The counters of one server; several servers in a process do not share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by endpoint and status.", "endpoint", "status")
        self.rejected = self._counter("rejected", "Requests that were refused, by reason.", "reason")
        self.rows = self._counter("rows_scored", "Responses that the model computed.")
        self.tokens = self._counter("tokens_scored", "Tokens of these; beginnings that rows share count once.")
        self.truncated = self._counter("rows_truncated", "Responses whose prompt was cut to fit the model.")
        self.failed_batches = self._counter("failed_batches", "Batches at which the model raised an error.")
        self.latency = self._histogram("request_seconds", "Time from request to answer.", _SECONDS, "endpoint")
        self.batch_seconds = self._histogram("batch_seconds", "Time that the model took for a batch.", _SECONDS)
        self.batch_rows = self._histogram("batch_rows", "Responses in a batch.", _POWERS)
        self.batch_tokens = self._histogram("batch_tokens", "Tokens in a batch.", _POWERS)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"hf_reward_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"hf_reward_{name}", text, labels, buckets=buckets, registry=self.registry)

    def watch(self, batcher: Batcher) -> None:
        """Show how much waits in a queue.

        Args:
            batcher: The queue.
        """
        rows = Gauge("hf_reward_queue_rows", "Responses that wait for the model.", registry=self.registry)
        rows.set_function(lambda: batcher.waiting_rows)
        tokens = Gauge("hf_reward_queue_tokens", "Tokens that wait for the model.", registry=self.registry)
        tokens.set_function(lambda: batcher.waiting_tokens)

    def count_batch(self, report: BatchReport) -> None:
        """Count a call of the model.

        Args:
            report: What it was.
        """
        if report.failed:
            self.failed_batches.inc()
            return
        self.rows.inc(report.rows)
        self.tokens.inc(report.tokens)
        self.batch_rows.observe(report.rows)
        self.batch_tokens.observe(report.tokens)
        self.batch_seconds.observe(report.seconds)

    def count_requests(self, app: FastAPI, endpoints: frozenset[str]) -> None:
        """Count every answer of an application, those of the middleware that it has so far included.

        Args:
            app: The application.
            endpoints: Paths with labels of their own.
        """

        def count(info: Info) -> None:
            # Paths that are not served share a label: clients must not be able to make new ones.
            endpoint = info.modified_handler if info.modified_handler in endpoints else "other"
            self.requests.labels(endpoint, info.modified_status).inc()
            self.latency.labels(endpoint).observe(info.modified_duration)
            self.count_refusal(int(info.modified_status))

        Instrumentator(should_group_status_codes=False, registry=self.registry).add(count).instrument(app)

    def count_refusal(self, status: int) -> None:
        """Count what was refused; other statuses are none.

        Args:
            status: HTTP status.
        """
        if status in _REASONS:
            self.rejected.labels(_REASONS[status]).inc()

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)
