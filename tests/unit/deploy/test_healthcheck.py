"""The health check of the containers tells a working process from one that only seems to be there."""

import base64
import socket
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import fakeredis
import psutil
import pytest
from rq import Queue, SimpleWorker
from rq.cron import CronScheduler
from rq.cron_scheduler_registry import get_registry_key

import backend.state
from backend.dispatch import FAST, SLOW, TRAIN
from backend.settings import Settings
from deploy import healthcheck
from deploy.healthcheck import Unhealthy


@pytest.fixture
def web():
    """A web process that keeps the headers it saw and answers `status`."""
    seen = SimpleNamespace(status=200, authorization=None)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.path, seen.authorization = self.path, self.headers.get("Authorization")
            self.send_response(seen.status)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    seen.port = server.server_port
    yield seen
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def redis(monkeypatch):
    connection = fakeredis.FakeStrictRedis()
    monkeypatch.setattr(backend.state, "connect", lambda url, timeout_s: connection)
    return connection


def worker(connection, queue, host):
    found = SimpleWorker([Queue(queue, connection=connection)], connection=connection, name=f"{host}-{queue}")
    found.hostname = host
    found.register_birth()
    return found


def born(connection, worker, when):
    connection.hset(worker.key, "birth", when.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


def test_a_web_process_that_answers_is_healthy(web):
    healthcheck.check_web(Settings(port=web.port))
    assert web.path == "/health"
    assert web.authorization is None


def test_credentials_are_sent_where_they_are_set(web):
    healthcheck.check_web(Settings(port=web.port, basic_auth_user="u", basic_auth_pass="pä"))
    assert base64.b64decode(web.authorization.removeprefix("Basic ")).decode() == "u:pä"


def test_a_proxy_of_the_environment_is_not_asked(web, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    healthcheck.check_web(Settings(port=web.port))


@pytest.mark.parametrize("status", [401, 500, 503])
def test_a_web_process_that_refuses_is_not_healthy(web, status):
    web.status = status
    with pytest.raises(Unhealthy, match=str(status)):
        healthcheck.check_web(Settings(port=web.port))


def test_nobody_on_the_port_is_not_healthy():
    with socket.socket() as held:  # bound, so that nobody else gets it, but not listening
        held.bind(("127.0.0.1", 0))
        with pytest.raises(Unhealthy, match="refused"):
            healthcheck.check_web(Settings(port=held.getsockname()[1]))


@pytest.mark.parametrize(
    ("role", "queue", "other"), [("fast", FAST, SLOW), ("slow", SLOW, FAST), ("train", TRAIN, SLOW)]
)
def test_a_worker_is_healthy_while_it_is_registered_for_its_queue_from_this_host(redis, role, queue, other):
    with pytest.raises(Unhealthy, match="no running worker"):
        healthcheck.check_worker(Settings(), role, "me")
    worker(redis, other, "me")
    worker(redis, queue, "somebody-else")
    with pytest.raises(Unhealthy, match="no running worker of me"):
        healthcheck.check_worker(Settings(), role, "me")
    mine = worker(redis, queue, "me")
    healthcheck.check_worker(Settings(), role, "me")
    mine.register_death()
    with pytest.raises(Unhealthy, match="no running worker of me"):
        healthcheck.check_worker(Settings(), role, "me")


def test_a_worker_that_died_is_not_taken_for_its_successor(redis):
    found = worker(redis, FAST, "me")
    started = datetime.fromtimestamp(psutil.Process(found.pid).create_time(), UTC)
    born(redis, found, started - timedelta(seconds=30))
    with pytest.raises(Unhealthy, match="no running worker of me"):
        healthcheck.check_worker(Settings(), "fast", "me")
    born(redis, found, started + timedelta(seconds=1))
    healthcheck.check_worker(Settings(), "fast", "me")
    redis.hset(found.key, "pid", 2**22 + 1)  # more than a process id can be
    with pytest.raises(Unhealthy, match="no running worker of me"):
        healthcheck.check_worker(Settings(), "fast", "me")


def test_a_clock_is_healthy_while_it_beats(redis):
    clock = CronScheduler(connection=redis)
    clock.hostname = "me"
    with pytest.raises(Unhealthy, match="no clock"):
        healthcheck.check_tick(Settings(), "me")
    clock.register_birth()
    healthcheck.check_tick(Settings(), "me")
    with pytest.raises(Unhealthy, match="no clock"):
        healthcheck.check_tick(Settings(), "somebody-else")


def test_a_clock_that_is_silent_for_several_ticks_is_not_healthy(redis):
    clock = CronScheduler(connection=redis)
    clock.hostname = "me"
    clock.register_birth()
    redis.zincrby(get_registry_key(), -200.0, clock.name)
    with pytest.raises(Unhealthy, match="silent for 20"):
        healthcheck.check_tick(Settings(), "me")
    healthcheck.check_tick(Settings(tick_s=60), "me")  # four ticks of a minute are more than 200 s


@pytest.mark.parametrize("role", ["fast", "slow", "train", "tick"])
def test_without_redis_nothing_is_healthy(monkeypatch, capsys, role):
    server = fakeredis.FakeServer()
    server.connected = False
    monkeypatch.setattr(backend.state, "connect", lambda url, timeout_s: fakeredis.FakeStrictRedis(server=server))
    assert healthcheck.main([role]) == 1
    assert "Redis does not answer" in capsys.readouterr().err


def test_a_wrong_setting_is_told_and_not_healthy(monkeypatch, capsys):
    monkeypatch.setenv("PORT", "many")
    assert healthcheck.main(["web"]) == 1
    assert "PORT" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["database"], ["web", "fast"]])
def test_other_words_are_answered_with_the_usage(capsys, argv):
    assert healthcheck.main(argv) == 2
    assert "web|fast|slow|train|tick" in capsys.readouterr().err
