"""What a run leaves behind: weights, heads, and the way there; and what it says about pictures.

    <folder>/<architecture>.safetensors, .safetensors.json   the trunk, a weights file for `training.backbones`
    <folder>/heads.safetensors, heads.json                   heads, conditions, what probabilities need

Axes:
    n  pictures        D  features        C  classes of a head
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from training.backbones import Triple
from training.errors import CheckpointCorrupt, DataError, TrainingStopped
from training.files import read_json, write_bytes, write_json

from .augment import whole
from .batches import ahead
from .events import TIME_LIMIT, Epoch
from .heads import Floats, HeadSpec
from .losses import TENSORS, HeadLoss
from .net import TunedNet, Untrained, condition, feature_width, load_weights, trunk_of
from .pictures import Pictures

_BATCH = 32  # pictures at a time
_TRUNK = "trunk.model."  # before the names that the architecture gives
_SCALING = ("trunk.scale", "trunk.shift")  # follow from mean and std
_FORMAT = "askfirst-tuned-1"


@dataclass(frozen=True, eq=False)
class Tuned:
    """A fine-tuned network."""

    architecture: str  # as in torchvision.models.list_models()
    input_size: int  # pixels
    mean: Triple
    std: Triple
    losses: tuple[HeadLoss, ...]  # each with its head
    inputs: Mapping[str, int]  # width of each extra input
    state: Mapping[str, Tensor]  # of `TunedNet`, on the CPU
    temperatures: Mapping[str, float]  # by head, for probabilities; fitted on what was held out
    number_error: Mapping[str, float]  # root mean square error by head of kind "number", held out if anything was
    history: tuple[Epoch, ...] = ()
    best_epoch: int = 0  # whose weights these are; 0: heads on frozen features
    start_share: float = 0.0  # of the start's weights, mixed with those of the best epoch (`blend`)
    reason: str = ""  # why the run ended
    held_out: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # ids stopped by
    unreadable: Mapping[int, str] = field(default_factory=dict)  # examples left out, and why
    precision: str = "32"
    note: str = ""  # how the run computed

    @property
    def cut_short(self) -> bool:
        """Whether the run was out of time."""
        return self.reason.startswith(TIME_LIMIT)

    @property
    def heads(self) -> tuple[HeadSpec, ...]:
        return tuple(loss.spec for loss in self.losses)

    def build(self) -> TunedNet:
        """The network, in eval mode, frozen."""
        trunk = trunk_of(Untrained(self.architecture, self.input_size, self.mean, self.std))
        net = TunedNet(trunk, feature_width(trunk, self.input_size), self.heads, self.inputs)
        load_weights(net, self.state)
        return net.eval().requires_grad_(False)

    def save(self, folder: Path) -> Path:
        """Write the files; returns the weights file, which `training.backbones.resolve` takes as it is."""
        path = folder / f"{self.architecture}.safetensors"
        trunk, rest = {}, {}
        for name, value in self.state.items():
            if name.startswith(_TRUNK):
                trunk[name.removeprefix(_TRUNK)] = value.contiguous()
            elif name not in _SCALING:
                rest[name] = value.contiguous()
        for index, loss in enumerate(self.losses):
            for part in TENSORS:
                rest[f"loss.{index}.{part}"] = getattr(loss, part).clone()  # two of them may be one tensor
        scale = {"input_size": self.input_size, "mean": self.mean, "std": self.std}
        write_json(path.with_name(f"{path.name}.json"), scale)
        write_bytes(path, save_tensors(trunk))
        write_bytes(folder / "heads.safetensors", save_tensors(rest))
        about = {
            **scale,
            "format": _FORMAT,
            "architecture": self.architecture,
            "heads": [
                asdict(loss.spec) | {"smoothing": loss.smoothing, "centre": loss.centre, "spread": loss.spread}
                for loss in self.losses
            ],
            "history": [asdict(epoch) for epoch in self.history],
            "held_out": [int(example) for example in self.held_out],
            "unreadable": {str(example): reason for example, reason in self.unreadable.items()},
        }
        kept = ("inputs", "temperatures", "number_error", "best_epoch", "start_share", "reason", "precision", "note")
        write_json(folder / "heads.json", about | {name: getattr(self, name) for name in kept})
        return path


def load(folder: Path) -> Tuned:
    """What `Tuned.save` wrote. Raises CheckpointCorrupt."""
    about = read_json(folder / "heads.json")
    if about is None or about.get("format") != _FORMAT:
        found = "nothing" if about is None else repr(about.get("format"))
        raise CheckpointCorrupt(str(folder / "heads.json"), f"the format {_FORMAT!r}", found)
    architecture = str(about["architecture"])
    try:
        state = {
            _TRUNK + name: value
            for name, value in load_tensors((folder / f"{architecture}.safetensors").read_bytes()).items()
        }
        rest = load_tensors((folder / "heads.safetensors").read_bytes())
    except (OSError, SafetensorError) as error:
        raise CheckpointCorrupt(str(folder), "files of tensors", str(error)) from error
    losses = []
    for index, entry in enumerate(about["heads"]):
        parts: dict[str, Any] = {part: rest.pop(f"loss.{index}.{part}") for part in TENSORS}
        parts |= {name: entry.pop(name) for name in ("smoothing", "centre", "spread")}
        spec = HeadSpec(**entry | {"classes": tuple(entry["classes"]), "inputs": tuple(entry["inputs"])})
        losses.append(HeadLoss(spec=spec, **parts))
    mean, std = _triple(about["mean"]), _triple(about["std"])
    trunk = trunk_of(Untrained(architecture, about["input_size"], mean, std))
    scaling = {f"trunk.{name}": value for name, value in trunk.state_dict().items() if name in ("scale", "shift")}
    return Tuned(
        architecture,
        about["input_size"],
        mean,
        std,
        tuple(losses),
        about["inputs"],
        state | rest | scaling,
        about["temperatures"],
        about["number_error"],
        tuple(Epoch(**epoch) for epoch in about["history"]),
        about["best_epoch"],
        about.get("start_share", 0.0),
        about["reason"],
        np.array(about["held_out"], np.int64),
        {int(example): reason for example, reason in about["unreadable"].items()},
        about["precision"],
        about["note"],
    )


@dataclass(frozen=True, eq=False)
class Answers:
    """What a network says about pictures."""

    # By head, natural logarithms: [n, C], of each class by itself for kind "multiple". A number's are not here.
    log_probabilities: Mapping[str, Floats]
    numbers: Mapping[str, Floats]  # by head of kind "number": [n, 2] mean and standard deviation, in its own units
    features: Floats  # [n, D], what the heads see before extra inputs


def predict(
    tuned: Tuned,
    pictures: Pictures,
    ids: NDArray[np.int64],
    inputs: Mapping[str, Floats] | None = None,
    *,
    uniform: bool = False,
    threads: int = 1,
) -> Answers:
    """What a tuned network says about whole pictures.

    Args:
        inputs: extra inputs by name, [n, E], NaN rows for missing; all missing without.
        uniform: for classes that are equally frequent, as balanced accuracy counts them; else as frequent as the
            labels were.
        threads: that resize pictures ahead of the network.
    Raises:
        DataError: a picture is not there, or an input has another width.
    """
    net = tuned.build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    n = len(ids)
    conditions = encoded_inputs(tuned.inputs, inputs or {}, n)
    features = frozen_features(net.trunk, pictures, ids, tuned.input_size, threads)
    with torch.inference_mode():
        outputs = net.answer(features, conditions)
    found, numbers = {}, {}
    for loss, output in zip(tuned.losses, outputs, strict=True):
        name = loss.spec.name
        if loss.spec.kind == "number":
            mean = output[:, 0].numpy() * loss.spread + loss.centre
            numbers[name] = np.stack([mean, np.full(n, tuned.number_error[name])], 1).astype(np.float32)
        else:
            temperature = tuned.temperatures[name]
            found[name] = loss.log_probabilities(output, uniform=uniform, temperature=temperature).numpy()
    return Answers(found, numbers, features.numpy())


def encoded_inputs(widths: Mapping[str, int], inputs: Mapping[str, Floats], n: int) -> dict[str, Tensor]:
    """By name, [n, E + 1] as the network takes them; missing everywhere where nothing is given."""
    found = {}
    for name, width in widths.items():
        values = inputs.get(name)
        if values is None:
            values = np.full((n, width), np.nan, np.float32)
        if values.shape != (n, width):
            raise DataError(f"the extra input {name!r} must have the shape [{n}, {width}], got {list(values.shape)}")
        found[name] = condition(torch.from_numpy(values.astype(np.float32)))
    return found


def frozen_features(
    trunk: torch.nn.Module,
    pictures: Pictures,
    ids: NDArray[np.int64],
    input_size: int,
    threads: int = 1,
    device: torch.device | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Tensor:
    """[n, D] float32 on the CPU: penultimate features of whole pictures, in the mode that the trunk is in.

    Raises:
        TrainingStopped: by `should_stop`, asked between batches.
    """

    def views(start: int) -> Tensor:
        batch = [torch.from_numpy(pictures.get(int(i))[..., :3]) for i in ids[start : start + _BATCH]]
        return torch.stack([whole(x.permute(2, 0, 1).contiguous(), input_size).permute(1, 2, 0) for x in batch])

    parts = []
    with torch.inference_mode():
        for images in ahead(views, range(0, len(ids), _BATCH), threads):
            if should_stop():
                raise TrainingStopped
            parts.append(trunk(images if device is None else images.to(device)).float().cpu())
    return torch.cat(parts).clone() if parts else torch.empty((0, feature_width(trunk, input_size)))


def ensemble_probabilities(members: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    """Mean probabilities of several models by head: a teacher. Takes log-probabilities as `predict` gives them.

    Raises:
        DataError: there is no member, or they have other heads.
    """
    if not members or any(member.keys() != members[0].keys() for member in members):
        raise DataError("an ensemble needs at least one member, and all with the same heads")
    return {
        name: np.mean([np.exp(member[name].astype(np.float64)) for member in members], axis=0).astype(np.float32)
        for name in members[0]
    }


def _triple(value: Any) -> Triple:
    red, green, blue = (float(number) for number in value)
    return red, green, blue
