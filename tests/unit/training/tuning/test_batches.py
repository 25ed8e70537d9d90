"""What a step is given: every example once a pass, labels mixed as their pictures are, the pool beside them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.tuning import Examples, HeadSpec, Pictures, Teacher
from training.tuning.batches import Batches, ahead
from training.tuning.heads import targets_of
from training.tuning.losses import HeadLoss

N, SIDE = 23, 16
HEADS = (HeadSpec("abc", "single", ("a", "b", "c"), inputs=("age", "sex")), HeadSpec("size", "number"))


@pytest.fixture
def make(settings):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, SIDE, SIDE, 3)).astype(np.uint8)
    images[:, 0, 0, 0] = np.arange(60)  # a picture says who it is
    pictures = Pictures.of_array(np.arange(60), images, images[..., 1])
    inputs = {"age": rng.normal(size=(60, 1)).astype(np.float32), "sex": np.eye(2, dtype=np.float32)[np.arange(60) % 2]}
    inputs["sex"][4] = np.nan
    everything = Examples(
        np.arange(60),
        {"abc": np.where(np.arange(60) % 4 == 3, -1, np.arange(60) % 3), "size": np.arange(60) * 2.0},
        inputs,
        np.arange(60) // 2,
    )

    def make(pool=None, teacher=None, **changes):
        train = everything.take(np.arange(N))
        targets = {head.name: targets_of(head, train) for head in HEADS}
        losses = [HeadLoss.of(head, targets[head.name], "plain", 0.0) for head in HEADS]
        options = {"augmentation": "none", "mixing": "none", "batch_size": 10, "condition_dropout": 0.0} | changes
        pool = None if pool is None else everything.take(pool)
        return Batches(losses, train, targets, pictures, SIDE, replace(settings, **options), pool, teacher), everything

    return make


def same(a, b):
    return all(
        torch.equal(x, y)
        for name in ("targets", "shares", "teacher", "inputs")
        for x, y in zip(getattr(a, name).values(), getattr(b, name).values(), strict=True)
    ) and torch.equal(a.images, b.images)


def test_every_example_comes_once_a_pass_in_steps_of_nearly_the_same_size(make):
    batches, _ = make()
    steps = list(batches.of_epoch(1, threads=2))
    assert [len(step) for step in steps] == [8, 8, 7] and batches.steps == 3
    assert sorted(int(i) for step in steps for i in step.images[:, 0, 0, 0]) == list(range(N))


def test_a_batch_depends_neither_on_threads_nor_on_what_was_made_before(make):
    options = {"augmentation": "randaugment", "mixing": "cutmix-object", "condition_dropout": 0.5}
    one, _ = make(np.arange(30, 60), **options)
    many, _ = make(np.arange(30, 60), **options)
    list(many.of_epoch(1, threads=1))
    first, second = list(one.of_epoch(2, threads=1)), list(many.of_epoch(2, threads=3))
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert not same(first[0], next(iter(one.of_epoch(3, threads=1))))


def test_shares_add_up_to_one_over_those_who_answered(make):
    batches, everything = make()
    for step in batches.of_epoch(1, threads=1):
        who = step.images[:, 0, 0, 0].numpy().astype(int)
        answered = everything.answers["abc"][who] >= 0
        assert step.shares["abc"].numpy() == pytest.approx(answered / answered.sum())
        assert step.shares["size"].sum() == pytest.approx(1)
        sizes = everything.answers["size"][who]
        assert step.targets["size"][:, 0].numpy() == pytest.approx((sizes - 22) / np.arange(0, 46, 2).std(), abs=1e-5)


def test_labels_and_inputs_are_mixed_as_the_pictures_are(make):
    batches, everything = make(mixing="cutmix", mix_probability=1.0)
    mixed = 0
    for epoch in (1, 2):
        for step in batches.of_epoch(epoch, threads=1):
            for image, target, share, age in zip(
                step.images.numpy(), step.targets["size"], step.shares["abc"], step.inputs["age"], strict=True
            ):
                # Green pixels tell which pictures are here, and how much of each.
                parts = {i: (image == everything_images(batches, i)).all(-1).mean() for i in range(N)}
                seen = {i: part for i, part in parts.items() if part > 0.02}
                size = sum(part * everything.answers["size"][i] for i, part in seen.items()) / sum(seen.values())
                assert float(target) == pytest.approx((size - 22) / np.arange(0, 46, 2).std(), abs=0.02)
                ages = sum(part * everything.inputs["age"][i, 0] for i, part in seen.items()) / sum(seen.values())
                assert float(age[0]) == pytest.approx(ages, abs=0.02)
                if len(seen) == 2:
                    mixed += 1
                    a, b = seen
                    assert a // 2 != b // 2
                    assert (float(share) == 0) == bool(min(everything.answers["abc"][[a, b]]) < 0)
    assert mixed > 15


def everything_images(batches, example):
    return batches._pictures.get(example)[..., :3]


def test_the_last_epochs_are_without_mixing(make):
    batches, _ = make(mixing="cutmix", mix_probability=1.0, epochs=10, mix_free=0.1)

    def pure(epoch):
        return all(
            (image == everything_images(batches, int(image[0, 0, 0]))).all()
            for step in batches.of_epoch(epoch, threads=1)
            for image in step.images.numpy()
        )

    assert not pure(9) and pure(10)


def test_missing_inputs_are_marked_and_some_others_are_hidden(make):
    batches, everything = make(condition_dropout=0.5)
    hidden = {"age": 0, "sex": 0, "both": 0}
    count = 0
    for epoch in range(1, 20):
        for step in batches.of_epoch(epoch, threads=1):
            who = step.images[:, 0, 0, 0].numpy().astype(int)
            age, sex = step.inputs["age"].numpy(), step.inputs["sex"].numpy()
            assert (sex[who == 4] == [0, 0, 1]).all()
            shown = age[:, 1] == 0
            assert age[shown, 0] == pytest.approx(everything.inputs["age"][who[shown], 0])
            assert (age[~shown, 0] == 0).all()
            known = who != 4
            hidden["age"] += (~shown & (sex[:, 2] == 0) & known).sum()
            hidden["sex"] += (shown & (sex[:, 2] == 1) & known).sum()
            hidden["both"] += (~shown & (sex[:, 2] == 1) & known).sum()
            count += known.sum()
    assert [hidden[k] / count for k in ("age", "sex", "both")] == pytest.approx([0.125, 0.125, 0.25], abs=0.06)


def test_the_pool_comes_round_once_before_anything_comes_twice(make):
    pool = np.arange(40, 60)
    batches, _ = make(pool, pool_ratio=0.5)
    who = [int(i) for epoch in (1, 2) for step in batches.of_epoch(epoch, 1) for i in step.images[:, 0, 0, 0] if i >= N]
    first = who[:12]
    assert set(who) <= set(pool.tolist()) and len(set(first)) == len(first)
    assert all(float(step.shares["abc"][-1]) == 0 for step in batches.of_epoch(1, 1))


def test_a_teacher_speaks_for_those_it_knows_and_takes_its_weight_from_the_labels(make):
    rng = np.random.default_rng(0)
    known = np.array([0, 2, 5, 41, 42, 43, 44, 45, 46, 47])
    told = rng.dirichlet(np.ones(3), len(known)).astype(np.float32)
    batches, everything = make(np.arange(40, 60), Teacher(known, {"abc": told}), distil_weight=0.7)
    for step in batches.of_epoch(1, threads=1):
        who = step.images[:, 0, 0, 0].numpy().astype(int)
        has = np.isin(who, known)
        assert step.teacher_shares["abc"].numpy() == pytest.approx(0.7 * has / max(1, has.sum()))
        for row in np.flatnonzero(has):
            assert step.teacher["abc"][row].numpy() == pytest.approx(told[known.tolist().index(who[row])])
        labelled = who < N
        answered = labelled & (everything.answers["abc"][who] >= 0)
        expected = answered / answered.sum() * np.where(has, 0.3, 1)
        assert step.shares["abc"].numpy() == pytest.approx(expected, abs=1e-6)
        assert "size" not in step.teacher


def test_parts_of_a_batch_are_its_rows(make):
    batches, _ = make()
    batch = next(iter(batches.of_epoch(1, 1)))
    parts = [batch.part(slice(start, start + 3)) for start in range(0, len(batch), 3)]
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert torch.equal(torch.cat([part.shares["abc"] for part in parts]), batch.shares["abc"])


def test_what_is_made_ahead_comes_in_order_and_errors_come_through():
    assert list(ahead(lambda k: k * k, range(20), 3)) == [k * k for k in range(20)]

    def broken(k):
        if k == 3:
            raise ValueError("three")
        return k

    with pytest.raises(ValueError, match="three"):
        list(ahead(broken, range(10), 2))
