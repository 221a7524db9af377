"""Metrics of the server in the Prometheus text format."""

from collections.abc import Collection

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
    """The metrics of one server; each server has its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by endpoint and status.", "endpoint", "status")
        self.rejected = self._counter("rejected", "Rejected requests by reason.", "reason")
        self.rows = self._counter("rows_scored", "Scored responses.")
        self.tokens = self._counter("tokens_scored", "Computed tokens; a prefix shared in a batch counts once.")
        self.truncated = self._counter("rows_truncated", "Responses whose prompt was cut to fit the model.")
        self.failed_batches = self._counter("failed_batches", "Batches on which the model raised an error.")
        self.latency = self._histogram("request_seconds", "Time from request to answer.", _SECONDS, "endpoint")
        self.batch_seconds = self._histogram("batch_seconds", "Model time of a batch.", _SECONDS)
        self.batch_rows = self._histogram("batch_rows", "Responses in a batch.", _POWERS)
        self.batch_tokens = self._histogram("batch_tokens", "Tokens in a batch.", _POWERS)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"hf_reward_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"hf_reward_{name}", text, labels, buckets=buckets, registry=self.registry)

    def watch(self, batcher: Batcher) -> None:
        """Add gauges for the length of a queue.

        Args:
            batcher: The queue.
        """
        rows = Gauge("hf_reward_queue_rows", "Responses in the queue.", registry=self.registry)
        rows.set_function(lambda: batcher.waiting_rows)
        tokens = Gauge("hf_reward_queue_tokens", "Tokens in the queue.", registry=self.registry)
        tokens.set_function(lambda: batcher.waiting_tokens)

    def count_batch(self, report: BatchReport) -> None:
        """Count a model call.

        Args:
            report: The report of the batcher.
        """
        if report.failed:
            self.failed_batches.inc()
            return
        self.rows.inc(report.rows)
        self.tokens.inc(report.tokens)
        self.batch_rows.observe(report.rows)
        self.batch_tokens.observe(report.tokens)
        self.batch_seconds.observe(report.seconds)

    def count_requests(self, app: FastAPI, endpoints: Collection[str]) -> None:
        """Count every response of an application and of the middleware added so far.

        Args:
            app: The application.
            endpoints: Paths that get a label of their own.
        """

        def count(info: Info) -> None:
            # Unknown paths share a label, so that clients cannot create labels.
            endpoint = info.modified_handler if info.modified_handler in endpoints else "other"
            self.requests.labels(endpoint, info.modified_status).inc()
            self.latency.labels(endpoint).observe(info.modified_duration)
            self.count_refusal(int(info.modified_status))

        Instrumentator(should_group_status_codes=False, registry=self.registry).add(count).instrument(app)

    def count_refusal(self, status: int) -> None:
        """Count a response as rejected if its status says so.

        Args:
            status: HTTP status.
        """
        if status in _REASONS:
            self.rejected.labels(_REASONS[status]).inc()

    def text(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self.registry)
