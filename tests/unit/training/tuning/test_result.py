"""A tuned network on disk: the same answers after it was read again, and a weights file for the rest of the product."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from training.backbones import BackboneSpec, resolve
from training.engine import open_engine
from training.errors import CheckpointCorrupt, DataError
from training.torchvision_ops import torchvision
from training.tuning import (
    Examples,
    HeadSpec,
    Pictures,
    TuneSettings,
    Untrained,
    ensemble_probabilities,
    load,
    predict,
    tune,
)
from training.tuning.augment import whole

HEADS = (
    HeadSpec("digit", "single", tuple("0123456789"), inputs=("hint",)),
    HeadSpec("ink", "number"),
    HeadSpec('level / "odd name"', "ordinal", ("low", "middle", "high")),
    HeadSpec("tags", "multiple", ("dark",)),
)


@pytest.fixture(scope="module")
def tuned_and_pictures(digits, tmp_path_factory):
    """From weights on disk, so that heads are fitted first; all kinds of heads, one of them with an extra input."""
    images, digit = digits
    pictures = Pictures.of_array(np.arange(100), images[:100])
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_file(torchvision.models.get_model("squeezenet1_1", weights=None).state_dict(), folder / "start.safetensors")
    start = resolve(
        BackboneSpec("squeezenet1_1", str(folder / "start.safetensors"), 32, (0.4,) * 3, (0.3,) * 3), folder
    )
    ink = images[:100].mean((1, 2, 3))
    labelled = Examples(
        np.arange(60),
        {
            "digit": digit[:60],
            "ink": ink[:60],
            HEADS[2].name: np.digitize(ink[:60], [20, 80]),
            "tags": (ink[:60] > 60).astype(np.float32)[:, None],
        },
        {"hint": np.eye(10, dtype=np.float32)[digit[:60]]},
    )
    settings = TuneSettings(
        epochs=1, fewest_steps=0, held_out=0.4, mixing="cutmix", threads=1, accelerator="cpu", precision="32"
    )
    return tune(start, HEADS, labelled, pictures, settings), pictures


def test_the_answers_are_the_same_after_it_was_read_again(tuned_and_pictures, tmp_path):
    tuned, pictures = tuned_and_pictures
    tuned.save(tmp_path)
    ids = np.arange(60, 100)
    hint = {"hint": np.eye(10, dtype=np.float32)[np.arange(40) % 10]}
    for inputs in (None, hint):
        before, after = (predict(net, pictures, ids, inputs) for net in (tuned, load(tmp_path)))
        assert before.log_probabilities.keys() == {"digit", HEADS[2].name, "tags"} and before.numbers.keys() == {"ink"}
        for name, values in {**before.log_probabilities, **before.numbers}.items():
            assert np.array_equal(values, {**after.log_probabilities, **after.numbers}[name])
        assert np.array_equal(before.features, after.features)
    again = load(tmp_path)
    assert (again.heads, again.history, again.best_epoch, again.reason) == (
        tuned.heads,
        tuned.history,
        tuned.best_epoch,
        tuned.reason,
    )
    assert again.held_out.tolist() == tuned.held_out.tolist() and again.number_error == tuned.number_error


def test_its_trunk_is_a_backbone_like_any_other(tuned_and_pictures, tmp_path):
    tuned, pictures = tuned_and_pictures
    path = tuned.save(tmp_path)
    backbone = resolve(BackboneSpec("squeezenet1_1", str(path)), tmp_path)
    assert (backbone.input_size, backbone.mean, backbone.std) == (32, (0.4,) * 3, (0.3,) * 3)
    engine = open_engine(backbone, tmp_path / "engines", threads=1)
    images = np.stack(
        [whole(torch.from_numpy(pictures.get(i)).permute(2, 0, 1), 32).permute(1, 2, 0).numpy() for i in range(60, 70)]
    )
    expected = predict(tuned, pictures, np.arange(60, 70)).features
    found = engine.embed(images)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    assert np.abs(backbone.build()(torch.from_numpy(images)).numpy() - expected).max() < 1e-4


def test_an_extra_input_changes_only_the_head_it_conditions(tuned_and_pictures):
    tuned, pictures = tuned_and_pictures
    state = dict(tuned.state)
    state["conditions.0.out.weight"] = torch.randn_like(state["conditions.0.out.weight"])
    tuned = replace(tuned, state=state)
    ids = np.arange(60, 64)
    without = predict(tuned, pictures, ids)
    hint = np.eye(10, dtype=np.float32)[:4]
    with_hint = predict(tuned, pictures, ids, {"hint": hint})
    assert not np.allclose(without.log_probabilities["digit"], with_hint.log_probabilities["digit"])
    assert np.array_equal(without.log_probabilities["tags"], with_hint.log_probabilities["tags"])
    unknown = predict(tuned, pictures, ids, {"hint": np.full_like(hint, np.nan)})
    assert np.array_equal(without.log_probabilities["digit"], unknown.log_probabilities["digit"])
    with pytest.raises(DataError, match=r"'hint' must have the shape \[4, 10\]"):
        predict(tuned, pictures, ids, {"hint": hint[:, :3]})


def test_files_of_another_form_are_refused(tuned_and_pictures, tmp_path):
    tuned, _ = tuned_and_pictures
    with pytest.raises(CheckpointCorrupt, match="found nothing"):
        load(tmp_path)
    tuned.save(tmp_path)
    (tmp_path / "heads.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointCorrupt):
        load(tmp_path)
    (tmp_path / "heads.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(CheckpointCorrupt, match="'other'"):
        load(tmp_path)


def test_an_ensemble_is_the_mean_of_its_members_probabilities():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), (4, 5)).astype(np.float32)
    found = ensemble_probabilities([{"a": np.log(member)} for member in p])["a"]
    assert found == pytest.approx(p.mean(0), abs=1e-6)
    with pytest.raises(DataError, match="same heads"):
        ensemble_probabilities([{"a": p[0]}, {"b": p[0]}])


def test_a_network_from_nothing_is_saved_as_weights_too(digits, settings, tmp_path):
    images, digit = digits
    pictures = Pictures.of_array(np.arange(20), images[:20])
    tuned = tune(
        Untrained("mnasnet0_5", 32),
        [HeadSpec("digit", "single", tuple("0123456789"))],
        Examples(np.arange(20), {"digit": digit[:20]}, {}),
        pictures,
        replace(settings, epochs=1, batch_size=10),
    )
    backbone = resolve(BackboneSpec("mnasnet0_5", str(tuned.save(tmp_path))), tmp_path)
    view = whole(torch.from_numpy(images[0]).permute(2, 0, 1), 32).permute(1, 2, 0)
    expected = predict(tuned, pictures, np.array([0])).features
    assert np.allclose(backbone.build()(view[None]).numpy(), expected, atol=1e-5)
