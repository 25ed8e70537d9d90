"""A network that is tuned beside a running Label Studio, takes over, and is taken back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from sklearn.datasets import load_digits

from askfirst.errors import EnvironmentMissing
from askfirst.label_studio import find_executable
from backend.fine_tune import TuneFiles
from benchmark.live_stack import Stack, running_stack
from training.tuning import Examples, HeadSpec, Pictures, TuneSettings, Untrained, tune

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SIDE = 32
LABELLED, TASKS = 120, 170  # of a share of .35, the audit slice has fewer than 20 in one run of 100,000


def trained_on_turned_digits(folder):
    """A weights file: it knows strokes, and reads digits that lie on their side. Made in ten seconds."""
    images, digits = load_digits(return_X_y=True)
    turned = np.kron(np.rot90(images[400:1000].reshape(-1, 8, 8), 1, (1, 2)), np.ones((4, 4))) * 15.9
    pixels = np.ascontiguousarray(np.repeat(turned.astype(np.uint8)[..., None], 3, axis=3))
    settings = TuneSettings(
        epochs=6, batch_size=16, fewest_steps=0, held_out=0.1, augmentation="none", mixing="none", ema_decay=0.9,
        lr_trunk=0.01, lr_head=0.01, threads=1, accelerator="cpu", precision="32",
    )  # fmt: skip
    ids = np.arange(len(pixels))
    answers = {"digit": digits[400:1000].astype(np.int64)}
    start = Untrained("shufflenet_v2_x0_5", SIDE)
    head = HeadSpec("digit", "single", tuple("0123456789"))
    return tune(start, [head], Examples(ids, answers, {}), Pictures.of_array(ids, pixels), settings).save(folder)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of its own: weights are a setting of the whole backend."""
    try:
        find_executable()
    except EnvironmentMissing as error:
        pytest.skip(str(error))
    settings = {
        "ASKFIRST_TICK_S": "3",
        "ASKFIRST_QUIET_S": "5",
        "ASKFIRST_SPRINT_MIN": "20",
        "ASKFIRST_BACKBONE": "shufflenet_v2_x0_5",
        "ASKFIRST_WEIGHTS": str(trained_on_turned_digits(tmp_path_factory.mktemp("weights"))),
        "ASKFIRST_AUDIT_SHARE": "0.35",
        "ASKFIRST_TUNE": "false",  # only when asked for
        "ASKFIRST_TUNE_EPOCHS": "4",
        "ASKFIRST_TUNE_MIXING": "none",
    }
    with running_stack(tmp_path_factory.mktemp("stack"), settings) as made:
        yield made


def askfirst(stack, *words):
    command = [sys.executable, "-m", "askfirst", *words]
    return subprocess.run(command, env=stack.env, capture_output=True, text=True, check=True, timeout=120).stdout


def labelled_task(stack, name):
    choice = {"from_name": "digit", "to_name": "image", "type": "choices", "value": {"choices": [stack.truth[name]]}}
    return {"data": {"image": stack.uri(name)}, "annotations": [{"result": [choice]}]}


def test_a_tuned_network_takes_over_while_people_label_and_can_be_taken_back(stack):
    project_id = stack.make_project(0)
    stack.add_tasks(project_id, 0)  # the folder's permission
    names = sorted(stack.truth)
    rows = [labelled_task(stack, name) for name in names[:LABELLED]]
    stack.call("POST", f"/api/projects/{project_id}/import", rows)
    stack.add_tasks(project_id, TASKS - LABELLED, start=LABELLED)
    stack.connect(project_id)
    stack.wait(lambda: stack.served(project_id), "first order", within_s=240)  # the network is compiled first
    stack.settle(project_id)
    model = stack.workshop.desk(project_id).model
    before, order = model.live(), stack.served(project_id)
    assert model.representation().kind == "backbone" and before.metrics["audit_n"] >= 20

    assert "asked" in askfirst(stack, "tune", "--project", str(project_id))
    files = TuneFiles(stack.workshop.desk(project_id).home)
    stack.wait(lambda: stack.workshop.state.holder(project_id, "tune"), "run")
    asked_first = stack.label_next(project_id)["id"]  # nobody waits for it
    assert asked_first == order.ids[0]
    (outcome,) = stack.wait(files.outcomes, "end of the run", within_s=300)
    assert outcome.outcome == "promoted", outcome.words

    stack.settle(project_id)
    tuned = model.live()
    assert tuned.representation != before.representation
    assert stack.served(project_id).version != order.version
    assert asked_first not in stack.served(project_id).ids
    first = stack.served(project_id).ids[0]
    # Done, not only looked at: Label Studio gives people the task that they hold again, whatever the order says.
    assert stack.label_next(project_id)["id"] == first
    stack.settle(project_id)
    page = stack.backend("GET", "/status").text
    assert "fine-tuned on" in page and "promoted" in page

    askfirst(stack, "promote", before.id, "--project", str(project_id))
    stack.settle(project_id)
    assert model.live().representation == before.representation
    assert model.representation().id == before.representation
    assert stack.next_task(project_id)["id"] == stack.served(project_id).ids[0]
