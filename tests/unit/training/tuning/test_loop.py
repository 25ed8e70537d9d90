"""A run from its first step to its last: what it learns, how it ends, and how it goes on after it was killed."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.backbones import BackboneSpec, resolve
from training.errors import DataError, OutOfMemory, TrainingDiverged, TrainingStopped
from training.tuning import Examples, HeadSpec, Pictures, Teacher, TuneSettings, Untrained, loop, predict, tune
from training.tuning.net import TunedNet
from training.tuning.update import Update

ROOT = Path(__file__).resolve().parents[4]
DIGIT = HeadSpec("digit", "single", tuple("0123456789"))
LEARNER = Untrained("shufflenet_v2_x0_5", 32)


def same_weights(a, b):
    return a.state.keys() == b.state.keys() and all(torch.equal(a.state[name], b.state[name]) for name in a.state)


@pytest.fixture
def quick(settings):
    """Two steps an epoch, nothing held out."""
    return replace(settings, batch_size=10, held_out=0.0, epochs=2, input_size=32)


@pytest.fixture
def few(labelled):
    return labelled.take(np.arange(20))


@pytest.fixture
def fast(settings):
    """Learns something within seconds, with `LEARNER`."""
    return replace(
        settings,
        epochs=6,
        batch_size=16,
        held_out=0.1,
        augmentation="none",
        mixing="none",
        ema_decay=0.9,
        lr_trunk=0.01,
        lr_head=0.01,
    )


def test_it_learns_to_read_digits_it_has_not_seen(digits, pictures, fast):
    labelled = Examples(np.arange(300), {"digit": digits[1][:300]}, {})
    tuned = tune(LEARNER, [DIGIT], labelled, pictures, fast)
    found = predict(tuned, pictures, np.arange(300, 400)).log_probabilities["digit"]
    assert (found.argmax(1) == digits[1][300:]).mean() > 0.35
    assert np.exp(found).sum(1) == pytest.approx(np.ones(100), abs=1e-5)
    assert 20 <= len(tuned.held_out) <= 30 and not set(tuned.held_out) - set(range(300))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(few, pictures, start, quick):
    a, b, c = (tune(start, [DIGIT], few, pictures, replace(quick, seed=seed)) for seed in (1, 1, 2))
    assert same_weights(a, b) and not same_weights(a, c)


def test_a_killed_run_goes_on_to_the_weights_of_one_that_was_not(labelled, pictures, start, settings, tmp_path):
    settings = replace(settings, epochs=4)

    class Killed(BaseException):
        pass

    def kill(step):
        if (step.epoch, step.step) == (3, 2):
            raise Killed

    whole = tune(start, [DIGIT], labelled, pictures, settings)
    with pytest.raises(Killed):
        tune(start, [DIGIT], labelled, pictures, settings, folder=tmp_path, on_step=kill)
    epochs = []
    torch.manual_seed(5)
    resumed = tune(start, [DIGIT], labelled, pictures, settings, folder=tmp_path, on_epoch=epochs.append)
    assert [epoch.epoch for epoch in epochs] == [3, 4]
    assert same_weights(whole, resumed)
    assert whole.history[-1].held_out is not None
    assert [e.held_out for e in whole.history] == [e.held_out for e in resumed.history]
    again = tune(start, [DIGIT], labelled, pictures, settings, folder=tmp_path, on_epoch=epochs.append)
    assert len(epochs) == 2 and same_weights(whole, again) and again.reason == loop.ALL_DONE


def test_the_checkpoint_of_another_run_is_not_taken_up(few, pictures, start, quick, tmp_path):
    tune(start, [DIGIT], few, pictures, quick, folder=tmp_path)
    other = replace(few, answers={"digit": (few.answers["digit"] + 1) % 10})
    epochs = []
    tune(start, [DIGIT], other, pictures, quick, folder=tmp_path, on_epoch=epochs.append)
    assert [epoch.epoch for epoch in epochs] == [0, 1, 2]
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    tune(start, [DIGIT], other, pictures, quick, folder=tmp_path, on_epoch=epochs.append)
    assert len(epochs) == 6


def test_what_others_draw_from_torch_is_not_disturbed(few, pictures, start, quick):
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    tune(start, [DIGIT], few, pictures, replace(quick, epochs=1, threads=2))
    assert torch.equal(torch.randn(2), expected) and torch.get_num_threads() == threads


def test_events_say_where_the_run_is(few, pictures, start, quick):
    steps, epochs = [], []
    tune(start, [DIGIT], few, pictures, quick, on_step=steps.append, on_epoch=epochs.append)
    assert [(s.epoch, s.step, s.steps) for s in steps] == [(1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 2)]
    assert all(s.losses.keys() == {"digit"} and s.images_per_s > 0 and 0 < s.lr <= quick.lr_trunk for s in steps)
    assert [e.epoch for e in epochs] == [0, 1, 2] and epochs[0].loss is None
    assert epochs[1].loss == pytest.approx(np.mean([s.loss for s in steps[:2]]))
    assert [s.seconds for s in steps] == sorted(s.seconds for s in steps)


def test_small_sets_are_passed_several_times_an_epoch(few, pictures, start, quick):
    steps = []
    tune(start, [DIGIT], few, pictures, replace(quick, fewest_steps=11), on_step=steps.append)
    assert [s.steps for s in steps] == [6] * 12


def test_a_run_ends_where_the_held_out_loss_no_longer_falls(labelled, pictures, start, settings):
    # So small a rate that nothing changes: the first loss stays the best, up to rounding.
    settings = replace(settings, epochs=9, patience=2, lr_trunk=1e-12, lr_head=1e-12, weight_decay=0.0)
    wrong = Examples(labelled.ids, labelled.answers, {})
    tuned = tune(start, [DIGIT], wrong, pictures, settings)
    assert tuned.reason == "no better loss on the held-out examples for 2 epochs"
    losses = [e.held_out for e in tuned.history]
    assert tuned.best_epoch == int(np.argmin(losses)) and len(losses) == tuned.best_epoch + 3 < 10


def test_time_ends_a_run_within_an_epoch_and_the_best_so_far_is_kept(few, pictures, start, quick):
    ticks = iter(range(10_000))
    steps = []
    tuned = tune(
        start,
        [DIGIT],
        few,
        pictures,
        replace(quick, epochs=50, time_limit_s=60),
        on_step=steps.append,
        clock=lambda: float(next(ticks)),
    )
    assert tuned.reason == "the time limit of 60 s was reached"
    assert 3 < len(steps) < 30 and steps[-1].seconds >= 55
    assert tuned.best_epoch == tuned.history[-1].epoch == steps[-1].epoch


def test_a_stopped_run_returns_the_best_of_its_whole_epochs(few, pictures, start, quick):
    steps = []
    tuned = tune(start, [DIGIT], few, pictures, quick, on_step=steps.append, should_stop=lambda: len(steps) == 3)
    assert len(steps) == 3 and tuned.reason == loop.CANCELLED and tuned.best_epoch == 1
    at_once = tune(start, [DIGIT], few, pictures, quick, on_step=steps.append, should_stop=lambda: True)
    assert len(steps) == 3 and at_once.best_epoch == 0


def fails_above(monkeypatch, count):
    """Memory for `count` pictures at a time."""
    forward, sizes = TunedNet.forward, []

    def checked(self, images, inputs):
        if len(images) > count:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(images))
        return forward(self, images, inputs)

    monkeypatch.setattr(TunedNet, "forward", checked)
    return sizes


def test_short_memory_halves_what_is_computed_at_a_time_and_changes_nothing_else(
    few, pictures, start, quick, monkeypatch
):
    # Dropout draws for all pictures of a part at once, so it is taken out for the comparison.
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
    whole = tune(start, [DIGIT], few, pictures, quick)
    sizes = fails_above(monkeypatch, 4)
    parts = tune(start, [DIGIT], few, pictures, quick)
    assert max(sizes) == 3  # 10, 5, 3
    for name, value in whole.state.items():
        assert torch.allclose(value, parts.state[name], atol=2e-4), name


def test_not_even_one_picture_is_an_error_that_says_so(few, pictures, start, quick, monkeypatch):
    fails_above(monkeypatch, 0)
    with pytest.raises(OutOfMemory):
        tune(start, [DIGIT], few, pictures, quick)


def test_other_errors_of_the_device_are_not_taken_for_short_memory(few, pictures, start, quick, monkeypatch):
    def broken(self, images, inputs):
        raise RuntimeError("an illegal instruction")

    monkeypatch.setattr(TunedNet, "forward", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        tune(start, [DIGIT], few, pictures, quick)


def test_a_loss_that_is_not_finite_ends_the_run_with_the_reason(few, pictures, start, quick):
    bad = replace(few, weights=np.where(np.arange(20) == 3, np.float32("nan"), 1).astype(np.float32))
    with pytest.raises(TrainingDiverged, match=r"loss became nan in step 1;.*lr_trunk"):
        tune(start, [DIGIT], bad, pictures, quick)


def test_a_gradient_that_is_not_finite_ends_the_run_too(few, pictures, start, quick, monkeypatch):
    monkeypatch.setattr(
        Update, "_gradient", lambda self, *_: ([p.grad.fill_(float("inf")) for p in with_gradients(self)], (1.0, {}))[1]
    )
    with pytest.raises(TrainingDiverged, match="gradient"):
        tune(start, [DIGIT], few, pictures, quick)


def with_gradients(update):
    for parameter in update._net.parameters():
        parameter.grad = torch.zeros_like(parameter)
        yield parameter


def test_examples_without_a_picture_are_left_out_and_told(few, digits, start, quick):
    images, _ = digits
    pictures = Pictures.of_array(np.arange(15), images[:15])
    tuned = tune(start, [DIGIT], few, pictures, replace(quick, epochs=1))
    assert sorted(tuned.unreadable) == [15, 16, 17, 18, 19]
    with pytest.raises(DataError, match="label something first"):
        tune(start, [DIGIT], few, Pictures.of_array(np.array([77]), images[:1]), quick)


def test_mixing_by_object_without_masks_is_refused(few, digits, start, quick):
    pictures = Pictures.of_array(np.arange(20), digits[0][:20])
    with pytest.raises(DataError, match="have no masks"):
        tune(start, [DIGIT], few, pictures, replace(quick, mixing="cutmix-object"))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [({"loss": "focal"}, "loss must be one of"), ({"epochs": -1}, "epochs"), ({"held_out": 1.0}, "below 1")],
)
def test_settings_that_make_no_sense_are_refused(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        TuneSettings(**wrong)


def test_all_kinds_of_heads_learn_together_from_answers_with_gaps(digits, pictures, fast):
    images, digit = digits
    ink = images[:300].mean((1, 2, 3))
    rng = np.random.default_rng(0)
    gaps = rng.uniform(size=(4, 300)) < 0.3
    bins = np.digitize(ink, np.quantile(ink, [0.33, 0.67]))
    tags = np.stack([ink > np.median(ink), digit[:300] % 2 == 0], 1).astype(np.float32)
    labelled = Examples(
        np.arange(300),
        {
            "digit": np.where(gaps[0], -1, digit[:300]),
            "ink": np.where(gaps[1], np.nan, ink),
            "level": np.where(gaps[2], -1, bins),
            "tags": np.where(gaps[3][:, None], np.nan, tags),
        },
        {},
    )
    heads = [
        DIGIT,
        HeadSpec("ink", "number"),
        HeadSpec("level", "ordinal", ("low", "middle", "high")),
        HeadSpec("tags", "multiple", ("dark", "even")),
    ]
    tuned = tune(LEARNER, heads, labelled, pictures, fast)
    found = predict(tuned, pictures, np.arange(300))
    assert np.corrcoef(found.numbers["ink"][:, 0], ink)[0, 1] > 0.5
    assert (found.log_probabilities["level"].argmax(1) == bins).mean() > 0.45
    assert ((np.exp(found.log_probabilities["tags"][:, 0]) > 0.5) == tags[:, 0]).mean() > 0.6
    assert (found.numbers["ink"][:, 1] > 0).all() and tuned.number_error["ink"] < ink.std()
    assert set(tuned.history[-1].metrics) == {"digit", "ink", "level", "tags"}


def test_an_extra_input_that_tells_the_answer_is_used_and_not_needed(pictures, start, fast):
    secret = np.random.default_rng(0).integers(0, 2, 200)  # not to be seen in the picture
    hint = {"secret": np.eye(2, dtype=np.float32)[secret]}
    head = HeadSpec("answer", "single", ("no", "yes"), inputs=("secret",))
    settings = replace(fast, epochs=3, lr_trunk=1e-4)
    tuned = tune(start, [head], Examples(np.arange(200), {"answer": secret}, hint), pictures, settings)
    told, untold = (
        np.exp(predict(tuned, pictures, np.arange(200), given).log_probabilities["answer"]) for given in (hint, None)
    )
    assert (told.argmax(1) == secret).mean() > 0.95
    assert untold.max(1).mean() < told.max(1).mean() - 0.05  # it knows that it knows less


def test_a_student_comes_to_its_teacher_where_nobody_labelled(digits, pictures, few, start, quick):
    # The teacher knows one thing, that everything is a three; the labels say nothing of the kind.
    told = np.full((80, 10), 0.01, np.float32)
    told[:, 3] = 0.91
    teacher = Teacher(np.arange(300, 380), {"digit": told})
    pool = Examples(np.arange(300, 380), {}, {})
    settings = replace(quick, epochs=3, lr_trunk=1e-3, lr_head=1e-2, ema_decay=0.5, mixing="none", pool_ratio=2.0)
    without = tune(start, [DIGIT], few, pictures, settings)
    taught = tune(start, [DIGIT], few, pictures, replace(settings, distil_weight=0.9), pool=pool, teacher=teacher)
    threes = [
        np.exp(predict(net, pictures, pool.ids).log_probabilities["digit"][:, 3]).mean() for net in (without, taught)
    ]
    assert threes[1] > threes[0] + 0.2


def test_fixmatch_learns_from_what_it_is_sure_of_and_from_nothing_else(pictures, few, start, quick):
    pool = Examples(np.arange(300, 380), {}, {})
    settings = replace(quick, fixmatch=True, mixing="none", fixmatch_ramp=0.0)
    steps = {}
    for threshold in (0.0, 1.0):
        seen = []
        tune(
            start,
            [DIGIT],
            few,
            pictures,
            replace(settings, fixmatch_threshold=threshold),
            pool=pool,
            on_step=seen.append,
        )
        steps[threshold] = [step.losses["digit"] for step in seen]
    plain = []
    tune(start, [DIGIT], few, pictures, settings, on_step=plain.append)
    # Nothing is ever quite certain, so the first loss is that of the labels alone; dropout differs with the batch.
    assert steps[1.0][0] == pytest.approx(plain[0].losses["digit"], rel=0.2)
    assert steps[0.0][0] > 1.5 * plain[0].losses["digit"]


def test_early_pseudo_labels_weigh_little():
    settings = TuneSettings(fixmatch_weight=2.0, fixmatch_ramp=0.4)
    weights = [loop._pseudo_weight(settings, done) for done in (0.0, 0.1, 0.2, 0.4, 0.9)]
    assert weights == pytest.approx([0, 0.5, 1, 2, 2])


def test_the_door_loads_torch_only_when_something_heavy_is_asked_for():
    program = (
        "import sys, training.tuning as t; t.TuneSettings(); sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_a_run_that_is_stopped_while_it_looks_at_its_pictures_ends_at_once(few, pictures, start, quick, tmp_path):
    trained = tune(start, [DIGIT], few, pictures, replace(quick, epochs=0))
    backbone = resolve(BackboneSpec("squeezenet1_1", str(trained.save(tmp_path))), tmp_path)
    asked, epochs = [], []
    with pytest.raises(TrainingStopped):
        tune(
            backbone,
            [DIGIT],
            few,
            pictures,
            quick,
            on_epoch=epochs.append,
            should_stop=lambda: asked.append(1) or bool(asked),
        )
    assert len(asked) == 1 and not epochs
