"""The demo's Label Studio gives a task to one annotator at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import askfirst
from askfirst.home import Home
from askfirst.label_studio import server_environment

SITE = Path(askfirst.__file__).parent / "label_studio_site"
# Looks for a lock and sets it in two steps, as Label Studio does.
NEXT_TASK = """
import time
taken = []
def get_next_task(user):
    task = next(t for t in range(99) if t not in taken)
    time.sleep(0.05)
    taken.append(task)
    return task
"""
PEOPLE = """
from concurrent.futures import ThreadPoolExecutor
from projects.functions.next_task import get_next_task
with ThreadPoolExecutor(4) as pool:
    print(sorted(pool.map(get_next_task, range(4))))
"""


def served(tmp_path, paths):
    folder = tmp_path / "projects" / "functions"
    folder.mkdir(parents=True)
    (tmp_path / "projects" / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "next_task.py").write_text(NEXT_TASK)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*paths, tmp_path]))}
    run = subprocess.run([sys.executable, "-c", PEOPLE], env=env, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_without_it_people_who_ask_at_once_get_the_same_task(tmp_path):
    assert served(tmp_path, []) == "[0, 0, 0, 0]"


def test_with_it_each_gets_a_task_of_their_own(tmp_path):
    assert served(tmp_path, [SITE]) == "[0, 1, 2, 3]"


def test_the_demo_starts_label_studio_with_it(tmp_path):
    assert server_environment(Home(tmp_path), {})["PYTHONPATH"] == str(SITE)


def test_another_program_is_left_as_it_is(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(SITE)}
    run = subprocess.run(
        [sys.executable, "-c", "import json; print(json.dumps(1))"], env=env, capture_output=True, text=True, check=True
    )
    assert (run.stdout, run.stderr) == ("1\n", "")
