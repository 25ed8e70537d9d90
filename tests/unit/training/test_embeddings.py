"""Embeddings are made once, by any number of processes, survive kills, and are read as they were written."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import embeddings, shards
from training.claims import Claims
from training.embeddings import EmbeddingStore, EmbeddingTable
from training.errors import DataError

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Picture:
    example_id: int
    uri: str


@dataclass
class MeanColour:
    """Features are the mean red, green and blue."""

    id: str = "mean-colour"
    width: int = 3
    input_size: int = 4
    calls: int = 0
    images: int = 0

    def embed(self, images):
        self.calls += 1
        self.images += len(images)
        return images.reshape(len(images), -1, 3).mean(1, dtype=np.float32)


def pictures(ids, version=""):
    return [Picture(i, f"http://pictures/{i}{version}") for i in ids]


def png(*colour):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), colour).save(buffer, "PNG")
    return buffer.getvalue()


def load(picture):
    return png(picture.example_id % 256, 7, 9)


def open_store(tmp_path, **options):
    return EmbeddingStore(tmp_path, options.pop("embedder", None) or MeanColour(), threads=2, **options)


def leftovers(folder):
    return [path.name for path in folder.iterdir() if not path.name.startswith("shard-")]


def test_rows_come_back_as_the_embedder_gave_them_in_the_order_asked_for(tmp_path):
    store = open_store(tmp_path)
    report = store.embed(pictures(range(0, 3000, 2)), load)
    assert (report.embedded, report.skipped, report.unreadable) == (1500, 0, {})
    table = EmbeddingTable(store.folder)
    wanted = [2998, 0, 512, 512, 30]
    expected = [[i % 256, 7, 9] for i in wanted]
    assert table.rows(wanted).tolist() == expected
    assert table.rows(wanted).dtype == np.float32
    assert table.rows(wanted, np.float16).dtype == np.float16
    assert table.ids.tolist() == list(range(0, 3000, 2))
    assert table.width == 3
    assert len(table) == 1500
    assert table.known([1, 2, 99999, -5]).tolist() == [False, True, False, False]
    assert not leftovers(store.folder)


def test_an_empty_pool_has_an_empty_table(tmp_path):
    store = open_store(tmp_path)
    assert store.embed([], load).embedded == 0
    table = EmbeddingTable(store.folder)
    assert (len(table), table.width, table.unreadable()) == (0, None, {})
    assert table.rows([]).shape == (0, 0)
    assert table.known([1]).tolist() == [False]
    assert not store.folder.exists()


def test_asking_for_a_row_that_is_not_there_names_the_example(tmp_path):
    store = open_store(tmp_path)
    store.embed(pictures([1, 2]), load)
    with pytest.raises(DataError, match="the first is 3"):
        store.table.rows([1, 3])


def test_what_is_embedded_is_not_embedded_again(tmp_path):
    store = open_store(tmp_path)
    store.embed(pictures(range(10)), load)
    again = open_store(tmp_path)
    report = again.embed(pictures(range(12)), load)
    assert (report.embedded, report.skipped) == (2, 10)
    assert again.embedder.images == 2


def test_an_example_given_twice_is_embedded_once(tmp_path):
    store = open_store(tmp_path)
    report = store.embed(pictures([5, 5, 5]), load)
    assert (report.embedded, report.skipped) == (1, 2)


def test_another_address_means_another_picture(tmp_path):
    store = open_store(tmp_path)
    store.embed(pictures([1, 2]), load)
    report = store.embed(pictures([1], version="?v=2"), lambda picture: png(200, 1, 1))
    assert report.embedded == 1
    assert EmbeddingTable(store.folder).rows([1, 2]).tolist() == [[200, 1, 1], [2, 7, 9]]


def test_a_picture_that_cannot_be_decoded_is_remembered_until_its_address_changes(tmp_path):
    store = open_store(tmp_path)
    asked = []

    def html(picture):
        asked.append(picture.example_id)
        return b"<html>" if picture.example_id == 2 else load(picture)

    report = store.embed(pictures([1, 2, 3]), html)
    assert report.embedded == 2
    assert "HTML" in report.unreadable[2]
    store.embed(pictures([1, 2, 3]), html)
    assert sorted(asked) == [1, 2, 3]
    table = EmbeddingTable(store.folder)
    assert list(table.unreadable()) == [2]
    assert table.ids.tolist() == [1, 3]
    assert store.embed(pictures([2], version="?v=2"), load).embedded == 1
    assert store.table.unreadable() == {}
    assert store.embed(pictures([2], version="?v=3"), html).unreadable.keys() == {2}
    assert store.table.ids.tolist() == [1, 3]


def test_a_picture_that_could_not_be_fetched_is_reported_and_tried_again(tmp_path):
    store = open_store(tmp_path)

    def down(picture):
        raise ConnectionError("Label Studio does not answer")

    assert store.embed(pictures([1, 2]), down).unreadable == dict.fromkeys([1, 2], "Label Studio does not answer")
    assert store.table.unreadable() == {}
    assert store.embed(pictures([1, 2]), load).embedded == 2


def test_features_that_are_not_finite_make_one_example_unreadable(tmp_path):
    class Broken(MeanColour):
        def embed(self, images):
            features = super().embed(images)
            features[features[:, 0] == 2] = np.nan
            return features

    report = open_store(tmp_path, embedder=Broken()).embed(pictures([1, 2, 3]), load)
    assert report.embedded == 2
    assert "finite" in report.unreadable[2]


def test_features_beyond_half_precision_are_kept_finite(tmp_path):
    class Large(MeanColour):
        def embed(self, images):
            return super().embed(images) * 1e6

    store = open_store(tmp_path, embedder=Large())
    store.embed(pictures([1]), load)
    assert store.table.rows([1]).tolist() == [[65504.0] * 3]


def test_an_embedder_that_gives_the_wrong_shape_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"wanted \(2, 4\)"):
        open_store(tmp_path, embedder=MeanColour(width=4)).embed(pictures([1, 2]), load)


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden"])
def test_an_embedder_id_that_cannot_name_a_folder_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="names a folder"):
        EmbeddingStore(tmp_path, MeanColour(id=name))


def test_representations_do_not_share_rows(tmp_path):
    open_store(tmp_path).embed(pictures([1]), load)
    assert open_store(tmp_path, embedder=MeanColour(id="another")).embed(pictures([1]), load).embedded == 1


def test_progress_grows_to_the_number_of_open_examples(tmp_path):
    store = open_store(tmp_path, batch_size=8)
    store.embed(pictures(range(5)), load)
    seen = []
    store.embed(pictures(range(40)), load, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 35)
    assert seen[-1] == (35, 35)
    assert seen == sorted(seen)


def test_stopping_keeps_what_was_finished_and_the_next_call_does_the_rest(tmp_path):
    store = open_store(tmp_path, batch_size=8)
    report = store.embed(pictures(range(100)), load, should_stop=lambda: store.embedder.calls == 3)
    assert (report.embedded, report.skipped) == (24, 76)
    assert len(EmbeddingTable(store.folder)) == 24
    assert not leftovers(store.folder)
    assert store.embed(pictures(range(100)), load).embedded == 76


def test_an_error_of_the_embedder_keeps_what_was_finished_and_frees_the_claims(tmp_path):
    class Failing(MeanColour):
        def embed(self, images):
            if self.calls == 2:
                raise MemoryError("no memory")
            return super().embed(images)

    store = open_store(tmp_path, embedder=Failing(), batch_size=8)
    with pytest.raises(MemoryError):
        store.embed(pictures(range(100)), load)
    assert not leftovers(store.folder)
    assert open_store(tmp_path).embed(pictures(range(100)), load).embedded == 84


def test_memory_is_bounded_because_loading_waits_for_the_embedder(tmp_path):
    loaded, most = 0, 0
    lock = threading.Lock()

    class Counting(MeanColour):
        def embed(self, images):
            nonlocal most
            most = max(most, loaded - self.images)
            return super().embed(images)

    def count(picture):
        nonlocal loaded
        with lock:
            loaded += 1
        return load(picture)

    open_store(tmp_path, embedder=Counting(), batch_size=4).embed(pictures(range(300)), count)
    assert most <= 16


def test_a_table_sees_what_others_write_after_a_refresh(tmp_path):
    store = open_store(tmp_path)
    store.embed(pictures([1]), load)
    table = EmbeddingTable(store.folder)
    open_store(tmp_path).embed(pictures([2]), load)
    assert table.ids.tolist() == [1]
    assert table.refresh() is True
    assert table.ids.tolist() == [1, 2]
    assert table.refresh() is False


@pytest.mark.parametrize("damage", ["rows cut", "list cut", "list of another format", "rows of another width"])
def test_a_damaged_shard_counts_as_absent_and_its_examples_are_embedded_again(tmp_path, damage, caplog):
    store = open_store(tmp_path)
    store.embed(pictures([1, 2]), load)
    rows, contents = next(store.folder.glob("*.npy")), next(store.folder.glob("*.json"))
    if damage == "rows cut":
        rows.write_bytes(rows.read_bytes()[:-1])
    elif damage == "list cut":
        contents.write_bytes(contents.read_bytes()[:-1])
    else:
        change = {"format": "other"} if damage == "list of another format" else {"width": 4}
        contents.write_text(json.dumps(json.loads(contents.read_text()) | change))
    again = open_store(tmp_path)
    assert len(again.table) == 0
    assert "damaged" in caplog.text
    assert again.embed(pictures([1, 2]), load).embedded == 2
    assert len(EmbeddingTable(store.folder)) == 2


def many_small_shards(store, count=40):
    for i in range(count):
        store.embed(pictures([3 * i, 3 * i + 1]), lambda p: b"<html>" if p.example_id % 3 else load(p))


def test_merging_small_shards_changes_no_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "_MERGE_FROM", 10**9)
    store = open_store(tmp_path)
    many_small_shards(store)
    store.embed(pictures([0], version="?v=2"), lambda p: png(99, 99, 99))
    before = EmbeddingTable(store.folder)
    rows, broken, files = before.rows(before.ids), before.unreadable(), len(shards.names(store.folder))
    monkeypatch.setattr(embeddings, "_MERGE_FROM", 2)
    assert store.compact() == files - 1
    assert len(shards.names(store.folder)) == 1
    for table in (before, EmbeddingTable(store.folder)):
        table.refresh()
        assert np.array_equal(table.rows(table.ids), rows)
        assert table.unreadable() == broken
    assert before.rows([0]).tolist() == [[99, 99, 99]]
    assert store.embed(pictures([3, 4]), load).embedded == 0


def test_a_reader_keeps_its_rows_while_shards_are_merged_under_it(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "_MERGE_FROM", 10**9)
    store = open_store(tmp_path)
    many_small_shards(store, 10)
    reader = EmbeddingTable(store.folder)
    monkeypatch.setattr(embeddings, "_MERGE_FROM", 2)
    store.compact()
    assert reader.rows([27]).tolist() == [[27, 7, 9]]


def test_rows_keep_their_age_however_often_their_shards_are_merged(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()

    def write(stamp, value, *ids):
        row = np.full(3, value, np.float16)
        return shards.write(folder, 3, [shards.Entry(i, shards.uri_digest("x"), row) for i in ids], [stamp] * len(ids))

    def merged(*names):
        return embeddings.merge(folder, [shards.read(folder, name) for name in names])

    first = merged(write(5, 1, 1, 2), write(9, 1, 3))
    write(7, 2, 1)  # newer than the row of example 1, older than the newest of the merged shard; in no merge
    merged(first, write(11, 1, 4))
    assert EmbeddingTable(folder).rows([1, 2, 3, 4])[:, 0].tolist() == [2, 1, 1, 1]


def test_shards_are_merged_during_a_long_run(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "_PIECE", 4)
    monkeypatch.setattr(embeddings, "_MERGE_FROM", 5)
    store = open_store(tmp_path)
    assert store.embed(pictures(range(200)), load).embedded == 200
    assert len(shards.names(store.folder)) < 10
    assert store.table.rows(range(200))[:, 0].tolist() == list(range(200))


def test_a_piece_that_another_process_holds_is_waited_for(tmp_path):
    store = open_store(tmp_path)
    other = open_store(tmp_path)
    with Claims(store.folder) as claims:
        assert claims.take("piece-0")

        def finish(done, total):
            if done == 0:  # while this call waits, the holder writes its shard and frees the piece
                entry = shards.Entry(1, shards.uri_digest("http://pictures/1"), np.full(3, 42, np.float16))
                shards.write(store.folder, 3, [entry], [1])
                claims.free("piece-0")

        report = other.embed(pictures([1]), load, progress=finish)
    assert (report.embedded, report.skipped) == (0, 1)
    assert other.table.rows([1]).tolist() == [[42, 42, 42]]


def test_waiting_for_another_process_ends_when_told_to_stop(tmp_path):
    store = open_store(tmp_path)
    with Claims(store.folder) as claims:
        claims.take("piece-0")
        report = store.embed(pictures([1]), load, should_stop=iter([False, False, True]).__next__)
    assert (report.embedded, report.skipped) == (0, 1)


def test_a_claim_is_held_by_one(tmp_path):
    with Claims(tmp_path) as one, Claims(tmp_path) as two:
        assert one.take("a")
        assert not two.take("a")
        assert not one.take("a")
        one.free("a")
        assert two.take("a")
    assert list(tmp_path.iterdir()) == []


def test_a_claim_without_heart_beat_is_taken_over_and_the_old_holder_cannot_free_it(tmp_path):
    with Claims(tmp_path, stale_s=60) as one, Claims(tmp_path, stale_s=60) as two, Claims(tmp_path) as three:
        one.take("a")
        os.utime(tmp_path / "a.claim", (0, 0))
        assert two.take("a")
        one.free("a")
        assert not three.take("a")


def test_a_heart_beat_keeps_a_claim_young(tmp_path):
    with Claims(tmp_path, beat_s=0.01) as one:
        one.take("a")
        os.utime(tmp_path / "a.claim", (0, 0))
        beaten = threading.Event()
        for _ in range(1000):
            if (tmp_path / "a.claim").stat().st_mtime > 0:
                beaten.set()
                break
            beaten.wait(0.01)
        assert beaten.is_set()


def test_a_claim_of_a_dead_process_here_is_free_at_once(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    with Claims(tmp_path) as one, Claims(tmp_path) as two:
        one.take("a")
        path = tmp_path / "a.claim"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": int(dead.stdout)}))
        assert two.take("a")


def test_leftovers_of_killed_writers_are_removed_once_they_are_old(tmp_path):
    store = open_store(tmp_path)
    store.embed(pictures([1]), load)
    old, young = store.folder / "shard-old.npy", store.folder / ".shard-young.npy.draft"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.compact()
    assert not old.exists()
    assert young.exists()
    assert len(EmbeddingTable(store.folder)) == 1


WORKER = """
import sys
sys.path[:0] = [{root!r}, {here!r}]
from pathlib import Path
from test_embeddings import MeanColour, load, pictures
from training.embeddings import EmbeddingStore
class Slow(MeanColour):
    def embed(self, images):
        if {hang} and self.calls == 40:
            print("hanging", flush=True); sys.stdin.read()
        return super().embed(images)
