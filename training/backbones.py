"""Frozen networks that turn pictures into features: any classifier of torchvision, without its last layer.

    BackboneSpec --resolve--> Backbone --build--> module: [B, H, H, 3] uint8 -> [B, D] float32

A backbone always has trained weights: a file, a URL, or torchvision's own. How its pixels are to be scaled
comes with the weights: from torchvision for its own files, from `<file>.json` beside any other, or from the
spec. Importing this module does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from .errors import UnknownBackbone, WeightsUnusable

if TYPE_CHECKING:
    from torch import Tensor, nn

_log = logging.getLogger(__name__)

TORCHVISION = "torchvision"  # as `BackboneSpec.weights`: the network's default weights, downloaded once
_TIMEOUT_S = 60.0  # without a byte, while weights are fetched
_RECIPE = "squeeze-1"  # part of the id: how `images.decode` and `build` make features from a picture
_PREFIXES = ("module.", "_orig_mod.")  # put before every name by DataParallel and torch.compile
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
)  # names under which training scripts store the weights
_TAKES_IMAGENET_SCALE = (
    "googlenet",
    "inception_v3",
)  # torchvision's own weights expect one more rescaling inside

Triple = tuple[float, float, float]
Flips = Literal["none", "horizontal", "both"]


@dataclass(frozen=True)
class BackboneSpec:
    """Which network, which weights. What is None comes with the weights."""

    name: str  # as in torchvision.models.list_models()
    weights: str  # path of a file, http(s) URL, or "torchvision"
    input_size: int | None = None  # side of the square input, pixels
    mean: Triple | None = None  # RGB, of pixels scaled to [0, 1]
    std: Triple | None = None
    flips: Flips = "none"  # features are the mean over an image and what it is when turned over so


@dataclass(frozen=True)
class Backbone:
    """A network whose weights are on disk and whose input is known."""

    name: str
    weights: Path
    input_size: int
    mean: Triple
    std: Triple
    transform_input: bool
    id: str  # names everything that changes a feature
    note: str  # one sentence for people
    flips: Flips = "none"  # whose mean `Engine.embed` takes; `build` knows nothing of it

    def build(self) -> nn.Module:
        """The network in eval mode, frozen: [B, H, H, 3] uint8 -> [B, D] float32, penultimate activations.

        Raises:
            WeightsUnusable: the file is no state dict, or one of another network.
        """
        import torch

        model = _classifier(self.name, transform_input=self.transform_input)
        head = _cut_head(model)
        state = OrderedDict(
            (key, value) for key, value in _read_state(self.weights).items() if not key.startswith(f"{head}.")
        )
        # MNASNet refuses weights that do not say by which version of it they were written.
        state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
        try:
            model.load_state_dict(state, strict=True)
        except RuntimeError as error:
            reason = f"they do not fit {self.name}: {_first_lines(str(error))}"
            raise WeightsUnusable(str(self.weights), reason) from error
        for parameter in model.parameters():
            if not torch.isfinite(parameter).all():
                raise WeightsUnusable(str(self.weights), "they hold numbers that are not finite; get them again")
        return scaled(model, self.mean, self.std)


def resolve(spec: BackboneSpec, cache: Path) -> Backbone:
    """Find the weights (fetching them into `cache` if they are elsewhere) and the input that they want.

    Raises:
        UnknownBackbone: no classifier of torchvision has this name.
        WeightsUnusable: missing, not reachable, or with a side file that cannot be read.
    """
    offered = _torchvision_weights(spec.name)
    if spec.weights == TORCHVISION:
        if not offered:
            raise WeightsUnusable(TORCHVISION, f"torchvision has none for {spec.name}; give a file or a URL")
        path = _fetch(offered[0].url, cache)
    elif urlsplit(spec.weights).scheme in ("http", "https"):
        path = _fetch(spec.weights, cache)
    else:
        path = Path(spec.weights).expanduser()
        if not path.is_file():
            what = "it is a folder" if path.is_dir() else "there is no such file"
            raise WeightsUnusable(spec.weights, f"{what}; name a file that this process can read")
    own = next((entry for entry in offered if Path(urlsplit(entry.url).path).name == path.name), None)
    about = _side_file(path)
    preset = (own or offered[0]).transforms() if offered else None
    size = spec.input_size or about.get("input_size") or (preset.crop_size[0] if preset else 224)
    mean = _triple("mean", spec.mean or about.get("mean") or (preset.mean if preset else None), path)
    std = _triple("std", spec.std or about.get("std") or (preset.std if preset else None), path)
    if not isinstance(size, int) or size < 1:
        raise WeightsUnusable(str(path), f"input_size must be a whole number of pixels, got {size!r}")
    if min(std) <= 0:
        raise WeightsUnusable(str(path), f"std must be positive, got {std}")
    if max(mean) > 1 or min(mean) < 0 or max(std) > 1:
        reason = f"mean and std are of pixels from 0 to 1, got {mean} and {std}; divide those of 0 to 255 by 255"
        raise WeightsUnusable(str(path), reason)
    assumed = not own and not (spec.mean or about.get("mean"))
    if assumed:
        _log.warning("%s does not say how its pixels are scaled: assuming torchvision's scale for %s", path, spec.name)
    transform_input = own is not None and spec.name in _TAKES_IMAGENET_SCALE
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(repr((_RECIPE, spec.name, size, mean, std, transform_input)).encode())
    note = f"Features of {spec.name} at {size} px with the weights {path.name}, learnt on other pictures than yours" + (
        "; its pixel scale is an assumption, so set mean and std to be sure." if assumed else "."
    )
    if spec.flips != "none":
        digest.update(spec.flips.encode())
    identity = f"{spec.name}-{size}-{digest.hexdigest()[:12]}"
    return Backbone(spec.name, path, size, mean, std, transform_input, identity, note, spec.flips)


def known_backbones() -> tuple[str, ...]:
    """Names of all classifiers of torchvision."""
    from .torchvision_ops import torchvision

    return tuple(sorted(torchvision.models.list_models(module=torchvision.models)))


def feature_extractor(name: str) -> nn.Module:
    """The network `name` without its last layer and without trained weights: [B, 3, H, H] -> [B, D]."""
    model = _classifier(name, transform_input=False)
    _cut_head(model)
    return model


def scaled(model: nn.Module, mean: Triple, std: Triple) -> nn.Module:
    """`model` with the scaling of pixels in front: takes [B, H, W, 3] uint8; frozen, in eval mode."""
    import torch

    class Scaled(torch.nn.Module):
        scale: Tensor
        shift: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            spread = torch.tensor(std, dtype=torch.float64).reshape(1, 3, 1, 1)
            centre = torch.tensor(mean, dtype=torch.float64).reshape(1, 3, 1, 1)
            self.register_buffer("scale", (1 / (255 * spread)).float())
            self.register_buffer("shift", (-centre / spread).float())

        def forward(self, images: Tensor) -> Tensor:
            # Moving the last axis to the front gives PyTorch's channels-last layout without copying anything.
            pixels = images.permute(0, 3, 1, 2).to(torch.float32)
            return cast("Tensor", self.model(pixels * self.scale + self.shift).flatten(1))

    return Scaled().eval().requires_grad_(False)


def _classifier(name: str, *, transform_input: bool) -> nn.Module:
    from .torchvision_ops import torchvision

    if name not in known_backbones():
        raise UnknownBackbone(name, known_backbones())
    options: dict[str, Any] = {}
    if name in _TAKES_IMAGENET_SCALE:
        options = {"init_weights": False, "transform_input": transform_input}
    return cast("nn.Module", torchvision.models.get_model(name, weights=None, **options))


def _cut_head(model: nn.Module) -> str:
    """Replace the layer that gives the class scores by nothing; returns its name.

    It is the last linear layer or convolution that torchvision's classifiers register.
    """
    import torch

    layers = [key for key, part in model.named_modules() if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)]
    parent, _, child = layers[-1].rpartition(".")
    setattr(model.get_submodule(parent), child, torch.nn.Identity())
    return str(layers[-1])


def _torchvision_weights(name: str) -> list[Any]:
    """torchvision's weights for a network, its default first."""
    from .torchvision_ops import torchvision

    if name not in known_backbones():
        raise UnknownBackbone(name, known_backbones())
    entries = list(torchvision.models.get_model_weights(name))
    default = torchvision.models.get_model_weights(name).DEFAULT if entries else None
    return sorted(entries, key=lambda entry: entry is not default)


