"""The supervisor with real processes: all of them are tiny and end by themselves if a test fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import psutil
import pytest

from askfirst.errors import PortTaken, ProcessFailed
from askfirst.guard import MARK_VARIABLE, marked
from askfirst.processes import (
    Backoff,
    Command,
    Death,
    Supervisor,
    free_port,
    package_path,
    require_free_port,
    tail,
    unexplained,
)

SLEEP = "import time; time.sleep(60)"
LIMIT_S = 30.0


def python(name: str, code: str, tmp_path: Path, **options) -> Command:
    argv = (sys.executable, "-S", "-c", code)
    return Command(name, argv, dict(os.environ), tmp_path, tmp_path / f"{name}.log", **options)


def wait_for(condition, what="the condition"):
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until, f"{what} did not come true"
        threading.Event().wait(0.01)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# ---------------------------------------------------------------------- values
def test_the_first_restart_is_quick_and_later_ones_wait_twice_as_long_each_up_to_a_limit():
    backoff = Backoff(first_s=0.1, most_s=1.0)
    assert [backoff.delay_s(n) for n in (1, 2, 3, 4, 5, 500)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_kills_from_outside_and_what_follows_them_are_explained_other_deaths_are_not():
    def death(at: float, status: int) -> Death:
        return Death("worker", at, status, 5.0)

    crash_before, kill, follows, crash_late = death(90, 1), death(100, -9), death(101, 1), death(200, 1)
    assert unexplained([crash_before, kill, follows, crash_late]) == [crash_before, crash_late]


def test_a_death_tells_the_name_of_its_signal():
    assert str(Death("redis", 0.0, -9, 1.0)) == "redis was ended by SIGKILL"
    assert str(Death("redis", 0.0, 3, 1.0)) == "redis ended with status 3"


def test_package_path_puts_our_package_first_and_only_once():
    root = package_path()
    assert (Path(root) / "askfirst").is_dir()
    assert package_path(f"/elsewhere{os.pathsep}{root}") == f"{root}{os.pathsep}/elsewhere"


def test_tail_gives_the_last_lines_and_nothing_of_a_missing_file(tmp_path):
    (tmp_path / "log").write_text("\n".join(map(str, range(100))))
    assert tail(tmp_path / "log", lines=2) == "98\n99"
    assert tail(tmp_path / "nowhere") == ""


# ---------------------------------------------------------------------- ports
def test_a_taken_port_is_named_with_the_option_that_chooses_another():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"Port {port} is taken.*--port") as caught:
            require_free_port(port, "--port")
        assert caught.value.port == port


def test_a_port_that_another_address_listens_on_for_all_is_taken_too():
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        with pytest.raises(PortTaken):
            require_free_port(server.getsockname()[1], "--port")


def test_a_free_port_passes():
    require_free_port(free_port(), "--port")


# ---------------------------------------------------------------------- life of children
def test_a_child_that_is_killed_is_started_again_and_counted(tmp_path):
    deaths = []
    with Supervisor(on_death=deaths.append, backoff=Backoff(first_s=0.01)) as supervisor:
        supervisor.spawn(python("nap", SLEEP, tmp_path))
        supervisor.wait_ready("nap", lambda: True, LIMIT_S)
        first = supervisor.pid("nap")
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: supervisor.pid("nap") not in (None, first), "a restart")
        assert supervisor.restarts() == {"nap": 1}
        assert [d.returncode for d in deaths] == [-signal.SIGKILL]
        last = supervisor.pid("nap")
    assert gone(last)


def test_a_child_that_ends_before_it_is_ready_fails_with_the_end_of_its_log(tmp_path):
    with Supervisor() as supervisor:
        supervisor.spawn(python("bad", "import sys; print('the reason'); sys.exit(3)", tmp_path))
        with pytest.raises(ProcessFailed, match=r"(?s)bad ended with status 3.*bad\.log.*the reason"):
            supervisor.wait_ready("bad", lambda: False, LIMIT_S)


def test_a_child_that_does_not_become_ready_in_time_fails(tmp_path):
    with Supervisor() as supervisor:
        supervisor.spawn(python("slow", SLEEP, tmp_path))
        with pytest.raises(ProcessFailed, match="was not ready after 0 s"):
            supervisor.wait_ready("slow", lambda: False, 0.2)


def test_a_program_that_does_not_exist_fails_at_once(tmp_path):
    with Supervisor() as supervisor, pytest.raises(ProcessFailed, match="could not be started"):
        supervisor.spawn(Command("none", ("/nowhere/program",), {}, tmp_path, tmp_path / "none.log"))


def test_children_are_ended_in_reverse_order_of_their_start(tmp_path):
    order = tmp_path / "order"
    code = (
        "import signal, sys, time\n"
        f"def end(*_): open({str(order)!r}, 'a').write(sys.argv[1]); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); print('ready', flush=True); time.sleep(60)"
    )
    with Supervisor() as supervisor:
        for name in "abc":
            command = python(name, code, tmp_path)
            supervisor.spawn(Command(name, (*command.argv, name), command.env, tmp_path, command.log))
            supervisor.wait_ready(name, lambda name=name: "ready" in tail(tmp_path / f"{name}.log"), LIMIT_S)
    assert order.read_text() == "cba"


def test_a_child_that_ignores_the_polite_signal_is_killed(tmp_path):
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True); time.sleep(60)"
    )
    with Supervisor() as supervisor:
        supervisor.spawn(python("deaf", code, tmp_path, stop_within_s=0.1))
        supervisor.wait_ready("deaf", lambda: "deaf" in tail(tmp_path / "deaf.log"), LIMIT_S)
        pid = supervisor.pid("deaf")
    assert gone(pid)


def test_grandchildren_that_left_the_session_end_with_the_run(tmp_path):
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n    os.setsid(); print('grandchild', os.getpid(), flush=True)\n"
        "time.sleep(60)"
    )
    with Supervisor() as supervisor:
        supervisor.spawn(python("parent", code, tmp_path))
        supervisor.wait_ready("parent", lambda: "grandchild" in tail(tmp_path / "parent.log"), LIMIT_S)
        pid = int(tail(tmp_path / "parent.log").split()[1])
        assert not gone(pid)
    assert gone(pid)


def test_what_a_killed_child_leaves_behind_is_gone_before_it_is_started_again(tmp_path):
    code = "import os, time\nif os.fork() == 0:\n    print('orphan', os.getpid(), flush=True)\ntime.sleep(60)"
    with Supervisor(backoff=Backoff(first_s=60.0)) as supervisor:
        supervisor.spawn(python("parent", code, tmp_path))
        supervisor.wait_ready("parent", lambda: "orphan" in tail(tmp_path / "parent.log"), LIMIT_S)
        orphan = int(tail(tmp_path / "parent.log").split()[1])
        os.kill(supervisor.pid("parent"), signal.SIGKILL)
        wait_for(lambda: gone(orphan), "the end of the orphan")


def test_nothing_outlives_a_supervisor_that_is_killed(tmp_path):
    code = f"""
