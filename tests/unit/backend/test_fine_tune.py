"""The slowest path, with a network that is made of two lines: when a run is due, what it decides, how it ends."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from backend import fine_tune, jobs
from backend.errors import LabelStudioUnavailable
from backend.fine_tune import CANCEL, FineTuner, due
from backend.overview import project_overview
from backend.refresh import Refresher
from backend.settings import Settings
from backend.triggers import TuneFacts, tune_is_due
from training import api
from training.errors import TrainingDiverged


def live(loop):
    return loop.refresher.desk.model.live()


@pytest.mark.parametrize(
    ("labels", "before", "is_due"), [(19, 0, False), (20, 0, True), (39, 20, False), (40, 20, True), (40, 15, True)]
)
def test_a_run_is_due_from_a_number_on_and_at_each_doubling(labels, before, is_due):
    assert tune_is_due(TuneFacts(labels, before, 20, live=True, held=False), start=20) is is_due


@pytest.mark.parametrize(("audit", "live", "held"), [(20, False, False), (20, True, True), (19, True, False)])
def test_nothing_is_due_that_nobody_could_judge_or_use(audit, live, held):
    assert not tune_is_due(TuneFacts(100, 0, audit, live, held), start=20)


def test_a_better_network_takes_over_with_its_embeddings_and_the_order_follows(tuning):
    tuning.give(list(tuning.tasks)[:40])
    before, served = live(tuning), tuning.ls.served.model_version
    assert due(tuning.refresher)
    desk = tuning.refresher.desk
    tuning.workshop.state.put(desk.id, "kept_back", {"version": "an older one", "words": "worse"})
    text = tuning.run()
    assert tuning.workshop.state.get(desk.id, "kept_back") is None  # whoever promoted that one would lose the network
    assert "promoted" in text and live(tuning).representation == "good" != before.representation
    assert tuning.refresher.desk.model.representation().id == "good"
    assert len(tuning.refresher.desk.model.embedded_ids()) == len(tuning.tasks)
    assert {"refresh", "pool"} <= set(tuning.jobs.woken)
    tuning.refresh()
    assert tuning.ls.served.model_version != served
    assert not due(tuning.refresher)  # until the labels have doubled
    assert [o.outcome for o in tuning.files.outcomes()] == ["promoted"]


def test_the_live_version_teaches_what_it_says_of_tasks_without_a_label(tuning):
    tuning.give(list(tuning.tasks)[:40])
    tuning.workshop.settings = tuning.workshop.settings.model_copy(update={"tune_pool": 1000})
    tuning.run()
    assert sorted(tuning.taught.ids) == sorted(list(tuning.tasks)[40:])


def test_masks_are_taken_from_the_folder_of_the_settings(tuning, tmp_path):
    tuning.give(list(tuning.tasks)[:40])
    for folder in (tmp_path, None):
        tuning.workshop.settings = tuning.workshop.settings.model_copy(update={"tune_masks": folder})
        tuning.run()
        assert tuning.masks == folder


def test_where_a_run_is_within_an_epoch_is_shown_now_and_then(tuning, monkeypatch):
    tuning.give(list(tuning.tasks)[:40])
    for pause, steps in ((0.0, [(3, 9)]), (3600.0, [])):
        monkeypatch.setattr(fine_tune, "_SHOW_EVERY_S", pause)
        shown = []
        FineTuner(tuning.refresher, tuning.jobs, lambda *where, shown=shown: shown.append(where)).run()
        assert [where[:2] for where in shown if where[2].startswith("steps")] == steps
        assert any(where[2].startswith("epochs") for where in shown)


def test_a_number_of_tasks_teaches_at_most_and_with_none_nobody_does(tuning):
    tuning.give(list(tuning.tasks)[:40])
    for most, told in ((5, 5), (0, None)):
        tuning.workshop.settings = tuning.workshop.settings.model_copy(update={"tune_pool": most})
        tuning.run()
        assert (tuning.taught and len(tuning.taught.ids)) == told


def test_a_worse_network_is_kept_back_and_shown_with_the_reason(tuning):
    tuning.give(list(tuning.tasks)[:40])
    before = live(tuning)
    tuning.result = "bad"
    assert "kept back; worse than the live version" in tuning.run()
    assert live(tuning) == before and tuning.refresher.desk.model.representation().id == before.representation
    shown = project_overview(tuning.workshop, tuning.jobs, 5).representation
    assert "Last fine-tuning" in shown and "worse than the live version" in shown


def test_a_run_that_learnt_nothing_leaves_nothing(tuning):
    tuning.give(list(tuning.tasks)[:40])
    tuning.result = "nothing learnt"
    assert "no epoch was better" in tuning.run()
    assert tuning.files.outcomes()[-1].version is None
    assert not tuning.refresher.desk.model._representations.folder("good").exists()


def test_a_killed_run_goes_on_with_the_labels_it_began_with(tuning):
    tuning.give(list(tuning.tasks)[:40])
    tuning.result = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        tuning.run()
    tuning.give(list(tuning.tasks)[40:50])
    tuning.result = "good"
    tuning.run()
    first, second = tuning.seen
    assert first == second and tuning.files.begun() is None
    # What goes live knows the new labels all the same.
    assert len(tuning.refresher.desk.model.labels_of(live(tuning).id)) == 50


def test_a_run_of_which_one_process_was_killed_goes_on_too(tuning):
    tuning.give(list(tuning.tasks)[:40])
    tuning.result = api.ProcessKilled("one of 2 processes was ended")
    with pytest.raises(api.ProcessKilled):
        tuning.run()
    assert tuning.files.begun() is not None and not tuning.files.outcomes()
    tuning.result = "good"
    assert "promoted" in tuning.run()


def test_a_failed_run_says_why_and_does_not_come_again_with_the_next_label(tuning):
    tuning.give(list(tuning.tasks)[:40])
    before = live(tuning)
    tuning.result = TrainingDiverged(3, float("nan"))
    assert "failed; the loss became nan" in tuning.run()
    assert live(tuning) == before and tuning.files.begun() is None
    assert not due(tuning.refresher)


def test_what_nobody_foresaw_is_recorded_and_raised_once(tuning):
    tuning.give(list(tuning.tasks)[:40])
    tuning.result = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        tuning.run()
    assert "No space left" in tuning.files.outcomes()[-1].words
    assert tuning.files.begun() is None and not due(tuning.refresher)


def test_while_label_studio_is_away_the_run_waits(tuning, monkeypatch):
    tuning.give(list(tuning.tasks)[:40])
    tuning.result = LabelStudioUnavailable("read labels", "it is away")
    with pytest.raises(LabelStudioUnavailable):
        tuning.run()
    assert tuning.files.begun() is not None and tuning.files.outcomes() == []


def test_a_run_that_comes_on_between_two_kills_is_not_given_up(tuning):
    tuning.give(list(tuning.tasks)[:40])
    tuning.result = KeyboardInterrupt()
    for _ in range(7):
        with pytest.raises(KeyboardInterrupt):
            tuning.run()
    tuning.result = "good"
    assert "promoted" in tuning.run()


def test_a_run_whose_process_is_killed_again_and_again_is_given_up(tuning):
    tuning.give(list(tuning.tasks)[:40])
    tuning.result, tuning.epoch = KeyboardInterrupt(), 0
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            tuning.run()
    assert "killed 5 times" in tuning.run()
    assert tuning.files.begun() is None


def test_cancelled_is_cancelled(tuning):
    tuning.give(list(tuning.tasks)[:40])
    before = live(tuning)
    tuning.state.put(5, CANCEL, True)
    assert "cancelled" in tuning.run()
    assert live(tuning) == before and tuning.state.get(5, CANCEL) is None
    assert not due(tuning.refresher)


def test_a_version_chosen_by_hand_meanwhile_is_respected(tuning, monkeypatch):
    tuning.give(list(tuning.tasks)[:40])
    before = live(tuning)
    embed = api.ProjectModel.embed_in

    def choose(model, *what, **how):
        tuning.refresher.desk.files.write_pin({"kind": "model version", "version": before.id, "since": 1.0})
        return embed(model, *what, **how)

    monkeypatch.setattr(api.ProjectModel, "embed_in", choose)
    assert "chosen by hand" in tuning.run()
    assert live(tuning) == before


def test_the_record_of_a_run_can_be_read_line_by_line(tuning):
    tuning.give(list(tuning.tasks)[:40])
    tuning.run()
    (run,) = [path for path in tuning.files.folder.iterdir() if path.is_dir()]
    (line,) = api.read_record(run / "epochs.jsonl")
    assert (line["epoch"], line["loss"], line["held_out"]) == (1, 0.5, 0.4)


def test_the_job_starts_only_what_is_due_or_asked_for(tuning, monkeypatch):
    monkeypatch.setattr(jobs, "_refresher", lambda workshop, project_id: tuning.refresher)
    tuning.give(list(tuning.tasks)[:10])
    assert jobs._tune(tuning.workshop, tuning.jobs, 5) == "no fine-tuning is due"
    tuning.state.record(5, text="asked", flags=["tune"])
    assert "fine-tuning on" in jobs._tune(tuning.workshop, tuning.jobs, 5)
    assert "tune" not in tuning.state.flags(5)


def test_a_worker_that_knows_no_label_yet_reads_them_before_it_says_that_nothing_is_due(tuning, monkeypatch):
    tuning.give(list(tuning.tasks)[:40])
    fresh = Refresher(tuning.workshop.desk(5))
    monkeypatch.setattr(jobs, "_refresher", lambda workshop, project_id: fresh)
    assert "promoted" in jobs._tune(tuning.workshop, tuning.jobs, 5)


def test_half_a_line_of_a_dying_machine_costs_only_itself(tuning):
    tuning.give(list(tuning.tasks)[:40])
    tuning.run()
    with (tuning.files.folder / "runs.jsonl").open("a") as file:
        file.write(json.dumps({"at": 1})[:5])
    assert len(tuning.files.outcomes()) == 1
    assert "Last fine-tuning" in fine_tune.tuning_sentence(tuning.refresher.desk.home, 20, 0)


def test_tasks_of_one_patient_are_told_to_stay_together(tuning):
    tasks = tuning.refresher.desk.files.tasks()
    tuner = FineTuner(tuning.refresher, tuning.jobs, lambda done, total, what: None)
    assert tuner._groups() is None
    xml = tuning.ls.served.label_config.replace('name="cls"', 'name="cls" model_group="who"')
    tuning.refresher.desk.project = replace(tuning.refresher.desk.project, label_config=xml)
    who = tuple(None if task == 3 else f"p{task // 2}" for task in tasks.ids)
    tuning.refresher.desk.files.write_tasks(replace(tasks, inputs=("who",), facts=(who,)))
    found = tuner._groups()
    assert found[4] == found[5] == "p2" and 3 not in found


def test_a_data_field_that_no_task_has_is_told(tuning):
    files = tuning.refresher.desk.files
    tasks = files.tasks()
    nothing, something = (None,) * len(tasks.ids), (*(None,) * (len(tasks.ids) - 1), 3)
    files.write_tasks(replace(tasks, inputs=("nowhere", "age"), facts=(nothing, something)))
    (told,) = [w for w in project_overview(tuning.workshop, tuning.jobs, 5).warnings if "data field" in w]
    assert "'nowhere'" in told


def test_what_the_settings_say_of_a_run_reaches_it():
    env = {
        "ASKFIRST_TUNE_EPOCHS": "7",
        "ASKFIRST_TUNE_LIMIT_S": "90",
        "ASKFIRST_TUNE_FLIPS": "horizontal",
        "ASKFIRST_TUNE_AUGMENTATION": "randaugment",
        "ASKFIRST_TUNE_MIXING": "cutmix",
        "ASKFIRST_SEED": "5",
        "ASKFIRST_TORCH_THREADS": "3",
        "ASKFIRST_TUNE_DEVICES": "2",
    }
    assert fine_tune.tune_settings(Settings.from_env(env)) == api.TuneSettings(
        epochs=7,
        time_limit_s=90.0,
        flips="horizontal",
        augmentation="randaugment",
        mixing="cutmix",
        seed=5,
        threads=3,
        devices=2,
    )
