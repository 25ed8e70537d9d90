"""The compiled network is used where it gives PyTorch's numbers faster, and PyTorch everywhere else."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training import engine
from training.backbones import Backbone, BackboneSpec, resolve
from training.cores import usable_cores
from training.engine import MAX_DIFFERENCE, eager, open_engine, relative_difference
from training.torchvision_ops import torchvision

SIZE = 40
HALF = (0.5, 0.5, 0.5)
REAL = Path(__file__).parents[4] / "shared/data/weights/mobilenet_v2_imagenet_tflite_dequant.pth"


def small_backbone(folder):
    torch.manual_seed(0)
    model = torchvision.models.get_model("squeezenet1_1", weights=None)
    torch.save(model.state_dict(), folder / "small.pth")
    spec = BackboneSpec("squeezenet1_1", str(folder / "small.pth"), input_size=SIZE, mean=HALF, std=HALF)
    return resolve(spec, folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def backbone(home):
    return small_backbone(home)


@pytest.fixture(scope="module")
def reference(backbone):
    return eager(backbone.build())


@pytest.fixture
def compiled_wins(monkeypatch):
    """The choice must not depend on how busy the machine is."""
    monkeypatch.setattr(engine, "_speeds", lambda engines, images: {"onnxruntime": 9.0, "pytorch": 3.0})


@pytest.fixture
def opened(backbone, home, compiled_wins):
    return open_engine(backbone, home / "engines", threads=2)


def images(count, size=SIZE, seed=3):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 2, 7, 33])
def test_the_compiled_network_gives_pytorchs_numbers_for_any_batch(count, opened, reference):
    assert opened.choice.kind == "onnxruntime"
    found = opened.embed(images(count))
    assert found.shape == (count, opened.width)
    assert found.dtype == np.float32
    assert relative_difference(found, reference(images(count))) < 1e-5


def test_an_image_has_the_same_features_whatever_it_is_batched_with(opened):
    batch = images(9)
    alone = np.concatenate([opened.embed(batch[i : i + 1]) for i in range(9)])
    assert np.allclose(opened.embed(batch), alone, rtol=1e-4, atol=1e-6)


def test_several_threads_may_embed_at_once(opened):
    batches = [images(5, seed=seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(opened.embed, batches))
    assert all(np.array_equal(found, opened.embed(batch)) for found, batch in zip(together, batches, strict=True))


def test_no_image_gives_no_row(opened):
    assert opened.embed(images(0)).shape == (0, opened.width)


@pytest.mark.parametrize("wrong", [images(2, SIZE + 1), images(2).astype(np.float32), images(2)[0], images(2)[..., :1]])
def test_images_of_another_shape_or_type_are_refused_with_both_in_the_message(wrong, opened):
    with pytest.raises(ValueError, match=rf"\[B, {SIZE}, {SIZE}, 3\]"):
        opened.embed(wrong)


def test_the_id_is_the_backbones_because_the_numbers_are(opened, backbone):
    assert opened.id == backbone.id


@pytest.mark.parametrize("flips", ["horizontal", "both"])
def test_features_of_an_image_that_may_be_turned_over_are_the_mean_over_its_views(flips, backbone, home, reference):
    x = images(5)
    views = [x, np.flip(x, 2)]
    if flips == "both":
        views += [np.flip(x, 1), np.rot90(x, 2, (1, 2))]
    expected = np.stack([reference(np.ascontiguousarray(view)) for view in views]).mean(0)
    spec = BackboneSpec(backbone.name, str(backbone.weights), SIZE, HALF, HALF, flips)
    opened = open_engine(resolve(spec, home), home / "engines")
    found, mirrored = opened.embed(x), opened.embed(np.flip(x, 2))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(found - mirrored).max() < 1e-6 * np.abs(expected).max()


def test_features_over_other_views_are_other_features(backbone, home):
    weights = str(backbone.weights)
    ids = {resolve(BackboneSpec(backbone.name, weights, flips=f), home).id for f in ("none", "horizontal", "both")}
    assert len(ids) == 3


def test_a_second_start_neither_builds_nor_times_anything(opened, backbone, home, monkeypatch):
    monkeypatch.setattr(Backbone, "build", lambda self: pytest.fail("built again"))
    again = open_engine(backbone, home / "engines", threads=2)
    assert again.choice == opened.choice
    assert np.array_equal(again.embed(images(2)), opened.embed(images(2)))


def test_pytorch_is_used_where_it_is_faster(backbone, tmp_path, monkeypatch, reference):
    monkeypatch.setattr(engine, "_speeds", lambda engines, images: {"onnxruntime": 3.0, "pytorch": 9.0})
    slower = open_engine(backbone, tmp_path)
    assert slower.choice.kind == "pytorch"
    assert "slower: 3 against 9" in slower.choice.reason
    assert np.array_equal(slower.embed(images(3)), reference(images(3)))
    assert open_engine(backbone, tmp_path).choice == slower.choice


def test_a_compiled_network_with_other_numbers_is_not_used(backbone, tmp_path, monkeypatch, compiled_wins, reference):
    export = engine.export

    def wrong(module, size):
        torch.nn.init.constant_(module.model.features[0].bias, 0.05)
        return export(module, size)

    # The reference is taken before the export changes the weights, as a faulty compiler would.
    monkeypatch.setattr(engine, "export", wrong)
    choice = open_engine(backbone, tmp_path).choice
    assert choice.kind == "pytorch"
    assert choice.difference > MAX_DIFFERENCE
    assert "differs from PyTorch" in choice.reason


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_that_cannot_be_compiled_runs_on_pytorch(backbone, tmp_path, monkeypatch, reference, caplog):
    def fail(module, size):
        raise RuntimeError("no counterpart for aten::strange")

    monkeypatch.setattr(engine, "export", fail)
    opened = open_engine(backbone, tmp_path)
    assert opened.choice.kind == "pytorch"
    assert "aten::strange" in opened.choice.reason
    assert np.array_equal(opened.embed(images(3)), reference(images(3)))


@pytest.fixture
def exported_once(backbone, home, opened, monkeypatch):
    """Compiling takes a second; where the result is the same, take it from the first time."""
    model = next(home.rglob("model-*.onnx")).read_bytes()
    monkeypatch.setattr(engine, "export", lambda module, size: model)


@pytest.mark.parametrize("damaged", ["model", "choice", "model is gone"])
def test_a_damaged_engine_is_made_again(damaged, backbone, tmp_path, exported_once, reference):
    open_engine(backbone, tmp_path)
    model, choice = next(tmp_path.rglob("model-*.onnx")), next(tmp_path.rglob("choice-*.json"))
    if damaged == "model":
        model.write_bytes(model.read_bytes()[:-100])
    elif damaged == "choice":
        choice.write_text("{")
    else:
        model.unlink()
    again = open_engine(backbone, tmp_path)
    assert again.choice.kind == "onnxruntime"
    assert relative_difference(again.embed(images(3)), reference(images(3))) < 1e-5


def test_other_weights_get_an_engine_of_their_own(backbone, tmp_path, exported_once):
    open_engine(backbone, tmp_path)
    open_engine(replace(backbone, id=f"{backbone.id}-b"), tmp_path)
    assert len(list(tmp_path.rglob("model-*.onnx"))) == 2


def test_the_difference_is_relative_to_the_largest_feature_and_never_hides_nan():
    expected = np.array([[1.0, -4.0]], np.float32)
    assert relative_difference(np.array([[1.0, -4.002]], np.float32), expected) == pytest.approx(5e-4, rel=1e-3)
    assert relative_difference(np.array([[1.0, np.nan]], np.float32), expected) == np.inf
    assert relative_difference(expected[:, :1], expected) == np.inf
    assert relative_difference(expected, expected) == 0


def test_speeds_are_images_per_second_of_each_engine():
    speeds = engine._speeds({"a": lambda images: images, "b": lambda images: images}, images(4))
    assert speeds.keys() == {"a", "b"}
    assert min(speeds.values()) > 0


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000", None), ("150000 100000", 2), ("1000 100000", 1), ("nonsense", None)]
)
def test_a_containers_quota_limits_the_cores_in_use(text, cores, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    assert usable_cores(quota) == (cores or 8)
    assert usable_cores(tmp_path / "missing") == 8


@pytest.mark.skipif(not REAL.is_file(), reason="needs the ImageNet weights of mobilenet_v2 in ../shared/data/weights")
def test_trained_weights_give_the_same_numbers_compiled_and_not(tmp_path, compiled_wins):
    backbone = resolve(BackboneSpec("mobilenet_v2", str(REAL), mean=HALF, std=HALF, input_size=64), tmp_path)
    opened = open_engine(backbone, tmp_path)
    batch = images(3, 64)
    assert opened.width == 1280
    assert relative_difference(opened.embed(batch), eager(backbone.build())(batch)) < 1e-4
