"""Versions are whole, checked and immutable; one rename decides which is live."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from training import files, versions
from training.errors import CheckpointCorrupt, VersionError, VersionMissing
from training.linear import Head
from training.versions import FitState, VersionContent, VersionStore, labels_digest


def content(generation=1, seed=0, **changes):
    rng = np.random.default_rng(seed)
    head = Head(rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32), 1.5)
    base = VersionContent(
        generation=generation,
        classes=("cat", "dog", "ä b"),
        head=head,
        state=FitState(1.0, 40, 44),
        labels={7: 0, 9: 2},
        weights=None,
        audit={8: 1},
        metrics={"accuracy": 0.5, "nll": None},
        representation="r1",
        source={"project": 3},
    )
    return replace(base, **changes)


@pytest.fixture
def store(tmp_path):
    return VersionStore(tmp_path)


def promoted(store, *generations):
    ids = [store.write(content(generation, seed=generation)).id for generation in generations]
    for version in ids:
        store.promote(version)
    return ids


# ---------------------------------------------------------------------- writing and reading
def test_a_version_comes_back_as_it_was_written(store):
    info = store.write(content(), created_at=12.5)
    stored = store.load(info.id)
    assert stored.info == info
    np.testing.assert_array_equal(stored.head.weight, content().head.weight)
    np.testing.assert_array_equal(stored.head.bias, content().head.bias)
    assert (stored.head.temperature, stored.state) == (1.5, FitState(1.0, 40, 44))
    assert (info.generation, info.created_at, info.labels_used) == (1, 12.5, 2)
    assert (info.classes, info.metrics) == (("cat", "dog", "ä b"), {"accuracy": 0.5, "nll": None})
    assert (info.representation, info.source) == ("r1", {"project": 3})


def test_labels_of_both_kinds_are_kept(store):
    assert store.labels(store.write(content()).id) == {7: 0, 9: 2, 8: 1}


def test_writing_the_same_content_again_gives_the_version_that_is_there(store):
    first = store.write(content(), created_at=1.0)
    assert store.write(content(), created_at=2.0) == first
    assert len(store.all()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {7: 1, 9: 2}},
        {"classes": ("cat", "dog", "c")},
        {"representation": "r2"},
        {"state": FitState(3.0, 40, 44)},
        {"metrics": {"accuracy": 0.6, "nll": None}},
        {"head": replace(content().head, temperature=1.6)},
        {"audit": {}},
    ],
)
def test_any_change_of_content_is_another_version(store, change):
    assert store.write(content(**change)).id != store.write(content()).id


def test_the_id_starts_with_the_generation(store):
    assert store.write(content(12)).id.startswith("g12-")


def test_the_code_that_made_it_is_named(store):
    assert store.write(content()).code_version == versions.code_version()
    assert "+" in versions.code_version()


def test_the_digest_of_labels_does_not_depend_on_the_order_of_classes_or_labels():
    same = labels_digest({1: 0, 2: 1}, ("a", "b"))
    assert labels_digest({2: 0, 1: 1}, ("b", "a")) == same
    assert labels_digest({1: 0, 2: 1}, ("b", "a")) != same


def test_versions_are_listed_newest_first(store):
    for generation in (2, 10, 1):
        store.write(content(generation))
    assert [info.generation for info in store.all()] == [10, 2, 1]


def test_numbers_that_json_cannot_hold_are_refused_and_leave_nothing_behind(store, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        store.write(content(metrics={"nll": float("nan")}))
    assert store.all() == []


# ---------------------------------------------------------------------- damage
@pytest.mark.parametrize("name", ["head.safetensors", "labels.json", "manifest.json"])
def test_a_changed_byte_is_noticed(store, tmp_path, name):
    version = store.write(content()).id
    path = tmp_path / "versions" / version / name
    data = bytearray(path.read_bytes())
    place = data.index(b"0.5", data.index(b"metrics")) if name == "manifest.json" else len(data) - 2
    data[place] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointCorrupt, match="damaged"):
        store.load(version)
    with pytest.raises(CheckpointCorrupt):
        store.promote(version)


@pytest.mark.parametrize("name", ["head.safetensors", "labels.json", "manifest.json"])
def test_a_missing_or_cut_file_is_noticed(store, tmp_path, name):
    version = store.write(content()).id
    path = tmp_path / "versions" / version / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointCorrupt):
        store.load(version)
    path.unlink()
    with pytest.raises(CheckpointCorrupt, match="no such file"):
        store.load(version)


def test_a_damaged_version_is_left_out_of_the_list_and_the_others_stay(store, tmp_path):
    good, bad = store.write(content(1)).id, store.write(content(2)).id
    (tmp_path / "versions" / bad / "manifest.json").write_text("{")
    assert [info.id for info in store.all()] == [good]


@pytest.mark.parametrize("name", ["nope", "", "../versions", ".draft-1", "a/b"])
def test_an_unknown_version_is_named_with_those_that_are_there(store, name):
    known = store.write(content()).id
    with pytest.raises(VersionMissing, match=known):
        store.load(name)


def test_a_writer_killed_half_way_leaves_no_version(store, tmp_path, monkeypatch):
    def die(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(versions, "sync_folder", die)
    with pytest.raises(KeyboardInterrupt):
        store.write(content())
    monkeypatch.undo()
    assert store.all() == []
    left = next(entry for entry in (tmp_path / "versions").iterdir())
    os.utime(left, (0, 0))
    store.prune(1)
    assert not left.exists()
    assert store.write(content()).id == store.all()[0].id


# ---------------------------------------------------------------------- live
def test_nothing_is_live_before_the_first_promotion(store):
    store.write(content())
    assert store.live() is None
    assert store.previous() is None


def test_promotion_makes_a_version_live_and_remembers_the_one_before(store, tmp_path):
    first, second = promoted(store, 1, 2)
    live = store.live()
    assert live is not None
    assert (live.id, store.previous()) == (second, first)
    pointer = json.loads((tmp_path / "live.json").read_text())
    assert (pointer["version"], pointer["previous"]) == (second, first)


def test_promoting_the_live_version_again_changes_nothing(store):
    first, second = promoted(store, 1, 2)
    store.promote(second)
    assert store.previous() == first


def test_rolling_back_goes_one_version_further_each_time(store):
    first, second, _ = promoted(store, 1, 2, 3)
    assert store.roll_back().id == second
    assert store.roll_back().id == first
    with pytest.raises(VersionMissing):
        store.roll_back()
    live = store.live()
    assert live is not None
    assert live.id == first


def test_a_missing_version_cannot_go_live(store):
    (first,) = promoted(store, 1)
    with pytest.raises(VersionError):
        store.promote("g9-none")
    live = store.live()
    assert live is not None
    assert live.id == first


def test_pruning_keeps_the_newest_the_live_and_the_previous(store):
    ids = [store.write(content(generation)).id for generation in range(1, 8)]
    store.promote(ids[0])
    store.promote(ids[2])
    removed = store.prune(2)
    assert set(removed) == {ids[1], ids[3], ids[4]}
    assert {info.id for info in store.all()} == {ids[0], ids[2], ids[5], ids[6]}
    assert store.roll_back().id == ids[0]


def test_rolling_back_passes_over_versions_that_were_pruned(store):
    ids = promoted(store, 1, 2, 3, 4)
    store.prune(0)
    assert [info.id for info in store.all()] == [ids[3], ids[2]]
    assert store.roll_back().id == ids[2]
    with pytest.raises(VersionMissing):
        store.roll_back()


def test_processes_that_promote_at_once_lose_no_promotion(tmp_path):
    ids = [VersionStore(tmp_path).write(content(generation)).id for generation in range(1, 9)]
    start = threading.Barrier(len(ids))

    def promote(version):
        start.wait()
        VersionStore(tmp_path).promote(version)  # a store of its own: the lock is the file's

    with ThreadPoolExecutor(len(ids)) as pool:
        list(pool.map(promote, ids))
    pointer = json.loads((tmp_path / "live.json").read_text())
    assert sorted([*pointer["history"], pointer["version"]]) == sorted(ids)


def test_processes_that_write_the_same_version_at_once_write_one(tmp_path):
    start = threading.Barrier(6)

    def write(_):
        start.wait()
        return VersionStore(tmp_path).write(content()).id

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(write, range(6)))) == 1
    assert [entry.name for entry in (tmp_path / "versions").iterdir()] == [VersionStore(tmp_path).all()[0].id]


# ---------------------------------------------------------------------- files
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    files.write_bytes(path, b"old")

    def full(handle):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        files.write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_file_that_is_no_json_object_is_said_to_be_damaged(tmp_path):
    path = tmp_path / "a.json"
    assert files.read_json(path) is None
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(CheckpointCorrupt, match="JSON object"):
            files.read_json(path)


def test_waiting_for_a_lock_ends_when_asked_to_stop(tmp_path):
    path = tmp_path / "lock"
    with files.locked(path) as held:
        assert held
        with files.locked(path, lambda: True) as second:
            assert not second
    with files.locked(path, lambda: True) as third:
        assert third


def test_of_many_versions_the_newest_few_are_named_and_the_others_counted():
    message = str(VersionMissing("g999", [f"g{n}" for n in range(1, 98)]))
    assert message == "no model version 'g999'; stored: g90, g91, g92, g93, g94, g95, g96, g97 and 89 older"