store = EmbeddingStore(Path({folder!r}), Slow(), threads=1, batch_size=16)
print(store.embed(pictures(range(1500)), load).embedded, flush=True)
"""


def start_worker(tmp_path, hang=False):
    code = WORKER.format(root=str(ROOT), here=str(Path(__file__).parent), folder=str(tmp_path), hang=hang)
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_processes_share_the_work_and_no_example_is_embedded_twice(tmp_path):
    workers = [start_worker(tmp_path) for _ in range(2)]
    shares = [int(worker.communicate(timeout=60)[0]) for worker in workers]
    assert sum(shares) == 1500
    table = EmbeddingTable(tmp_path / "mean-colour")
    assert table.rows(range(1500))[:, 0].tolist() == [i % 256 for i in range(1500)]


def test_after_a_kill_the_rest_is_done_at_once_and_nothing_finished_is_lost(tmp_path):
    worker = start_worker(tmp_path, hang=True)
    assert worker.stdout.readline() == "hanging\n"
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    store = open_store(tmp_path)
    kept = len(store.table)
    assert kept == 512  # one piece of 512 was finished after 40 batches of 16
    report = store.embed(pictures(range(1500)), load)
    assert (report.embedded, report.skipped) == (1500 - kept, kept)
    assert store.table.rows(range(1500))[:, 0].tolist() == [i % 256 for i in range(1500)]
