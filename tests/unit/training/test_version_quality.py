"""What a version keeps of its uncertainty's quality, and the labels it thinks possible, on a small pool in memory."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from training import api, pool_features
from uncertainty.conformal import fit as fit_sets
from uncertainty.conformal import never_empty

DIGITS = load_digits(n_class=4)
IDS = list(range(100, 500))
# The digits lie writer by writer: unshuffled, the later ones are not drawn as the earlier ones were.
ROW = dict(zip(IDS, np.random.default_rng(0).permutation(len(DIGITS.target))[: len(IDS)].tolist(), strict=True))
TRUTH = {i: int(DIGITS.target[ROW[i]]) for i in IDS}
CLASSES = ("0", "1", "2", "3")


class Pixels:
    """Stands in for learnt features: sixteen coarse pixels."""

    id, width, input_size = "pixels", 16, 8

    def embed(self, images):
        grey = np.asarray(images, np.float32)[..., 0]  # [n, 8, 8, 3], all three alike
        return grey.reshape(len(grey), 4, 2, 4, 2).mean(axis=(2, 4)).reshape(len(grey), 16) + 1

    def save(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.id)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    def load(example):
        buffer = io.BytesIO()
        Image.fromarray((DIGITS.images[ROW[example.example_id]] * 15.9).astype(np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_features.PoolFeatures, "learn", staticmethod(lambda sample, seed: Pixels()))
        patch.setattr(pool_features.PoolFeatures, "load", staticmethod(lambda path: Pixels()))
        model = api.ProjectModel(tmp_path_factory.mktemp("project"), api.ModelSpec())
        assert model.embed([api.Example(i, "") for i in IDS], load).embedded == len(IDS)
        yield model


def fit(model, train=IDS[:12], audit=IDS[12:212], generation=1, noise=0):
    """A version; the first `noise` of the audit labels are wrong."""
    measured = {i: (TRUTH[i] + (place < noise)) % 4 for place, i in enumerate(audit)}
    return model.fit(
        api.LabelledSet({i: TRUTH[i] for i in train}, CLASSES),
        api.LabelledSet(measured, CLASSES),
        generation=generation,
        source={},
    )


def test_a_version_keeps_what_was_measured_and_reads_it_back(model):
    info = fit(model, noise=20)
    assert info == model.newest()
    assert info.metrics["audit_n"] == 200
    for name in ("brier", "ece_debiased", "ece_low", "aurc", "auroc", "coverage_at_95", "set_size"):
        assert info.metrics[name] is not None
    ranking = info.error_ranking
    assert ranking.examples == 200 and ranking.errors >= 20
    assert {"msp", "margin", "label_agreement"} <= ranking.aurc.keys()
    assert ranking.aurc["msp"] == pytest.approx(info.metrics["aurc"], abs=0.01)


def test_the_order_of_confidences_is_that_of_the_version_as_it_predicts(model):
    from uncertainty.selective import aurc

    info = fit(model, generation=2, noise=20)
    audit = model._versions.audit_labels(info.id)
    predicted = model.predict(info.id, list(audit)).probabilities.astype(np.float64)
    right = predicted.argmax(1) == np.array(list(audit.values()))
    two = np.sort(predicted, axis=1)[:, -2:]
    assert info.error_ranking.aurc["margin"] == pytest.approx(aurc(two[:, 1] - two[:, 0], right), abs=1e-4)


def test_a_version_with_few_audit_labels_has_no_order_of_confidences(model):
    info = fit(model, audit=IDS[12:60], generation=3, noise=20)
    assert info.error_ranking is None
    assert info.metrics["set_size"] is None and info.metrics["aurc"] is not None


def test_a_manifest_of_an_older_release_is_still_read(model):
    info = fit(model, generation=4)
    path = next((model._home / "versions").glob(f"{info.id}/manifest.json"))
    manifest = json.loads(path.read_text())
    del manifest["error_ranking"]
    manifest["metrics"] = {"audit_n": 200.0, "accuracy": 0.9}
    from training.versions import _content_digest

    manifest["id"] = f"g4-{_content_digest(manifest)}"
    old = path.parent.with_name(manifest["id"])
    path.parent.rename(old)
    (old / "manifest.json").write_text(json.dumps(manifest))
    read = model._versions.info(manifest["id"])
    assert read.error_ranking is None and read.metrics["accuracy"] == 0.9


# ---------------------------------------------------------------------- possible labels
def test_possible_labels_come_from_the_audit_labels_of_the_version(model):
    info = fit(model, generation=5, noise=10)
    found = model.possible_labels(info.id, [*IDS[212:], 99_999], misses=0.1)
    audit = model._versions.audit_labels(info.id)
    on_audit = model.predict(info.id, list(audit)).probabilities
    expected = fit_sets(on_audit, list(audit.values()), alpha=0.1)
    left = model.predict(info.id, IDS[212:]).probabilities
    np.testing.assert_array_equal(found.sets[:-1], never_empty(expected.sets(left), left))
    assert found.sets[:-1].any(axis=1).all()
    assert found.known.tolist() == [True] * 188 + [False] and not found.sets[-1].any()
    assert (found.labels, found.misses) == (200, 0.1)


def test_the_truth_is_among_the_possible_labels_as_often_as_promised(model):
    found = model.possible_labels(fit(model, generation=6).id, IDS[212:])
    held = found.sets[np.arange(188), [TRUTH[i] for i in IDS[212:]]].mean()
    # 200 calibration labels, 188 measured: the standard deviation of the coverage is 0.03.
    assert 0.81 < held <= 1
    assert found.sets.sum(1).mean() < 2.5


def test_a_promise_by_class_needs_fifty_labels_of_each(model):
    version = fit(model, generation=7).id
    overall = model.possible_labels(version, IDS[212:])
    by_class = model.possible_labels(version, IDS[212:], per_class=True)
    assert (by_class.sets != overall.sets).any()


def test_with_few_audit_labels_nothing_is_promised(model):
    assert model.possible_labels(fit(model, audit=IDS[12:61], generation=8).id, IDS[:3]) is None
    assert model.possible_labels(fit(model, generation=9).id, IDS[:3], misses=0.001) is None
