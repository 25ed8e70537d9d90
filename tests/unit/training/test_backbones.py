"""Any classifier of torchvision becomes a feature extractor, with trained weights or not at all."""

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from training import backbones
from training.backbones import BackboneSpec, feature_extractor, known_backbones, resolve, scaled
from training.errors import UnknownBackbone, WeightsUnusable
from training.representation import ModelSpec, check_weights
from training.torchvision_ops import torchvision

SMALL = "squeezenet1_1"
HALF = (0.5, 0.5, 0.5)
WIDTHS = {
    "alexnet": 4096,
    "convnext_tiny": 768,
    "densenet121": 1024,
    "efficientnet_b0": 1280,
    "efficientnet_v2_s": 1280,
    "googlenet": 1024,
    "inception_v3": 2048,
    "mnasnet0_5": 1280,
    "mobilenet_v2": 1280,
    "mobilenet_v3_large": 1280,
    "regnet_y_400mf": 440,
    "resnet18": 512,
    "resnext50_32x4d": 2048,
    "shufflenet_v2_x0_5": 1024,
    "squeezenet1_1": 512,
    "swin_t": 768,
    "vgg11": 4096,
    "vit_b_16": 768,
    "wide_resnet50_2": 2048,
}


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return torchvision.models.get_model(SMALL, weights=None).eval()


@pytest.fixture
def weights(classifier, tmp_path):
    path = tmp_path / "small.pth"
    torch.save(classifier.state_dict(), path)
    return path


def spec(path, **options):
    return BackboneSpec(SMALL, str(path), **({"input_size": 64, "mean": HALF, "std": HALF} | options))


def images(count=2, size=64):
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore")  # torchvision warns about its own deprecated defaults
@pytest.mark.parametrize("name", WIDTHS)
def test_each_family_gives_its_penultimate_activations(name):
    size = 299 if name == "inception_v3" else 224
    # Shapes only, except that one family computes its layout from tensors.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = feature_extractor(name).eval().to("meta")
    features = model(torch.empty(1, 3, size, size, device="meta"))
    assert features.flatten(1).shape == (1, WIDTHS[name])


def test_features_are_what_enters_the_last_layer_of_the_whole_classifier(classifier, weights):
    pixels = images()
    normalised = (pixels.permute(0, 3, 1, 2).double() / 255 - 0.5) / 0.5
    entered = []
    hook = classifier.classifier[1].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    with torch.no_grad():
        classifier(normalised.float())
        found = resolve(spec(weights), weights.parent).build()(pixels)
    hook.remove()
    expected = entered[0].clamp_min(0).mean((2, 3))  # this network pools after its last layer
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_weights_that_do_not_say_which_version_wrote_them_are_read(tmp_path):
    path = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    network = torchvision.models.get_model("mnasnet0_5", weights=None).eval()  # asks for a version
    save_file(network.state_dict(), path)
    found = resolve(BackboneSpec("mnasnet0_5", str(path), 32, HALF, HALF), tmp_path).build()
    assert torch.equal(found.model.layers[0].weight, network.layers[0].weight)


def test_pixels_are_scaled_as_the_weights_want_them():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = images(1, 8)
    found = scaled(torch.nn.Identity(), mean, std)(pixels)
    expected = (pixels.numpy().astype(np.float64) / 255 - mean) / std
    assert np.allclose(found.numpy(), expected.transpose(0, 3, 1, 2).reshape(1, -1), atol=1e-5)


@pytest.mark.parametrize("form", ["nested", "parallel", "safetensors", "other number of classes", "half precision"])
def test_weights_are_read_in_the_forms_that_training_scripts_leave(form, classifier, weights, tmp_path):
    path = tmp_path / ("other.safetensors" if form == "safetensors" else "other.pth")
    state = classifier.state_dict()
    if form == "safetensors":
        save_file(state, path)
    elif form == "other number of classes":
        torch.save(
            state | {"classifier.1.weight": torch.zeros(3, 512, 1, 1), "classifier.1.bias": torch.zeros(3)}, path
        )
    elif form == "half precision":
        torch.save({key: value.half() for key, value in state.items()}, path)
    else:
        prefix = "module." if form == "parallel" else ""
        torch.save({"epoch": 3, "state_dict": {prefix + key: value for key, value in state.items()}}, path)
    with torch.no_grad():
        found = resolve(spec(path), tmp_path).build()(images())
        expected = resolve(spec(weights), tmp_path).build()(images())
    assert torch.allclose(found, expected, atol=0.02 if form == "half precision" else 1e-6)


def test_the_network_is_frozen_and_in_eval_mode(weights):
    module = resolve(spec(weights), weights.parent).build()
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not any(part.training for part in module.modules())


def test_an_unknown_backbone_is_answered_with_those_of_a_name_like_it(tmp_path):
    with pytest.raises(UnknownBackbone, match=r"resnet99.*resnet"):
        resolve(BackboneSpec("resnet99", "torchvision"), tmp_path)


def test_detection_and_quantised_networks_are_not_offered():
    assert not [name for name in known_backbones() if "rcnn" in name or "quantized" in name]


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(WeightsUnusable, match="no such file"):
        resolve(spec(tmp_path / "nothing.pth"), tmp_path)


