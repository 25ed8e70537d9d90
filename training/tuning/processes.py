"""A run on several devices: a process for each, which are told apart by their place.

    this process  ──arguments──>  place 0: its part of each step; measures, saves    ──events──>  callbacks
                                  place 1…: their parts of each step                 <──stop────

Gradients are added up over all parts of a step, so that it is what it would be on one device, but for dropout and for
the statistics of batch norms that are trained, which are those of a part. The processes meet in a file and talk by
loopback: nothing listens where other machines reach it.

Lightning Fabric sets up each process's network, number format and exchange. Its own launcher is not used, since that
blocks until the run is over: nobody could be told of a step, or stop it.
"""

from __future__ import annotations

import datetime
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from training.errors import ProcessKilled, TrainingError

from .devices import kind_of_several
from .events import Epoch, OnEpoch, OnStep, Step
from .result import Tuned, load
from .settings import TuneSettings

_log = logging.getLogger(__name__)
_LOOPBACK = ("lo", "lo0")
_HEARD_EVERY_S = 0.1
_PATIENCE = datetime.timedelta(days=1)  # of one for the others: who dies is seen by who started them, and all end


@dataclass(frozen=True, eq=False)
class _Line:
    """What the processes of a run share with the one that started them."""

    meeting: str  # file
    out: Path  # folder of the result
    events: Any  # queue of what happened
    stop: Any  # event


def in_processes(
    run: Callable[..., Tuned],
    settings: TuneSettings,
    folder: Path | None,
    on_step: OnStep,
    on_epoch: OnEpoch,
    should_stop: Callable[[], bool],
    **arguments: Any,
) -> Tuned:
    """`run(**arguments, ...)` in `settings.devices` processes, with the callbacks called here.

    Args:
        run: a function of a module; with its `arguments` it is sent to the processes.
    Raises:
        TrainingError: what one of them raised; ProcessKilled; DataError: there are fewer GPUs.
    """
    kind_of_several(settings)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    processes: list[SpawnProcess] = []
    errors: list[TrainingError] = []
    with tempfile.TemporaryDirectory(dir=folder, prefix="processes-") as place:
        line = _Line(str(Path(place) / "meeting"), Path(place) / "result", context.SimpleQueue(), context.Event())
        arguments |= {"settings": settings, "folder": folder}
        try:
            for number in range(settings.devices):
                one = context.Process(
                    target=_one_of_several, args=(number, settings, run, arguments, line), daemon=True
                )
                processes.append(one)
                one.start()
            while (
                not errors and any(one.is_alive() for one in processes) and not any(one.exitcode for one in processes)
            ):
                wait([one.sentinel for one in processes if one.is_alive()], timeout=_HEARD_EVERY_S)
                errors += _heard(line, on_step, on_epoch)
                if should_stop():
                    line.stop.set()
            errors += _heard(line, on_step, on_epoch)
            # Looked at before they are killed. One that is killed from outside makes the others fail, who say so first.
            codes = [one.exitcode or 0 for one in processes]
        finally:
            for one in processes:
                if one.is_alive():
                    one.kill()
                    one.join()
        if min(codes) < 0:
            raise ProcessKilled(
                f"one of the {settings.devices} processes that fine-tune together was ended from outside "
                f"({signal.Signals(-min(codes)).name}). Is there memory for all of them? Fewer devices take less"
            )
        if errors:
            raise errors[0]
        if max(codes) > 0:
            raise TrainingError(
                f"one of the {settings.devices} processes that fine-tune together ended with status {max(codes)} "
                "before it could say why; its last words are in the log of this process"
            )
        return load(line.out)


def _heard(line: _Line, on_step: OnStep, on_epoch: OnEpoch) -> list[TrainingError]:
    """Tell what happened; returns what went wrong, the cause first."""
    errors = []
    while not line.events.empty():
        found = line.events.get()
        if isinstance(found, Step):
            on_step(found)
        elif isinstance(found, Epoch):
            on_epoch(found)
        else:
            errors.append(found)
    return errors


def _one_of_several(
    place: int, settings: TuneSettings, run: Callable[..., Tuned], arguments: dict[str, Any], line: _Line
) -> None:
    """What a process does, from its first moment."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        _join(place, settings, line)
        first = place == 0
        tuned = run(
            **arguments,
            on_step=line.events.put if first else _nothing,
            on_epoch=line.events.put if first else _nothing,
            should_stop=line.stop.is_set,
        )
        if first:
            tuned.save(line.out)
    except BaseException as error:
        _log.warning("process %d of %d of a run failed", place, settings.devices, exc_info=True)
        told = error if isinstance(error, TrainingError) else TrainingError(f"{type(error).__name__}: {error}")
        try:
            line.events.put(told)
        finally:
            os._exit(1)  # an orderly end would wait for the others, who wait for this one
    distributed.destroy_process_group()


def _join(place: int, settings: TuneSettings, line: _Line) -> None:
    """Meet the other processes."""
    for _, name in socket.if_nameindex():
        if name in _LOOPBACK:
            os.environ |= {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    os.environ |= {"LOCAL_RANK": str(place), "NODE_RANK": "0", "WORLD_SIZE": str(settings.devices)}  # as Fabric asks
    cuda = kind_of_several(settings) == "cuda"
    if cuda:
        torch.cuda.set_device(place)
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        store=distributed.FileStore(line.meeting, settings.devices),  # type: ignore[attr-defined]
        rank=place,
        world_size=settings.devices,
        timeout=_PATIENCE,
    )


def _end_with_the_parent() -> None:
    """Whoever started this process may be killed, with no time to stop it; and it may be waiting for another one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _nothing(event: Step | Epoch) -> None:
    """The first process tells for all."""
