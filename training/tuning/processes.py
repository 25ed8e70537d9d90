"""A run on several devices: a process for each, which are told apart by their place.

    this process  ──plan──>  place 0: its part of each step, measures, saves    ──events──>  callbacks
                             place 1…: their parts of each step                 <──stop────

Each makes the pictures of its own part of a step, and the gradients are added up, so that a step is what it would be
on one device. Nothing listens on a port that other machines reach: the processes meet in a file and talk by loopback.

Lightning Fabric sets up each process's network, number format and exchange. Its own launcher is not used, since that
blocks until the run is over: nobody could be told of a step, or stop it.
"""

from __future__ import annotations

import datetime
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.multiprocessing import get_context, start_processes  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import ProcessContext, ProcessException, ProcessExitedException

from training.errors import TrainingError

from .devices import kind_of_several
from .events import Epoch, OnEpoch, OnStep, Step
from .result import Tuned, load
from .settings import TuneSettings

_LOOPBACK = "lo"
_HEARD_EVERY_S = 0.1
_PATIENCE = datetime.timedelta(days=1)  # of one for the others: who died is seen by who started them, and all end


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
        TrainingError: what one of them raised; DataError: there are fewer GPUs.
        ProcessRaisedException: one of them ended of anything else, which it tells.
    """
    kind_of_several(settings)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    context = get_context("spawn")
    with tempfile.TemporaryDirectory(dir=folder, prefix="processes-") as place:
        line = _Line(str(Path(place) / "meeting"), Path(place) / "result", context.SimpleQueue(), context.Event())
        arguments |= {"settings": settings, "folder": folder}
        processes: ProcessContext = start_processes(
            _one_of_several,
            (settings, run, arguments, line),
            nprocs=settings.devices,
            join=False,
            start_method="spawn",
        )
        try:
            running = True
            while running:
                running = not processes.join(timeout=_HEARD_EVERY_S)
                _hear(line, on_step, on_epoch)
                if should_stop():
                    line.stop.set()
        except ProcessException as error:
            _hear(line, on_step, on_epoch)  # raises what the process said, if it said why
            if isinstance(error, ProcessExitedException):
                raise TrainingError(
                    f"one of {settings.devices} processes that fine-tune together was ended from outside "
                    f"({error.signal_name or f'exit status {error.exit_code}'}). Is there memory for all of them? "
                    "Fewer devices take less"
                ) from error
            raise
        finally:
            for process in processes.processes:
                if process.is_alive():
                    process.kill()
                    process.join()
        return load(line.out)


def _hear(line: _Line, on_step: OnStep, on_epoch: OnEpoch) -> None:
    while not line.events.empty():
        found = line.events.get()
        if isinstance(found, Step):
            on_step(found)
        elif isinstance(found, Epoch):
            on_epoch(found)
        else:
            raise found


def _one_of_several(
    place: int, settings: TuneSettings, run: Callable[..., Tuned], arguments: dict[str, Any], line: _Line
) -> None:
    """What a process does, from its first moment."""
    if _LOOPBACK in {name for _, name in socket.if_nameindex()}:
        os.environ |= {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}
    os.environ |= {"LOCAL_RANK": str(place), "NODE_RANK": "0", "WORLD_SIZE": str(settings.devices)}  # as Fabric asks
    cuda = kind_of_several(settings) == "cuda"
    if cuda:
        torch.cuda.set_device(place)
    torch.distributed.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{line.meeting}",
        rank=place,
        world_size=settings.devices,
        timeout=_PATIENCE,
    )
    first = place == 0
    try:
        tuned = run(
            **arguments,
            on_step=line.events.put if first else _nothing,
            on_epoch=line.events.put if first else _nothing,
            should_stop=line.stop.is_set,
        )
        if first:
            tuned.save(line.out)
    except TrainingError as error:
        line.events.put(error)
        raise
    finally:
        torch.distributed.destroy_process_group()


def _nothing(event: Step | Epoch) -> None:
    """The first process tells for all."""