def test_a_folder_is_not_said_to_be_missing(tmp_path):
    with pytest.raises(WeightsUnusable, match="it is a folder; name a file"):
        resolve(spec(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("mean", "std"), [((128.0, 128.0, 128.0), None), (None, (58.0, 57.0, 57.0)), ((-0.1, 0.5, 0.5), None)]
)
def test_a_scale_of_0_to_255_is_refused_with_what_to_do(weights, tmp_path, mean, std):
    with pytest.raises(WeightsUnusable, match="divide those of 0 to 255 by 255"):
        resolve(BackboneSpec(SMALL, str(weights), mean=mean, std=std), tmp_path)


def test_weights_are_opened_where_they_are_only_looked_at(weights, tmp_path):
    assert "small.pth" in check_weights(ModelSpec(SMALL, str(weights)))
    broken = tmp_path / "broken.pth"
    broken.write_bytes(weights.read_bytes()[:1000])
    for wrong in (ModelSpec(SMALL, str(broken)), ModelSpec("mobilenet_v2", str(weights)), ModelSpec(SMALL)):
        with pytest.raises(WeightsUnusable):
            check_weights(wrong)
    assert "downloaded at first use" in check_weights(ModelSpec(SMALL, "torchvision"))
    with pytest.raises(UnknownBackbone):
        check_weights(ModelSpec("nosuchnet", "https://example.org/w.pth"))


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a file of tensors"),
        (b"<html>", "not a file of tensors"),
        (pickle.dumps(Bomb()), "not a file of tensors"),
        ({"epoch": 3}, "state_dict"),
        ([1, 2], "state_dict"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused_and_runs_no_code(content, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(WeightsUnusable, match=reason):
        resolve(spec(path), tmp_path).build()
    assert not (tmp_path / "exploded").exists()


def test_weights_of_another_network_are_refused(weights, tmp_path):
    with pytest.raises(WeightsUnusable, match="do not fit mobilenet_v3_small"):
        resolve(BackboneSpec("mobilenet_v3_small", str(weights)), tmp_path).build()


def test_weights_with_nan_are_refused(classifier, tmp_path):
    state = {key: value.clone() for key, value in classifier.state_dict().items()}
    state["features.0.bias"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(WeightsUnusable, match="not finite"):
        resolve(spec(tmp_path / "nan.pth"), tmp_path).build()


def test_the_spec_comes_before_the_side_file_and_the_side_file_before_torchvision(weights, tmp_path):
    plain = resolve(BackboneSpec(SMALL, str(weights)), tmp_path)
    assert (plain.input_size, plain.mean) == (224, (0.485, 0.456, 0.406))
    assert "assumption" in plain.note
    side = weights.with_name("small.pth.json")
    side.write_text(json.dumps({"input_size": 96, "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}))
    aside = resolve(BackboneSpec(SMALL, str(weights)), tmp_path)
    assert (aside.input_size, aside.mean, aside.std) == (96, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert "assumption" not in aside.note
    asked = resolve(spec(weights), tmp_path)
    assert (asked.input_size, asked.mean) == (64, HALF)


@pytest.mark.parametrize("content", ["not json", "[1]", '{"men": [0, 0, 0]}', '{"mean": [1, 2]}', '{"std": [0, 1, 1]}'])
def test_a_side_file_that_cannot_be_understood_is_refused(content, weights, tmp_path):
    weights.with_name("small.pth.json").write_text(content)
    with pytest.raises(WeightsUnusable):
        resolve(BackboneSpec(SMALL, str(weights)), tmp_path)


def test_the_id_changes_with_everything_that_changes_a_feature(classifier, weights, tmp_path):
    other = tmp_path / "other.pth"
    torch.save({key: value + 1e-3 for key, value in classifier.state_dict().items()}, other)
    specs = [
        spec(weights),
        spec(other),
        spec(weights, input_size=65),
        spec(weights, mean=(0.5, 0.5, 0.4)),
        spec(weights, std=(0.5, 0.5, 0.4)),
    ]
    assert len({resolve(one, tmp_path).id for one in specs}) == len(specs)
    copy = tmp_path / "copy.pth"
    copy.write_bytes(weights.read_bytes())
    assert resolve(spec(copy), tmp_path).id == resolve(spec(weights), tmp_path).id


def test_a_file_of_torchvision_is_known_by_its_name(weights, tmp_path):
    own = tmp_path / Path(torchvision.models.get_model_weights(SMALL).DEFAULT.url).name
    own.write_bytes(weights.read_bytes())
    backbone = resolve(BackboneSpec(SMALL, str(own)), tmp_path)
    assert "assumption" not in backbone.note


def test_weights_behind_an_address_are_fetched_once(weights, tmp_path, monkeypatch):
    asked = []

    def answer(url, timeout):
        asked.append(url)
        return io.BytesIO(weights.read_bytes())

    monkeypatch.setattr(backbones, "urlopen", answer)
    url = "https://weights.example/a/small.pth?version=2"
    first, second = (resolve(spec(url), tmp_path / "cache") for _ in range(2))
    assert asked == [url]
    assert first == second
    assert first.id == resolve(spec(weights), tmp_path).id


def test_torchvisions_own_weights_are_fetched_from_where_it_says_and_checked(tmp_path, monkeypatch):
    asked = []

    def answer(url, timeout):
        asked.append(url)
        return io.BytesIO(b"a login page")

    monkeypatch.setattr(backbones, "urlopen", answer)
    with pytest.raises(WeightsUnusable, match="SHA-256 should start with"):
        resolve(BackboneSpec(SMALL, "torchvision"), tmp_path)
    assert asked == [torchvision.models.get_model_weights(SMALL).DEFAULT.url]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_address_that_does_not_answer_says_what_to_do(tmp_path, monkeypatch):
    def refuse(url, timeout):
        raise URLError("no route")

    monkeypatch.setattr(backbones, "urlopen", refuse)
    with pytest.raises(WeightsUnusable, match=r"no route.*give the path"):
        resolve(spec("https://weights.example/small.pth"), tmp_path)


def test_reading_embeddings_and_naming_backbones_does_not_import_torch():
    code = (
        "import sys, training.backbones, training.engine, training.embeddings; "
        "sys.exit(bool({'torch', 'torchvision', 'onnxruntime'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True, timeout=100)
