"""Every knob of a fine-tuning run, with the reason for its default. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from training.backbones import Flips

Loss = Literal["balanced", "sqrt", "plain"]
Mixing = Literal["none", "cutmix", "cutmix-object", "saliency"]
Augmentation = Literal["none", "light", "randaugment"]
Precision = Literal["auto", "32", "bf16"]

WITH_MASKS: tuple[Mixing, ...] = ("cutmix-object", "saliency")  # they need to know where the object is
MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".jpg", ".jpeg")  # of masks in a folder; the first wins


@dataclass(frozen=True)
class TuneSettings:
    """How to fine-tune. Learning rates and times are for AdamW."""

    # How long
    epochs: int = 20  # algorithms of the field converge in 10 to 30 from trained weights; more costs a night on a CPU
    fewest_steps: int = 200  # small sets are passed several times an epoch: 50 labels would give 40 steps otherwise
    time_limit_s: float | None = None  # over all resumed parts; the best so far is returned
    patience: int = 6  # epochs without a better held-out loss; 0: never stop early
    held_out: float = 0.15  # share of the labelled examples, in whole groups, to stop by; 0: none

    # Steps
    batch_size: int = 32  # examples of one update; what does not fit in memory is accumulated
    # One seed of 800 labels of HAM10000, risk of selective answers: .097 with 4e-4 and layers falling to a tenth, .084
    # falling to a half, .106 with 1e-4, .099 with 1e-3. A head faster than the trunk ended worse; from nothing, take
    # ten times as much.
    lr_head: float = 4e-4
    lr_trunk: float = 4e-4  # of its last layer
    layer_decay: float = 0.5  # learning rate of the first layer, relative to the trunk's last
    # Share of the trunk's layers that stay as they came, where it is trained: edges and colours, at the size of whole
    # pictures. Trained too, a step takes a third longer (mobilenet_v2, 96 pixels, one thread; no lower loss, one seed).
    frozen_layers: float = 0.1
    warm_up: float = 0.1  # share of the steps in which the learning rate rises from nothing
    weight_decay: float = 0.05  # not on biases and norms
    clip_norm: float = 1.0  # of the gradient; one mislabelled picture must not undo an epoch
    ema_decay: float = 0.98  # of the weights that are kept: an average over 50 steps
    start_heads: bool = True  # fit the heads on frozen features first (Kumar et al. 2022, arXiv:2202.10054)
    # Share of the start's weights in what is kept (`blend`), where batch norms are frozen: their statistics belong to
    # the weights.
    start_share: float = 0.25
    batch_norm: Literal["auto", "frozen", "train"] = "auto"  # auto: statistics of trained weights stay as they came

    # What is asked for
    loss: Loss = "balanced"  # balanced softmax (Ren et al. 2020), square-root class weights, or neither
    label_smoothing: float = 0.05  # share of the target that is the labels' shares; more hurts ranking by confidence
    condition_dropout: float = 0.2  # share of examples that hide extra inputs, so that the net works without them

    # Pictures
    input_size: int | None = None  # pixels; None: as the weights came
    # Crops and flips alone. With RandAugment, in as many epochs, balanced accuracy was .05 lower with 800 and 1,600
    # labels of HAM10000, where colours tell (three seeds, within chance), and the risk of selective answers higher
    # by .015 and .004 (benchmark/results/tuning/ham10000.md).
    augmentation: Augmentation = "light"
    flips: Flips = "none"  # labels may be about the side: left and right, letters, digits
    crop_scale: float = 0.6  # smallest share of the picture's area in a random crop
    mixing: Mixing = "none"  # CutMix, by area or by object, has not paid in ten epochs (the same table)
    mix_probability: float = 0.5  # of each example
    mix_free: float = 0.1  # last share of the epochs without mixing: the net ends on whole pictures

    # Unlabelled pool
    distil_weight: float = 0.7  # of the teacher's answer where there is one, against the label's
    distil_temperature: float = 2.0
    # Sohn et al. 2020, arXiv:2001.07685. Has not paid: with 800 labels of HAM10000 and 7,200 without one the risk of
    # selective answers was higher with each of three seeds, in twice the time (benchmark/results/tuning/ham10000.md).
    fixmatch: bool = False
    fixmatch_threshold: float = 0.95
    fixmatch_weight: float = 1.0
    fixmatch_ramp: float = 0.4  # share of the steps in which its weight rises: early pseudo-labels are wrong
    pool_ratio: float = 1.0  # unlabelled pictures for each labelled one in a step

    # Machine
    seed: int = 0
    threads: int | None = None  # of all processes together; None: all usable cores
    # GPUs, each with a process of its own. Without a GPU, processes that share the threads: on two cores they made 101
    # pictures a second and one made 127 (benchmark/results/tuning_processes.json).
    devices: int = 1
    accelerator: str = "auto"  # as Lightning Fabric names them: auto, cpu, cuda, mps
    precision: Precision = "auto"  # auto: bf16 where it is measured to be faster
    channels_last: bool = True

    def __post_init__(self) -> None:
        for message in _wrong(self):
            raise ValueError(message)


def _wrong(s: TuneSettings) -> Iterator[str]:
    """What is wrong with settings, in words."""
    choices = {
        "loss": ("balanced", "sqrt", "plain"),
        "batch_norm": ("auto", "frozen", "train"),
        "augmentation": ("none", "light", "randaugment"),
        "flips": ("none", "horizontal", "both"),
        "mixing": ("none", "cutmix", "cutmix-object", "saliency"),
        "precision": ("auto", "32", "bf16"),
    }
    for name, known in choices.items():
        if getattr(s, name) not in known:
            yield f"{name} must be one of {', '.join(known)}, got {getattr(s, name)!r}"
    for name in ("batch_size", "devices"):
        if getattr(s, name) < 1:
            yield f"{name} must be at least 1, got {getattr(s, name)}"
    for name in ("epochs", "fewest_steps", "patience", "weight_decay", "pool_ratio", "fixmatch_weight"):
        if getattr(s, name) < 0:
            yield f"{name} must not be negative, got {getattr(s, name)}"
    for name in ("lr_head", "lr_trunk", "clip_norm", "distil_temperature", "layer_decay", "crop_scale"):
        if not getattr(s, name) > 0:
            yield f"{name} must be positive, got {getattr(s, name)}"
    shares = (
        *("held_out", "warm_up", "ema_decay", "label_smoothing", "condition_dropout", "crop_scale", "layer_decay"),
        *("frozen_layers", "start_share"),
        *("mix_probability", "mix_free", "distil_weight", "fixmatch_threshold", "fixmatch_ramp"),
    )
    for name in shares:
        if not 0 <= getattr(s, name) <= 1:
            yield f"{name} must be between 0 and 1, got {getattr(s, name)}"
    for name in ("held_out", "ema_decay", "start_share"):
        if getattr(s, name) == 1:
            yield f"{name} must be below 1: nothing would be learnt"
