"""One project's model from first picture to served prediction, with the real parts on a small real pool."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from training import api
from training.embeddings import EmbeddingStore
from training.errors import CheckpointCorrupt, DataError, LabelSpaceChanged, NoTrainableExamples, VersionMissing
from training.representation import Representations

ROOT = Path(__file__).parents[3]
DIGITS = load_digits(n_class=3)
POOL = 90
CLASSES = ("0", "1", "2")
FIRST = 500  # example ids are not row numbers
EXAMPLES = [api.Example(FIRST + i, f"digit-{i}") for i in range(POOL)]
IDS = [example.example_id for example in EXAMPLES]
TRUTH = {FIRST + i: int(DIGITS.target[i]) for i in range(len(DIGITS.target))}


def nobody(example_id):
    return False


def load(example):
    buffer = io.BytesIO()
    pixels = (DIGITS.images[example.example_id - FIRST] * 15.9).astype(np.uint8)
    Image.fromarray(pixels).resize((32, 32)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """A home whose pool is embedded once for the module; tests work on copies."""
    home = tmp_path_factory.mktemp("embedded")
    report = api.ProjectModel(home, api.ModelSpec()).embed(EXAMPLES, load)
    assert (report.embedded, report.unreadable) == (POOL, {})
    return home


@pytest.fixture
def home(embedded, tmp_path):
    shutil.copytree(embedded, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def model(home):
    return api.ProjectModel(home, api.ModelSpec())


def labels(ids, classes=CLASSES):
    return api.LabelledSet({i: TRUTH[i] for i in ids}, classes)


def fit(model, ids=tuple(IDS[:40]), audit=tuple(IDS[40:50]), generation=1):
    return model.fit(labels(ids), labels(audit), generation=generation, source={})


def rank(model, version=None, unlabelled=tuple(IDS), labelled=(), **changes):
    values = {"pending": [], "audit": nobody, "strategy": "uherding", "front": 20, "layers": api.Shares(), "seed": 0}
    return model.rank(version, unlabelled, labelled, **(values | changes))


class FakeFeatures:
    """Stands in for learnt features where only their identity matters."""

    def __init__(self, name, width=5):
        self.id, self.width, self.input_size = name, width, 8

    def embed(self, images):
        return images.reshape(len(images), -1)[:, : self.width].astype(np.float32) + 1

    def save(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.id)


@pytest.fixture
def fake_learning(monkeypatch):
    """Learning gives features named after the number of pictures; returns the list of those numbers."""
    from training import pool_features

    learnt = []

    def learn(sample, seed):
        learnt.append(len(sample))
        return FakeFeatures(f"of-{len(sample)}")

    monkeypatch.setattr(pool_features.PoolFeatures, "learn", staticmethod(learn))
    monkeypatch.setattr(pool_features.PoolFeatures, "load", staticmethod(lambda path: FakeFeatures(path.read_text())))
    return learnt


# ---------------------------------------------------------------------- the whole way
def test_a_few_rounds_of_asking_and_fitting_learn_the_pool(model):
    known, version = {}, None
    for generation in range(1, 4):
        left = [i for i in IDS if i not in known]
        asked = rank(model, version, left, list(known), front=10, seed=generation).example_ids[:10]
        known |= {i: TRUTH[i] for i in asked.tolist()}
        version = fit(model, tuple(known), audit=(), generation=generation).id
        model.promote(version)
    left = [i for i in IDS if i not in known]
    predictions = model.predict(version, left)
    assert (predictions.probabilities.argmax(1) == [TRUTH[i] for i in left]).mean() > 0.9
    assert [info.generation for info in model.versions()] == [3, 2, 1]


# ---------------------------------------------------------------------- the pool
def test_before_anything_is_embedded_nothing_is_claimed(tmp_path):
    model = api.ProjectModel(tmp_path / "new", api.ModelSpec())
    assert model.representation() is None
    assert (model.embedded_ids().tolist(), model.unreadable(), model.versions()) == ([], {}, [])
    assert (model.live(), model.newest()) == (None, None)
    ranking = rank(model)
    assert sorted(ranking.example_ids.tolist()) == IDS
    assert {ranking[i].reason for i in range(len(ranking))} == {"unread"}
    with pytest.raises(NoTrainableExamples):
        fit(model)


def test_the_representation_says_what_it_is_worth(model):
    representation = model.representation()
    assert (representation.kind, representation.learnt_on) == ("pool", POOL)
    assert "without pretrained weights" in representation.note
    assert model.embedded_ids().tolist() == IDS


def test_what_is_embedded_is_not_loaded_again(model):
    def refuse(example):
        raise AssertionError(f"{example} was loaded")

    report = model.embed(EXAMPLES, refuse)
    assert (report.embedded, report.skipped) == (0, POOL)


def test_another_process_sees_new_examples_after_a_refresh(model, home):
    other = api.ProjectModel(home, api.ModelSpec())
    assert len(other.embedded_ids()) == POOL
    model.embed([*EXAMPLES, api.Example(FIRST + POOL, "new")], load)
    other.refresh_pool()
    assert len(other.embedded_ids()) == POOL + 1


def test_an_unreadable_picture_costs_only_itself(model):
    broken = api.Example(9_999, "broken")
    report = model.embed([*EXAMPLES, broken], lambda example: b"not a picture")
    assert list(report.unreadable) == [9_999]
    assert list(model.unreadable()) == [9_999]
    ranking = rank(model, None, [*IDS, 9_999])
    assert ranking[len(ranking) - 1] == api.Ranked(9_999, 0.0, None, "unread")


def test_one_picture_is_too_few_to_learn_from_and_is_embedded_once_there_are_more(tmp_path):
    model = api.ProjectModel(tmp_path, api.ModelSpec())
    report = model.embed(EXAMPLES[:1], load)
    assert (report.embedded, report.skipped, model.representation()) == (0, 1, None)


def test_a_pool_without_a_readable_picture_says_why(tmp_path):
    report = api.ProjectModel(tmp_path, api.ModelSpec()).embed(EXAMPLES[:3], lambda example: b"")
    assert report.unreadable.keys() == set(IDS[:3])


def test_being_asked_to_stop_before_learning_leaves_nothing(tmp_path):
    model = api.ProjectModel(tmp_path, api.ModelSpec())
    assert model.embed(EXAMPLES, load, should_stop=lambda: True).embedded == 0
    assert model.representation() is None


# ---------------------------------------------------------------------- new representations
def test_features_are_learnt_once_by_whichever_process_comes_first(tmp_path, fake_learning):
    for _ in range(3):
        api.ProjectModel(tmp_path, api.ModelSpec()).embed(EXAMPLES[:20], load)
    assert fake_learning == [20]


def test_a_pool_that_grew_four_times_gets_new_features_and_is_embedded_again(tmp_path, fake_learning):
    model = api.ProjectModel(tmp_path, api.ModelSpec())
    for size in (20, 79, 80, 81):
        model.embed(EXAMPLES[:size], load)
        assert model.representation().id == ("of-20" if size < 80 else "of-80")
        assert len(model.embedded_ids()) == size
    assert fake_learning == [20, 80]


def test_old_features_stay_in_use_until_the_new_ones_are_complete(tmp_path, fake_learning, monkeypatch):
    model = api.ProjectModel(tmp_path, api.ModelSpec())
    model.embed(EXAMPLES[:20], load)
    version = fit(model, IDS[:15], audit=()).id
    seen = []

    def watch(settled, total):
        seen.append(model.representation().id)

    model.embed(EXAMPLES[:80], load, progress=watch, should_stop=lambda: len(seen) > 2)
    assert set(seen) == {"of-20"}
    assert model.representation().id == "of-20"
    model.embed(EXAMPLES[:80], load)
    assert model.representation().id == "of-80"
    # A version predicts with the features it was made from.
    assert model.predict(version, IDS[:20]).known.all()
    assert not model.predict(version, IDS[30:40]).known.any()


def test_a_call_with_few_examples_does_not_hide_the_many_embedded_before(tmp_path, monkeypatch):
    model = api.ProjectModel(tmp_path, api.ModelSpec())
    monkeypatch.setattr(Representations, "_backbone", lambda self: described(self, FakeFeatures("second")))
    store = EmbeddingStore(tmp_path / "pool", FakeFeatures("first"))
    store.embed(EXAMPLES, load)
    described(model._representations, FakeFeatures("first"))
    model._representations._aim_at("first")
    with_weights = api.ProjectModel(tmp_path, api.ModelSpec(weights="w.pth"))
    with_weights.embed(EXAMPLES[:5], load)
    assert with_weights.representation().id == "first"
    with_weights.embed(EXAMPLES, load)
    assert with_weights.representation().id == "second"


def described(representations, features):
    representations._describe(
        api.Representation(features.id, "backbone", features.id, features.width, "a fake for this test")
    )
    return features


def test_pictures_that_cannot_be_read_do_not_make_every_call_learn_again(tmp_path, fake_learning):
    def sometimes(example):
        if example.example_id % 10:
            raise OSError("away")
        return load(example)

    model = api.ProjectModel(tmp_path, api.ModelSpec())
    for _ in range(3):
        model.embed(EXAMPLES, sometimes)
    assert fake_learning == [9]


def test_damaged_features_are_learnt_again(home):
    path = next(home.glob("pool/*/features.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    model = api.ProjectModel(home, api.ModelSpec())
    before = model.representation().id
    report = model.embed(EXAMPLES, load)
    assert (report.skipped, model.representation().id) == (POOL, before)  # the same pictures give the same features


def test_a_backbone_with_weights_replaces_features_learnt_from_the_pool(model, home, tmp_path):
    import torch

    from training.torchvision_ops import torchvision

    torch.manual_seed(0)
    weights = tmp_path / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1(num_classes=4).state_dict(), weights)
    version = fit(model).id
    spec = api.ModelSpec(
        "squeezenet1_1", str(weights), mean=(0.5,) * 3, std=(0.5,) * 3, input_size=32, engines_dir=tmp_path / "engines"
    )
    better = api.ProjectModel(home, spec)
    assert better.representation().kind == "pool"
    report = better.embed(EXAMPLES, load)
    representation = better.representation()
    assert (report.embedded, representation.kind, representation.name) == (POOL, "backbone", "squeezenet1_1")
    assert len(better.embedded_ids()) == POOL
    assert better.predict(version, IDS).known.all()  # the old version keeps its features
    assert fit(better, generation=2).representation == representation.id
    # Without weights again, what was learnt before is taken up and nothing is embedded twice.
    assert api.ProjectModel(home, api.ModelSpec()).embed(EXAMPLES, load).skipped == POOL


# ---------------------------------------------------------------------- fitting
def test_a_version_knows_its_labels_and_what_it_is_worth(model):
    info = fit(model)
    assert (info.labels_used, info.classes, info.generation) == (40, CLASSES, 1)
    assert info.representation == model.representation().id
    assert info.metrics["audit_n"] == 10
    assert info.metrics["accuracy"] > 0.6
    assert model.labels_of(info.id) == {i: str(TRUTH[i]) for i in IDS[:50]}
    assert model.newest() == info
    assert model.live() is None


def test_metrics_are_those_of_the_stored_version_on_the_audit_labels(model):
    info = fit(model)
    p = model.predict(info.id, IDS[40:50]).probabilities
    y = [TRUTH[i] for i in IDS[40:50]]
    assert info.metrics["accuracy"] == pytest.approx((p.argmax(1) == y).mean())
    assert info.metrics["nll"] == pytest.approx(-np.log(p[np.arange(10), y]).mean(), rel=1e-4)


def test_audit_labels_are_never_trained_on(model):
    honest = fit(model)
    mixed = model.fit(labels(IDS[:50]), labels(IDS[40:50]), generation=1, source={})
    assert (mixed.labels_used, mixed.labels_digest) == (40, honest.labels_digest)
    np.testing.assert_allclose(
        model.predict(mixed.id, IDS).probabilities, model.predict(honest.id, IDS).probabilities, atol=5e-3
    )


def test_fitting_twice_gives_the_same_version(model, home):
    first = fit(model)
    assert fit(api.ProjectModel(home, api.ModelSpec())).labels_digest == first.labels_digest
    shutil.rmtree(home / "versions")
    assert fit(api.ProjectModel(home, api.ModelSpec())).id == first.id


def test_labels_of_examples_that_are_not_embedded_are_left_out(model):
    info = model.fit(
        api.LabelledSet({i: TRUTH[i] for i in IDS[:30]} | {77_777: 1}, CLASSES),
        api.LabelledSet({88_888: 1}, CLASSES),
        generation=1,
        source={},
    )
    assert (info.labels_used, info.metrics["audit_n"]) == (30, 0)


def test_labels_that_cannot_be_used_are_refused_with_the_reason(model):
    with pytest.raises(NoTrainableExamples, match="0 of them are embedded"):
        model.fit(api.LabelledSet({77_777: 1}, CLASSES), labels([]), generation=1, source={})
    with pytest.raises(NoTrainableExamples):
        model.fit(labels([]), labels([]), generation=1, source={})
    with pytest.raises(DataError, match="3 classes"):
        model.fit(api.LabelledSet({IDS[0]: 3}, CLASSES), labels([]), generation=1, source={})
    with pytest.raises(LabelSpaceChanged, match="d"):
        model.fit(labels(IDS[:3]), labels([], ("0", "1", "d")), generation=1, source={})


def test_one_label_is_enough_for_a_version(model):
    info = fit(model, IDS[:1], audit=())
    probabilities = model.predict(info.id, IDS).probabilities
    assert (probabilities.argmax(1) == TRUTH[IDS[0]]).all()
    assert len(rank(model, info.id, IDS[1:], IDS[:1])) == POOL - 1


def test_added_removed_and_reordered_classes_are_fitted_anew(model):
    fit(model)
    for generation, classes in enumerate([("0", "1", "2", "3"), ("2", "0", "1")], start=2):
        truth = {i: classes.index(str(TRUTH[i])) for i in IDS[:40]}
        info = model.fit(
            api.LabelledSet(truth, classes), api.LabelledSet({}, classes), generation=generation, source={}
        )
        best = model.predict(info.id, IDS[40:]).probabilities.argmax(1)
        assert np.mean([classes[b] == str(TRUTH[i]) for b, i in zip(best, IDS[40:], strict=True)]) > 0.8


def test_weights_change_the_fit(model):
    plain = fit(model, audit=())
    heavy = model.fit(replace(labels(IDS[:40]), weights={IDS[0]: 50.0}), labels([]), generation=1, source={})
    own = [model.predict(info.id, IDS[:1]).probabilities[0, TRUTH[IDS[0]]] for info in (plain, heavy)]
    assert own[1] > own[0]


def test_a_worse_candidate_is_recognised_on_paired_audit_labels(model):
    good = fit(model, audit=()).id
    turned = {i: (TRUTH[i] + 1) % 3 for i in IDS[:40]}
    bad = model.fit(api.LabelledSet(turned, CLASSES), labels([]), generation=2, source={}).id
    audit = labels(IDS[40:])
    assert model.compare(bad, good, audit).worse
    assert not model.compare(good, bad, audit).worse
    assert not model.compare(good, good, audit).worse
    assert model.compare(good, bad, audit).examples == POOL - 40


# ---------------------------------------------------------------------- predicting and ranking
def test_predictions_come_in_the_order_asked_for_and_say_what_is_not_known(model):
    version = fit(model).id
    asked = [IDS[5], 77_777, IDS[2]]
    predictions = model.predict(version, asked)
    assert predictions.known.tolist() == [True, False, True]
    np.testing.assert_allclose(predictions.probabilities[predictions.known].sum(1), 1, atol=1e-5)
    assert not predictions.probabilities[1].any()
    np.testing.assert_allclose(
        predictions.probabilities[[2, 0]], model.predict(version, [IDS[2], IDS[5]]).probabilities, atol=1e-6
    )
    assert model.predict(version, []).probabilities.shape == (0, 3)


def test_predictions_find_what_was_embedded_since(model, home):
    version = fit(model).id
    reader = api.ProjectModel(home, api.ModelSpec())
    assert not reader.predict(version, [FIRST + POOL]).known.any()
    model.embed([*EXAMPLES, api.Example(FIRST + POOL, "new")], load)
    assert reader.predict(version, [FIRST + POOL]).known.all()


def test_confidence_of_the_ranking_is_that_of_the_predictions(model):
    version = fit(model).id
    ranking = rank(model, version, IDS[50:], IDS[:50])
    probabilities = model.predict(version, ranking.example_ids).probabilities
    np.testing.assert_allclose(ranking.confidence, probabilities.max(1), atol=2e-3)
    np.testing.assert_array_equal(ranking.label, probabilities.argmax(1))


def test_the_order_holds_pending_first_then_all_others_then_the_last_ones(model):
    version = fit(model).id
    ranking = rank(model, version, [*IDS[50:], 77_777], IDS[:50], pending=[IDS[60], IDS[3]], last=[IDS[0], IDS[1]])
    assert ranking.example_ids[0] == IDS[60]
    assert ranking.example_ids[-1] == 77_777
    assert set(ranking.example_ids[-3:-1].tolist()) == {IDS[0], IDS[1]}
    assert sorted(ranking.example_ids.tolist()) == sorted([*IDS[50:], IDS[0], IDS[1], 77_777])
    assert (ranking.confidence <= ranking.confidence[-1]).all()


def test_the_order_takes_in_what_was_embedded_since_it_was_last_asked_for(model):
    version, new = fit(model).id, FIRST + POOL
    left = [*IDS[50:], new]
    assert rank(model, version, left, IDS[:50])[POOL - 50].reason == "unread"
    model.embed([*EXAMPLES, api.Example(new, "new")], load)
    ranking = rank(model, version, left, IDS[:50])
    assert "unread" not in {ranking[i].reason for i in range(len(ranking))}
    probabilities = model.predict(version, ranking.example_ids).probabilities
    np.testing.assert_allclose(ranking.confidence, probabilities.max(1), atol=2e-3)


@pytest.mark.parametrize(("share", "places"), [(0.1, 2), (0.3, 6), (0.5, 10)])
def test_the_audit_slice_gets_its_share_of_the_places_in_front(model, share, places):
    order = rank(model, audit=api.AuditStream(share), front=20)
    assert sum(map(api.AuditStream(share), order.example_ids[:20].tolist())) == places


def test_the_audit_stream_may_be_a_function_or_an_object(model):
    stream = api.AuditStream(0.1)
    version = fit(model).id
    one = rank(model, version, IDS[50:], IDS[:50], audit=stream)
    other = rank(model, version, IDS[50:], IDS[:50], audit=lambda i: stream(i))
    np.testing.assert_array_equal(one.example_ids, other.example_ids)
    audited = one.example_ids[one.reason == api.REASONS.index("audit")]
    assert set(audited.tolist()) == {i for i in IDS[50:] if stream(i)}


@pytest.mark.parametrize("strategy", [info.name for info in api.list_strategies()])
@pytest.mark.parametrize("cold", [True, False])
def test_every_strategy_orders_the_whole_pool(model, strategy, cold):
    version = None if cold else fit(model).id
    ranking = rank(model, version, IDS[50:], IDS[:50], strategy=strategy)
    assert sorted(ranking.example_ids.tolist()) == IDS[50:]
    assert ranking.version == version


# ---------------------------------------------------------------------- versions
def test_promoting_rolling_back_and_pruning(model, home):
    ids = [fit(model, IDS[: 10 * generation], generation=generation).id for generation in (1, 2, 3)]
    for version in ids:
        model.promote(version)
    assert api.ProjectModel(home, api.ModelSpec()).live().id == ids[2]
    assert model.roll_back().id == ids[1]
    assert set(model.prune(1)) == set()
    model.promote(ids[1])
    with pytest.raises(VersionMissing):
        model.promote("g9-nothing")


def test_pruning_removes_features_that_nothing_needs(tmp_path, fake_learning):
    model = api.ProjectModel(tmp_path, api.ModelSpec())
    model.embed(EXAMPLES[:20], load)
    old = fit(model, IDS[:10], audit=()).id
    model.embed(EXAMPLES[:80], load)
    model.prune(5)
    assert {path.name for path in (tmp_path / "pool").glob("of-*")} == {"of-20", "of-80"}
    for generation in (2, 3):
        model.promote(fit(model, IDS[: 10 * generation], audit=(), generation=generation).id)
    assert old in model.prune(1)
    assert {path.name for path in (tmp_path / "pool").glob("of-*")} == {"of-80"}


def test_a_damaged_version_is_not_served(model, home):
    version = fit(model).id
    path = home / "versions" / version / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointCorrupt):
        model.predict(version, IDS[:2])


# ---------------------------------------------------------------------- what is imported
def test_predicting_imports_neither_torch_nor_scipy(model, home):
    version = fit(model).id
    model.promote(version)
    code = f"""
import sys, json
from pathlib import Path
from training import api
model = api.ProjectModel(Path({str(home)!r}), api.ModelSpec())
predictions = model.predict(model.live().id, {IDS[:5]})
about = [model.representation().id, len(model.embedded_ids()), [v.id for v in model.versions()]]
heavy = sorted({{name.partition(".")[0] for name in sys.modules}} & {{"torch", "scipy", "torchvision", "onnxruntime"}})
print(json.dumps([heavy, predictions.known.tolist(), predictions.probabilities.sum(1).round(4).tolist(), about[2]]))
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(ran.stdout) == [[], [True] * 5, [1.0] * 5, [version]]


def test_warming_up_loads_what_a_worker_needs():
    api.warm_up()
    assert {"torch", "scipy.optimize", "training.head", "uncertainty.strategies"} <= sys.modules.keys()
