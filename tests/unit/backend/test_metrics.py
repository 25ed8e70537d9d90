"""What Prometheus reads, parsed by Prometheus' own parser."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backend.app import create_app
from backend.errors import StoreUnavailable
from backend.fake_service import FakeService
from backend.metrics import Metrics
from backend.settings import Settings

ROOT = Path(__file__).resolve().parents[3]


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Value by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float | None:
    return samples(text).get((name, frozenset(labels.items())))


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service):
    return create_app(Settings.from_env({}), service).test_client()


def test_requests_are_counted_and_timed_by_route_and_status_not_by_path(client, service):
    service.thumbnails = {(1, 1): b"a", (1, 2): b"b"}
    for task in (1, 2, 3):
        client.get(f"/thumb/1/{task}")
    text = client.get("/metrics").text
    route = "/thumb/<project_id>/<task_id>"
    assert value(text, "askfirst_http_requests_total", route=route, method="GET", status="200") == 2
    assert value(text, "askfirst_http_requests_total", route=route, method="GET", status="404") == 1
    assert value(text, "askfirst_http_request_duration_seconds_count", route=route, status="200") == 2
    assert value(text, "askfirst_http_request_duration_seconds_bucket", route=route, status="200", le="+Inf") == 2


def test_strange_addresses_methods_and_actions_share_one_series_each(client):
    for i in range(20):
        client.get(f"/nowhere/{i}")
        client.open("/nowhere", method=f"INVENTED{i}")
        client.post("/webhook", json={"action": f"INVENTED_{i}", "project": {"id": 1}})
    text = client.get("/metrics").text
    assert "INVENTED" not in text
    assert value(text, "askfirst_http_requests_total", route="unmatched", method="GET", status="404") == 20
    assert value(text, "askfirst_http_requests_total", route="unmatched", method="OTHER", status="404") == 20
    assert value(text, "askfirst_webhook_events_total", action="other") == 20


def test_events_are_counted_by_action_even_when_they_could_not_be_recorded(client, service):
    service.error = StoreUnavailable("down")
    client.post("/webhook", json={"action": "TASKS_CREATED", "project": {"id": 1}})
    assert value(client.get("/metrics").text, "askfirst_webhook_events_total", action="TASKS_CREATED") == 1


def test_gauges_of_the_service_are_read_at_scrape_time_under_our_prefix(client, service):
    service.gauges = {"pool_tasks": 12.0, "odd name-1": 2.0}
    text = client.get("/metrics").text
    assert value(text, "askfirst_pool_tasks") == 12
    assert value(text, "askfirst_odd_name_1") == 2
    assert value(text, "askfirst_state_readable") == 1
    service.gauges = {"pool_tasks": 13.0}
    assert value(client.get("/metrics").text, "askfirst_pool_tasks") == 13


def test_a_scrape_while_redis_is_down_keeps_the_counters_and_says_so(client, service):
    client.get("/health")
    service.error = StoreUnavailable("down")
    response = client.get("/metrics")
    assert response.status_code == 200
    assert value(response.text, "askfirst_state_readable") == 0
    assert value(response.text, "askfirst_http_requests_total", route="/health", method="GET", status="200") == 1


def test_content_type_is_the_one_prometheus_asks_for(client):
    assert client.get("/metrics").headers["Content-Type"].startswith("text/plain; version=")


def test_refused_requests_are_counted_too():
    app = create_app(Settings.from_env({"BASIC_AUTH_USER": "a", "BASIC_AUTH_PASS": "b"}), FakeService())
    app.test_client().get("/health")
    text = app.test_client().get("/metrics", auth=("a", "b")).text
    assert value(text, "askfirst_http_requests_total", route="/health", method="GET", status="401") == 1


def test_each_registry_is_its_own():
    first, second = Metrics(), Metrics()
    first.event("TASKS_CREATED")
    assert value(first.render(dict).decode(), "askfirst_webhook_events_total", action="TASKS_CREATED") == 1
    assert value(second.render(dict).decode(), "askfirst_webhook_events_total", action="TASKS_CREATED") is None


def test_worker_processes_are_added_up_when_a_shared_folder_is_set(tmp_path):
    """The client library chooses its storage while being imported, hence processes of their own."""
    program = textwrap.dedent("""
        import sys
        from backend.metrics import Metrics
        metrics = Metrics()
        for _ in range(int(sys.argv[1])):
            metrics.event("TASKS_CREATED")
            metrics.request("/webhook", "POST", 201, 0.001)
        sys.stdout.write(metrics.render(lambda: {"pool_tasks": 5.0}).decode())
    """)
    env = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for count in ("2", "3"):
        done = subprocess.run(
            [sys.executable, "-c", program, count],
            env=env,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    assert value(done.stdout, "askfirst_webhook_events_total", action="TASKS_CREATED") == 5
    assert value(done.stdout, "askfirst_http_request_duration_seconds_count", route="/webhook", status="201") == 5
    assert value(done.stdout, "askfirst_pool_tasks") == 5
