"""Metrics of the server in the Prometheus text format."""

import os
from collections.abc import Collection

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
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


MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of prometheus_client: the folder in which processes share their metrics."""


class Metrics:
    """The metrics of one server; each server has its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by endpoint and status.", "endpoint", "status")
        self.rejected = self._counter("rejected", "Rejected requests by reason.", "reason")
        self.latency = self._histogram("request_seconds", "Time from request to answer.", _SECONDS, "endpoint")
        self.rows = self._counter("rows_scored", "Scored responses.", "model")
        tokens = "Computed tokens; a prefix shared in a batch counts once."
        self.tokens = self._counter("tokens_scored", tokens, "model")
        self.truncated = self._counter("rows_truncated", "Responses whose prompt was cut to fit the model.", "model")
        self.failed_batches = self._counter("failed_batches", "Batches on which the model raised an error.", "model")
        self.reloads = self._counter("reloads", "Reloads after SIGHUP by result: ok or failed.", "model", "result")
        self.batch_seconds = self._histogram("batch_seconds", "Model time of a batch.", _SECONDS, "model")
        self.batch_rows = self._histogram("batch_rows", "Responses in a batch.", _POWERS, "model")
        self.batch_tokens = self._histogram("batch_tokens", "Tokens in a batch.", _POWERS, "model")
        self.queue_rows = self._gauge("queue_rows", "Responses in the queue.", "model")
        self.queue_tokens = self._gauge("queue_tokens", "Tokens in the queue.", "model")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"hf_reward_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        # Several worker processes have a queue each.
        return Gauge(f"hf_reward_{name}", text, labels, registry=self.registry, multiprocess_mode="livesum")

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"hf_reward_{name}", text, labels, buckets=buckets, registry=self.registry)

    def of_model(self, name: str) -> "ModelMetrics":
        """Return the metrics of one model."""
        return ModelMetrics(self, name)

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
        """Return all metrics in the Prometheus text format, summed over the worker processes if there are several."""
        if MULTIPROCESS_FOLDER not in os.environ:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)


class ModelMetrics:
    """The metrics of one model, with its name as label."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics, self._name = metrics, name
        # Counters exist from the start, so that a rate is 0 and not missing.
        self.truncated = metrics.truncated.labels(name)
        self._rows, self._tokens = metrics.rows.labels(name), metrics.tokens.labels(name)
        self._failed = metrics.failed_batches.labels(name)
        self._batch_rows, self._batch_tokens = metrics.batch_rows.labels(name), metrics.batch_tokens.labels(name)
        self._batch_seconds = metrics.batch_seconds.labels(name)
        for result in ("ok", "failed"):
            metrics.reloads.labels(name, result)

    def watch(self, batcher: Batcher) -> None:
        """Report the length of a queue from now on.

        Args:
            batcher: The queue.
        """
        batcher.on_queue = self._set_queue
        self._set_queue(batcher.waiting_rows, batcher.waiting_tokens)

    def _set_queue(self, rows: int, tokens: int) -> None:
        self._metrics.queue_rows.labels(self._name).set(rows)
        self._metrics.queue_tokens.labels(self._name).set(tokens)

    def count_batch(self, report: BatchReport) -> None:
        """Count a model call.

        Args:
            report: The report of the batcher.
        """
        if report.failed:
            self._failed.inc()
            return
        self._rows.inc(report.rows)
        self._tokens.inc(report.tokens)
        self._batch_rows.observe(report.rows)
        self._batch_tokens.observe(report.tokens)
        self._batch_seconds.observe(report.seconds)
