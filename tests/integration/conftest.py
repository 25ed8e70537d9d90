"""One real Label Studio, one real Redis, a real web process and real workers for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from askfirst.errors import EnvironmentMissing
from askfirst.label_studio import find_executable
from benchmark.live_stack import Stack, running_stack


@pytest.fixture
def stack(running: Stack) -> Iterator[Stack]:
    """The stack, without projects of earlier tests."""
    yield running
    running.say_goodbye()
    for project_id in running.workshop.state.projects():
        running.remove_project(project_id)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    try:
        find_executable()
    except EnvironmentMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    # A short tick and short quiet time: what heals within a minute in production heals within seconds here.
    settings = {"ASKFIRST_TICK_S": "3", "ASKFIRST_QUIET_S": "5", "ASKFIRST_SPRINT_MIN": "20"}
    # Label Studio's first start takes half a minute of migrations: a kept folder saves it between runs at a desk.
    kept = os.environ.get("TEST_STACK_ROOT")
    with running_stack(Path(kept) if kept else tmp_path_factory.mktemp("stack"), settings) as made:
        yield made
