"""Where a run computes: device, number format, threads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn

from training.cores import usable_cores
from training.errors import DataError

from .net import TunedNet
from .settings import TuneSettings

_WORTH = 1.1  # times faster that bf16 must be: below, its rounding is not paid for
_TRIED = 8  # pictures of one timing
_ROUNDS = 2  # timings of each format; the best counts


def open_fabric(settings: TuneSettings, precision: str) -> Fabric:
    """Device and number format; `precision`: "32" or "bf16". With several devices that of this process."""
    number_format: Literal["bf16-mixed", "32-true"] = "bf16-mixed" if precision == "bf16" else "32-true"
    if settings.devices == 1:
        return Fabric(accelerator=settings.accelerator, devices=1, precision=number_format)
    fabric = Fabric(
        accelerator=kind_of_several(settings),
        devices=settings.devices,
        # With buffers sent at the first pass, one process that is out of memory and tries again would send them twice.
        strategy=DDPStrategy(forward_sync_buffers=False),
        precision=number_format,
        plugins=[LightningEnvironment()],
    )
    fabric.launch()
    torch.set_num_threads(threads_of(settings))  # which Fabric sets by the number of cores
    return fabric


def kind_of_several(settings: TuneSettings) -> Literal["cuda", "cpu"]:
    """What a run on several devices computes with. Raises DataError: there are fewer GPUs than asked for."""
    if settings.accelerator == "cpu" or (settings.accelerator == "auto" and not torch.cuda.is_available()):
        return "cpu"
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.accelerator not in ("auto", "gpu", "cuda"):
        raise DataError(f"fine-tuning on several devices wants GPUs of CUDA or the CPU, not {settings.accelerator}")
    if there < settings.devices:
        raise DataError(f"fine-tuning was asked for on {settings.devices} GPUs, and there are {there}: ask for no more")
    return "cuda"


def choose_precision(settings: TuneSettings, net: TunedNet, input_size: int, device: torch.device) -> tuple[str, str]:
    """ "32" or "bf16", and why. Processors without instructions for bf16 take ten times as long with it."""
    if settings.precision != "auto":
        return settings.precision, "as asked for"
    seconds = {name: _seconds(net, input_size, device, bf16=name == "bf16") for name in ("32", "bf16")}
    faster = seconds["32"] / seconds["bf16"]
    chosen = "bf16" if faster > _WORTH else "32"
    return chosen, f"bf16 is {faster:.2g} times as fast as 32 bits here"


def _seconds(net: TunedNet, input_size: int, device: torch.device, *, bf16: bool) -> float:
    """Of the trunk's forward and backward pass on a few pictures."""
    images = torch.zeros((_TRIED, input_size, input_size, 3), dtype=torch.uint8, device=device)
    best = float("inf")
    net.training_mode(frozen_norms=True)  # statistics stay as they are
    for _ in range(1 + _ROUNDS):  # the first allocates
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = net.trunk(images).float().mean()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        best = min(best, seconds)
        if seconds > 2.0:
            break  # enough is known, and a slow machine is not kept waiting
    net.zero_grad(set_to_none=True)
    return best


@contextlib.contextmanager
def alone_with(settings: TuneSettings) -> Iterator[None]:
    """While held: as many threads as set, and random numbers of torch that others do not see."""
    before = torch.get_num_threads()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []  # asking another makes room on it
    with torch.random.fork_rng(devices=devices):
        torch.set_num_threads(threads_of(settings))
        try:
            yield
        finally:
            torch.set_num_threads(before)


def seed_torch(*parts: int) -> None:
    """Seed torch from a few whole numbers: dropout depends on seed, epoch and step, not on what ran before."""
    torch.manual_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, had no memory for a batch."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's allocator for the CPU


def channels_last(net: nn.Module, wanted: bool) -> nn.Module:
    """The network in the layout that convolutions like best, if wanted."""
    return net.to(memory_format=torch.channels_last) if wanted else net  # type: ignore[call-overload]


def loader_threads(settings: TuneSettings) -> int:
    """Threads that make batches ahead of the step: one beside the others of a small machine, eight at most."""
    return max(1, min(8, threads_of(settings) - 1))


def threads_of(settings: TuneSettings) -> int:
    """Threads of one process."""
    return max(1, (settings.threads or usable_cores()) // settings.devices)


__all__: Sequence[str] = (
    "alone_with",
    "channels_last",
    "choose_precision",
    "is_out_of_memory",
    "kind_of_several",
    "loader_threads",
    "open_fabric",
    "seed_torch",
    "threads_of",
)
