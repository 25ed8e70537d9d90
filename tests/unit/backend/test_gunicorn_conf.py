"""Gunicorn's configuration follows our settings. Loaded in other processes, as it configures its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import json, os, runpy
conf = runpy.run_path("backend/gunicorn_conf.py")
conf["on_starting"](None)
folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
there = os.path.isdir(folder) and os.listdir(folder)
conf["on_exit"](None)
names = "bind workers threads worker_class preload_app timeout graceful_timeout accesslog".split()
said = {name: conf[name] for name in names}
print(json.dumps(said | {"folder": folder, "there": there, "left": os.path.isdir(folder)}))
"""


def load(**env: str) -> subprocess.CompletedProcess[str]:
    base = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=base | env, cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_settings_reach_gunicorn():
    conf = json.loads(load(HOST="::1", PORT="9191", WORKERS="1", THREADS="3").stdout)
    expected = {
        "bind": "[::1]:9191",
        "workers": 1,
        "threads": 3,
        "worker_class": "gthread",
        "preload_app": True,
        "timeout": 120,
        "graceful_timeout": 10,
        "accesslog": None,
        "folder": "",
    }
    assert expected.items() <= conf.items()


def test_several_workers_get_a_shared_folder_for_metrics_that_goes_with_them():
    conf = json.loads(load(WORKERS="2").stdout)
    assert conf["folder"]
    assert conf["there"] == []
    assert not conf["left"]


def test_a_folder_given_from_outside_is_emptied_of_old_counts_and_stays(tmp_path):
    (tmp_path / "counter_17.db").write_bytes(b"old")
    conf = json.loads(load(WORKERS="2", PROMETHEUS_MULTIPROC_DIR=str(tmp_path)).stdout)
    assert (conf["folder"], conf["there"], conf["left"]) == (str(tmp_path), [], True)


def test_a_wrong_setting_stops_the_start_with_one_sentence():
    done = load(PORT="none")
    assert done.returncode == 1
    assert "PORT='none'" in done.stderr
    assert "Traceback" not in done.stderr