import os, sys, time
sys.path.insert(0, {package_path()!r})
from pathlib import Path
from askfirst.processes import Command, Supervisor
here = Path({str(tmp_path)!r})
with Supervisor() as supervisor:
    supervisor.spawn(Command("nap", (sys.executable, "-S", "-c", {SLEEP!r}), dict(os.environ), here, here / "nap.log"))
    print(supervisor.pid("nap"), flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        pid = int(demo.stdout.readline())
        assert not gone(pid)
        demo.kill()
    wait_for(lambda: gone(pid), "the end of the child")


def test_the_guard_ends_only_what_carries_its_mark():
    mark = uuid.uuid4().hex
    ours = subprocess.Popen([sys.executable, "-S", "-c", SLEEP], env={**os.environ, MARK_VARIABLE: mark})
    other = subprocess.Popen([sys.executable, "-S", "-c", SLEEP], env={**os.environ, MARK_VARIABLE: mark + "x"})
    try:
        wait_for(lambda: [p.pid for p in marked(mark)] == [ours.pid])
        guard = [sys.executable, "-m", "askfirst.guard", mark]
        env = {**os.environ, "PYTHONPATH": package_path()}
        reaper = threading.Thread(target=ours.wait)
        reaper.start()
        # An empty standard input: the demo is gone.
        subprocess.run(guard, stdin=subprocess.DEVNULL, env=env, check=True, timeout=LIMIT_S)
        reaper.join(LIMIT_S)
        assert ours.returncode == -signal.SIGTERM
        assert other.poll() is None
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


def test_a_child_that_dies_again_and_again_is_started_more_and_more_slowly(tmp_path):
    with Supervisor(backoff=Backoff(first_s=0.2)) as supervisor:
        supervisor.spawn(python("brief", "import time; time.sleep(0.3)", tmp_path))
        supervisor.wait_ready("brief", lambda: True, LIMIT_S)
        wait_for(lambda: len(supervisor.deaths) >= 3, "three deaths")
        first, second, third = supervisor.deaths[:3]
    pauses = [later.at - later.uptime_s - earlier.at for earlier, later in ((first, second), (second, third))]
    assert pauses[0] >= 0.19  # two clocks are involved
    assert pauses[1] >= 0.39


def test_the_log_of_the_run_before_is_kept_once(tmp_path):
    for text in ("first", "second"):
        with Supervisor() as supervisor:
            supervisor.spawn(python("say", f"print({text!r}, flush=True); {SLEEP}", tmp_path))
            supervisor.wait_ready("say", lambda text=text: text in tail(tmp_path / "say.log"), LIMIT_S)
    assert tail(tmp_path / "say.log") == "second"
    assert tail(tmp_path / "say.log.1") == "first"
