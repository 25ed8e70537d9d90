"""Fine-tuning, from top to bottom.

Everything random depends on the seed and on the place in the run, so that a run that was killed and goes on from its
checkpoint gives the same weights as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.backbones import Backbone
from training.errors import DataError, TrainingError

from . import checkpoint
from .batches import Batches, Teacher
from .blend import between
from .checkpoint import Progress
from .devices import alone_with, channels_last, choose_precision, loader_threads, open_fabric, seed_torch
from .events import CANCELLED, TIME_LIMIT, Epoch, OnEpoch, OnStep, Step
from .heads import Examples, HeadSpec, check_heads, targets_of
from .judge import Judge
from .losses import HeadLoss, Objective
from .net import TunedNet, Untrained, as_trained, feature_width, freeze_first, load_weights, parameter_groups, trunk_of
from .pictures import Pictures
from .probe import fit_heads
from .processes import in_processes
from .result import Tuned
from .schedule import AveragedWeights, lr_factor
from .settings import WITH_MASKS, TuneSettings
from .split import hold_out
from .update import Update

ALL_DONE = "all epochs are done"


def tune(
    start: Backbone | Untrained,
    heads: Sequence[HeadSpec],
    labelled: Examples,
    pictures: Pictures,
    settings: TuneSettings | None = None,
    *,
    pool: Examples | None = None,
    teacher: Teacher | None = None,
    folder: Path | None = None,
    on_step: OnStep = lambda step: None,
    on_epoch: OnEpoch = lambda epoch: None,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Tuned:
    """Fine-tune a network on labelled pictures and return the averaged weights of its best epoch.

    Args:
        start: trained weights, or a network that starts from nothing.
        heads: what is asked about each picture; a missing answer costs nothing.
        labelled: answers, extra inputs, groups. Examples without a picture are left out and told.
        pictures: of the labelled examples and of the pool; with masks for mixing by object or saliency.
        pool: examples without answers, for a teacher or for FixMatch.
        teacher: probabilities for any of the examples, to distil from.
        folder: where the run is saved after each epoch, and goes on from if it was killed. Another run's is replaced.
        on_step, on_epoch: told what happens; called in the thread of the run, so they must be quick.
        should_stop: asked between steps; the best so far is returned. Before the first there is none.
        clock: seconds; of a run on one device.
    Raises:
        DataError: examples, answers or pictures that cannot be used; UnknownBackbone, WeightsUnusable.
        TrainingDiverged: the loss or its gradient is not finite; OutOfMemory: not even one picture fits.
        TrainingStopped: by `should_stop`, before there was anything to return.
        ProcessKilled: one of several; TrainingError: one of several failed of something else, which it tells.
    """
    settings = settings or TuneSettings()
    given: dict[str, Any] = {
        **{"start": start, "heads": heads, "labelled": labelled, "pictures": pictures},
        **{"pool": pool, "teacher": teacher},
    }
    if settings.devices > 1:
        return in_processes(_run, settings, folder, on_step, on_epoch, should_stop, **given)
    return _run(
        **given,
        settings=settings,
        folder=folder,
        on_step=on_step,
        on_epoch=on_epoch,
        should_stop=should_stop,
        clock=clock,
    )


def _run(
    start: Backbone | Untrained,
    heads: Sequence[HeadSpec],
    labelled: Examples,
    pictures: Pictures,
    settings: TuneSettings,
    pool: Examples | None,
    teacher: Teacher | None,
    folder: Path | None,
    on_step: OnStep,
    on_epoch: OnEpoch,
    should_stop: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> Tuned:
    """As `tune`, on the device of this process. Of several, the first measures, saves and decides when to stop."""
    size = settings.input_size or start.input_size
    key = checkpoint.key_of(start, heads, labelled, pool, teacher, settings)
    labelled, unreadable = _with_pictures(labelled, pictures)
    check_heads(heads, labelled)
    pool = None if pool is None else _with_pictures(pool, pictures)[0]
    _check_masks(settings, pictures)
    if isinstance(start, Backbone):
        start = as_trained(start)

    with alone_with(settings):
        # ---------------------------------------------------------------- what is learnt from and measured with
        begun = clock()
        fabric = open_fabric(settings, "32")
        first_process = fabric.is_global_zero
        train_rows, held_rows = hold_out(heads, labelled, settings.held_out, settings.seed)
        train, held = labelled.take(train_rows), labelled.take(held_rows)
        targets = {head.name: targets_of(head, train) for head in heads}
        losses = tuple(HeadLoss.of(head, targets[head.name], settings.loss, settings.label_smoothing) for head in heads)
        place = fabric.global_rank, fabric.world_size
        batches = Batches(losses, train, targets, pictures, size, settings, pool, teacher, *place)
        threads = loader_threads(settings)

        # ---------------------------------------------------------------- the network
        seed_torch(settings.seed, 0)
        trunk = trunk_of(start)
        widths = {name: labelled.inputs[name].shape[1] for head in heads for name in head.inputs}
        net = TunedNet(trunk, feature_width(trunk, size), heads, widths)
        channels_last(net, settings.channels_last)
        judge = Judge(losses, train, held, pictures, size, widths, threads)
        net.to(fabric.device)
        progress = None if folder is None else checkpoint.load(folder, key)
        if fabric.broadcast(progress is None) != (progress is None):
            raise TrainingError("the checkpoint of the run could not be read by all processes; run it again")
        if progress is None and settings.start_heads and isinstance(start, Backbone) and first_process:
            net.heads.cpu()  # where the features are collected
            known = judge.training_features(net.trunk, should_stop)
            fit_heads(net, losses, *known, judge.held_out_features(net.trunk, should_stop))
            net.to(fabric.device)
        if isinstance(start, Backbone):
            freeze_first(net, settings.frozen_layers)
        precision, note = (progress.precision, "") if progress else choose_precision(settings, net, size, fabric.device)
        precision, note = fabric.broadcast((precision, note))
        fabric = open_fabric(settings, precision)
        groups = parameter_groups(net, settings.lr_head, settings.lr_trunk, settings.layer_decay, settings.weight_decay)
        frozen_norms = settings.batch_norm == "frozen" or (
            settings.batch_norm == "auto" and isinstance(start, Backbone)
        )
        judged = deepcopy(net)  # holds the averaged weights whenever they are measured
        module, optimizer = fabric.setup(net, torch.optim.AdamW(groups))  # all begin with the first one's weights
        average = AveragedWeights(net, settings.ema_decay)
        objective = Objective(tuple(loss.to(fabric.device) for loss in losses), settings.distil_temperature)
        update = Update(fabric, module, optimizer, objective, settings)

        # ---------------------------------------------------------------- where the run begins
        spent = 0.0 if progress is None else progress.seconds

        def seconds() -> float:
            return spent + clock() - begun

        def stopped() -> str | None:
            if should_stop():
                return CANCELLED
            if settings.time_limit_s is not None and seconds() >= settings.time_limit_s:
                return f"{TIME_LIMIT} of {settings.time_limit_s:g} s was reached"
            return None

        def measured(**about: Any) -> Epoch:
            return fabric.broadcast(judge(judged, **about) if first_process else Epoch(0, 0, None, None))

        if progress is None:
            load_weights(judged, average.state)
            first = measured(epoch=0, epochs=settings.epochs, loss=None)
            first = replace(first, best=True, seconds=seconds())
            progress = Progress.at_start(_on_cpu(average.state), precision, first)
            on_epoch(first)
        else:
            load_weights(net, progress.net)
            average.load(progress.averaged, progress.updates)
            optimizer.load_state_dict(dict(progress.optimizer))
            update.part_size = progress.part_size
        total_steps = settings.epochs * batches.steps
        why = fabric.broadcast(progress.finished or stopped())

        # ---------------------------------------------------------------- epochs
        while why is None and progress.epoch < settings.epochs:
            epoch = progress.epoch + 1
            epoch_began = step_began = clock()
            step_losses, seen = [], 0
            net.training_mode(frozen_norms=frozen_norms)
            for step, batch in enumerate(batches.of_epoch(epoch, threads), start=1):
                number = (epoch - 1) * batches.steps + step - 1
                factor = lr_factor(number, total_steps, settings.warm_up)
                loss, by_head = update(batch, number, factor, _pseudo_weight(settings, number / total_steps))
                average.update(net)
                step_losses.append(loss)
                seen += batch.whole
                speed, step_began = batch.whole / max(clock() - step_began, 1e-9), clock()
                lr = settings.lr_trunk * factor
                on_step(Step(epoch, step, batches.steps, loss, by_head, lr, speed, seconds()))
                why = fabric.broadcast(stopped())
                if why:
                    break
            if why and why == CANCELLED:
                break  # somebody waits: the best of the whole epochs stands

            # ------------------------------------------------------------ measure, keep the best, save
            speed = seen / max(clock() - epoch_began, 1e-9)
            load_weights(judged, average.state)
            found = measured(epoch=epoch, epochs=settings.epochs, loss=float(np.mean(step_losses)))
            found = replace(found, best=progress.is_best(found), images_per_s=speed, seconds=seconds())
            progress.history.append(found)
            if found.best:
                progress.best, progress.best_epoch = _on_cpu(average.state), epoch
            on_epoch(found)
            if len(step_losses) < batches.steps:
                break  # out of time within an epoch, which a resumed run does again
            progress.epoch = epoch
            if epoch == settings.epochs:
                progress.finished = ALL_DONE
            elif settings.patience and epoch - progress.best_epoch >= settings.patience:
                progress.finished = f"no better loss on the held-out examples for {settings.patience} epochs"
            why = progress.finished or why
            if folder is not None and first_process:
                progress.net, progress.optimizer = _on_cpu(net.state_dict()), optimizer.state_dict()
                progress.averaged, progress.updates = _on_cpu(average.state), average.updates
                progress.part_size, progress.seconds = update.part_size, seconds()
                checkpoint.save(folder, key, progress)

        # ---------------------------------------------------------------- part of the way back to the start
        blended = progress.best_epoch > 0 and frozen_norms and isinstance(start, Backbone)
        share = settings.start_share if blended else 0.0
        kept = between(progress.start, progress.best, share)
        load_weights(judged, kept)
        temperatures, errors = judge.temperatures_and_errors(judged) if first_process else ({}, {})

    return Tuned(
        architecture=start.name,
        input_size=size,
        mean=start.mean,
        std=start.std,
        losses=losses,
        inputs=widths,
        state=kept,
        temperatures=temperatures,
        number_error=errors,
        history=tuple(progress.history),
        best_epoch=progress.best_epoch,
        start_share=share,
        reason=why or ALL_DONE,
        held_out=held.ids,
        unreadable=unreadable,
        precision=precision,
        note=note,
    )


def _with_pictures(examples: Examples, pictures: Pictures) -> tuple[Examples, dict[int, str]]:
    """The examples that have a picture, and why the others have none."""
    there = pictures.readable(examples.ids)
    gone = {int(i): pictures.unreadable.get(int(i), "no picture was given") for i in examples.ids[~there]}
    return examples.take(np.flatnonzero(there)), gone


def _check_masks(settings: TuneSettings, pictures: Pictures) -> None:
    if settings.mixing in WITH_MASKS and pictures.channels != 4:
        raise DataError(
            f"mixing {settings.mixing!r} needs to know where the object is, but the pictures have no masks: decode "
            "them with masks, or set mixing to 'cutmix'"
        )


def _pseudo_weight(settings: TuneSettings, done: float) -> float:
    """Weight of FixMatch's loss when a share `done` of the steps is over: early pseudo-labels are wrong."""
    ramp = settings.fixmatch_ramp
    return settings.fixmatch_weight * (min(1.0, done / ramp) if ramp else 1.0)


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
