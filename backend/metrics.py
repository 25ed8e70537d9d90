"""Every metric of the web process, in one place. Names start with `askfirst_` and carry their unit.

    askfirst_http_requests_total{route,method,status}            requests answered
    askfirst_http_request_duration_seconds{route,status}         histogram of the time to answer
    askfirst_webhook_events_total{action}                        events of Label Studio
    askfirst_state_readable                                      1, or 0 while the shared state cannot be read
    askfirst_<name>                                              gauges that the service reads at scrape time

Each app has a registry of its own. With PROMETHEUS_MULTIPROC_DIR set (gunicorn_conf.py does so for several
workers) a scrape adds up what all worker processes counted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "askfirst_"
# Everything Label Studio 1.23 sends. Other words share one series, so that a stranger cannot fill the memory.
KNOWN_ACTIONS = frozenset({
    "ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED",
    "TASKS_CREATED", "TASKS_DELETED", "PROJECT_CREATED", "PROJECT_UPDATED", "PROJECT_DELETED",
    "LABEL_LINK_CREATED", "LABEL_LINK_UPDATED", "LABEL_LINK_DELETED", "START_TRAINING",
})  # fmt: skip
# Label Studio's limits sit at 1 s (health, webhook), 3 s (setup) and 100 s (predict).
_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 10.0, 30.0, 100.0)
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_]")

Gauges = Callable[[], Mapping[str, float]]


class Metrics:
    """Counters of one app."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "askfirst_http_requests",
            "Requests answered",
            ["route", "method", "status"],
            registry=self._registry,
        )
        self._duration = Histogram(
            "askfirst_http_request_duration_seconds", "Time to answer a request", ["route", "status"],
            buckets=_BUCKETS_S, registry=self._registry,
        )  # fmt: skip
        self._events = Counter(
            "askfirst_webhook_events",
            "Events that came from Label Studio",
            ["action"],
            registry=self._registry,
        )

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request; `route` is the rule, not the path: the number of series stays small."""
        self._requests.labels(route, method, str(status)).inc()
        self._duration.labels(route, str(status)).observe(seconds)

    def event(self, action: str) -> None:
        """Count one event of Label Studio."""
        self._events.labels(action if action in KNOWN_ACTIONS else "other").inc()

    def render(self, gauges: Gauges) -> bytes:
        """Prometheus text, version 0.0.4, including what `gauges` returns now.

        A failing `gauges` costs the gauges, never the scrape: it is then that the counters matter.
        """
        registry = self._registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry) + generate_latest(_GaugeRegistry(gauges))


class _GaugeRegistry(Collector):
    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            values = {name: float(value) for name, value in self._gauges().items()}
        except Exception:  # a rim: whatever the state store throws, /ready names it and the scrape goes on
            values, readable = {}, 0.0
        else:
            readable = 1.0
        yield _gauge("state_readable", readable, "1 if the shared state could be read for this scrape")
        for name, value in sorted(values.items()):
            yield _gauge(name, value, name.replace("_", " "))


def _gauge(name: str, value: float, help_text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + _NOT_IN_A_NAME.sub("_", name), help_text, value=value)