def _read_state(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a weights file, without running any code that it may contain."""
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors readers raise many types for damaged files
        why = f"{type(error).__name__}: {_first_lines(str(error))}"
        raise WeightsUnusable(
            str(path), f"not a file of tensors ({why}); it should be a .safetensors file or what torch.save wrote"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsUnusable(str(path), "not a state dict (names and tensors); save `model.state_dict()`")
    for prefix in _PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def _side_file(path: Path) -> dict[str, Any]:
    """`<weights file>.json` with any of input_size, mean, std; {} if there is none."""
    side = path.with_name(f"{path.name}.json")
    try:
        about = json.loads(side.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise WeightsUnusable(str(path), f"{side.name} is not JSON ({error})") from error
    if not isinstance(about, dict) or about.keys() - {"input_size", "mean", "std"}:
        raise WeightsUnusable(str(path), f"{side.name} must be an object with input_size, mean and std only")
    return about


def _triple(what: str, value: Any, path: Path) -> Triple:
    try:
        red, green, blue = (float(number) for number in value)
    except (TypeError, ValueError):
        raise WeightsUnusable(str(path), f"{what} must be three numbers (red, green, blue), got {value!r}") from None
    return red, green, blue


def _fetch(url: str, cache: Path) -> Path:
    """The file behind `url`, downloaded once; checked where its name holds digits of its SHA-256."""
    name = Path(urlsplit(url).path).name or "weights"
    path = cache / hashlib.sha256(url.encode()).hexdigest()[:12] / name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{name}.{uuid.uuid4().hex}")
    try:
        _log.info("fetching weights from %s", url)
        with urlopen(url, timeout=_TIMEOUT_S) as answer, draft.open("wb") as file:
            shutil.copyfileobj(answer, file)
        with draft.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        wanted = re.search(r"-([0-9a-f]{8,})\.", name)
        if wanted and not found.startswith(wanted[1]):
            raise WeightsUnusable(url, f"its SHA-256 should start with {wanted[1]}, found {found[:8]}; try again")
        draft.replace(path)
    except (URLError, OSError) as error:
        raise WeightsUnusable(
            url, f"could not be fetched ({error}); download it elsewhere and give the path of the file"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return path


def _first_lines(text: str) -> str:
    return " ".join(text.split())[:300]
