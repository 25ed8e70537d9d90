"""One step of the optimizer: forward, backward in as many parts as memory asks for, clip, step."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor

from training.errors import OutOfMemory, TrainingDiverged

from .batches import Batch
from .devices import is_out_of_memory, seed_torch
from .losses import Objective
from .net import TunedNet
from .settings import TuneSettings

_log = logging.getLogger(__name__)


class Update:
    """Changes a network's weights by one batch at a time."""

    def __init__(
        self,
        fabric: Fabric,
        module: _FabricModule,
        optimizer: _FabricOptimizer,
        objective: Objective,
        settings: TuneSettings,
    ) -> None:
        self._fabric, self._module, self._optimizer = fabric, module, optimizer
        self._net = cast("TunedNet", module.module)
        self._objective, self._settings = objective, settings
        self.part_size: int | None = None  # pictures at a time, once memory was short

    def __call__(
        self, batch: Batch, number: int, factor: float, pseudo_weight: float
    ) -> tuple[float, dict[str, float]]:
        """The loss and the plain loss of each head before this step.

        Args:
            number: of the step in the run, from 0; seeds dropout.
            factor: share of the full learning rates. pseudo_weight: of FixMatch's loss, now.
        Raises:
            TrainingDiverged: the loss or its gradient is not finite; OutOfMemory: not even for one picture.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        batch = batch.to(self._fabric.device)
        found = None
        while found is None:
            found = self._in_memory(batch, number, pseudo_weight)
        norm = self._fabric.clip_gradients(
            self._module, self._optimizer, max_norm=self._settings.clip_norm, error_if_nonfinite=False
        )
        if norm is not None and not torch.isfinite(norm):
            raise TrainingDiverged(
                number + 1, float(norm), "the gradient's length is not finite. Lower lr_trunk and lr_head"
            )
        self._optimizer.step()
        return found

    def _in_memory(self, batch: Batch, number: int, pseudo_weight: float) -> tuple[float, dict[str, float]] | None:
        """As `_gradient`; None if memory was short, with half as many pictures at a time from then on."""
        try:
            return self._gradient(batch, number, pseudo_weight)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = min(self.part_size or len(batch), len(batch))
            if size <= 1:
                raise OutOfMemory(1) from error
            self.part_size = (size + 1) // 2
            _log.warning("not enough memory for %d pictures at a time: going on with %d", size, self.part_size)
            return None

    def _gradient(self, batch: Batch, number: int, pseudo_weight: float) -> tuple[float, dict[str, float]]:
        self._optimizer.zero_grad(set_to_none=True)
        seed_torch(self._settings.seed, 7, number, self._fabric.global_rank)
        if batch.weak is not None:
            batch = self._with_pseudo_labels(batch, pseudo_weight)
        size = self.part_size or max(1, len(batch))
        total, plain = 0.0, dict.fromkeys(batch.targets, 0.0)
        for start in range(0, len(batch), size):
            part = batch.part(slice(start, start + size))
            # Memory may be short for one process alone, so each adds up its parts and all add up once.
            with self._fabric.no_backward_sync(self._module, enabled=self._fabric.world_size > 1):
                outputs = self._module(part.images, part.inputs)
                loss, losses = self._objective(
                    outputs, part.targets, part.shares, self._net.log_variance, part.teacher, part.teacher_shares
                )
                self._fabric.backward(loss)
            total += float(loss.detach())
            for name, value in losses.items():
                plain[name] += float(value)
        if self._fabric.world_size > 1:
            total, *values = self._over_all([total, *plain.values()])
            plain = dict(zip(plain, values, strict=True))
        if not total - total == 0:  # NaN or infinite
            raise TrainingDiverged(
                number + 1, total, "Lower lr_trunk and lr_head, and look for broken extra inputs or weights"
            )
        return total, plain

    @torch.no_grad()
    def _over_all(self, losses: list[float]) -> list[float]:
        """Add up gradients, in place, and losses over all processes: each knows those of its part of the step."""
        trained = [parameter for parameter in self._net.parameters() if parameter.requires_grad]
        here = [float(parameter.grad is not None) for parameter in trained]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        numbers = torch.tensor([*losses, *here], device=self._fabric.device)
        summed = self._fabric.all_reduce(torch.cat([*(grad.reshape(-1) for grad in grads), numbers]), reduce_op="sum")
        assert isinstance(summed, Tensor)
        *values, numbers = summed.split([*(grad.numel() for grad in grads), len(numbers)])
        for parameter, grad, value, there in zip(trained, grads, values, numbers[len(losses) :].tolist(), strict=True):
            # What no process has a gradient of is left alone by the optimizer, as on one device.
            parameter.grad = grad.copy_(value.view(grad.shape)) if there else None
        return [float(value) for value in numbers[: len(losses)]]

    @torch.no_grad()
    def _with_pseudo_labels(self, batch: Batch, weight: float) -> Batch:
        """The batch with the network's own answers to the weak views, where it is sure of them (FixMatch, eq. 4).

        Heads with one answer only: for several at once, or for a number, there is no one confidence.
        """
        assert batch.weak is not None
        count = len(batch.weak)
        if not count:  # of the other processes' parts of the step only
            return replace(batch, weak=None)
        first = len(batch) - count
        size = self.part_size or count
        found: list[list[Tensor]] = []
        for start in range(0, count, size):
            rows = slice(start, start + size)
            inputs = {name: value[first:][rows] for name, value in batch.inputs.items()}
            found.append(list(self._module(batch.weak[rows], inputs)))
        targets, shares = dict(batch.targets), dict(batch.shares)
        for loss, *parts in zip(self._objective.losses, *found, strict=True):
            if loss.spec.kind not in ("single", "ordinal"):
                continue
            name = loss.spec.name
            confidence, index = loss.log_probabilities(torch.cat(parts)).exp().max(1)
            sure = (confidence >= self._settings.fixmatch_threshold).float()
            targets[name] = targets[name].clone()
            targets[name][first:] = torch.nn.functional.one_hot(index, loss.spec.width).float()
            shares[name] = shares[name].clone()
            shares[name][first:] = weight * sure / batch.unlabelled
        return replace(batch, targets=targets, shares=shares, weak=None)
