"""Number formats, threads and memory."""

import numpy as np
import pytest
import torch

from training.tuning import HeadSpec, TuneSettings
from training.tuning import devices as where
from training.tuning.net import TunedNet

HEAD = HeadSpec("h", "single", ("a", "b"))


@pytest.mark.parametrize(("bf16_seconds", "chosen"), [(0.5, "bf16"), (0.95, "32"), (10.0, "32")])
def test_bf16_is_chosen_only_where_it_is_measured_to_pay(monkeypatch, bf16_seconds, chosen):
    monkeypatch.setattr(where, "_seconds", lambda *_, bf16: bf16_seconds if bf16 else 1.0)
    found, why = where.choose_precision(TuneSettings(), None, 32, torch.device("cpu"))
    assert found == chosen and "times as fast" in why


def test_a_format_that_was_asked_for_is_not_measured():
    assert where.choose_precision(TuneSettings(precision="bf16"), None, 32, torch.device("cpu"))[0] == "bf16"


def test_measuring_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(Channels(), torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    net = TunedNet(trunk, 4 * 36, [HEAD], {})
    before = {name: value.clone() for name, value in net.state_dict().items()}
    where.choose_precision(TuneSettings(), net, 8, torch.device("cpu"))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


class Channels(torch.nn.Module):
    def forward(self, images):
        return images.permute(0, 3, 1, 2).float()


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_short_memory_is_told_from_other_errors(error, memory):
    assert where.is_out_of_memory(error) is memory


def test_a_real_allocation_that_is_too_large_counts_as_short_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert where.is_out_of_memory(caught.value)


@pytest.mark.parametrize(("threads", "loaders"), [(1, 1), (2, 1), (4, 3), (64, 8)])
def test_batches_are_made_beside_the_step(threads, loaders):
    assert where.loader_threads(TuneSettings(threads=threads)) == loaders


def test_the_seed_of_dropout_depends_on_every_part():
    draws = []
    for parts in ((0, 7, 1), (0, 7, 2), (1, 7, 1), (0, 7, 1)):
        where.seed_torch(*parts)
        draws.append(float(torch.rand(1)))
    assert draws[0] == draws[3] and len(np.unique(draws)) == 3
