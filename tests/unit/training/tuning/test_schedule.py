"""Learning rates, averages, and parameters in groups."""

import math

import pytest
import torch
from torch import nn

from training.backbones import feature_extractor, scaled
from training.tuning.heads import HeadSpec
from training.tuning.net import TunedNet, parameter_groups
from training.tuning.schedule import AveragedWeights, lr_factor

HALF = (0.5, 0.5, 0.5)


def test_the_rate_rises_in_a_line_and_falls_as_half_a_cosine():
    factors = [lr_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert factors[10:] == pytest.approx([(1 + math.cos(math.pi * k / 90)) / 2 for k in range(90)])
    assert min(factors) > 0


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert lr_factor(0, 10, 0.0) == 1


def test_the_average_is_the_weighted_sum_of_all_weights_that_were():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = AveragedWeights(net, 0.5)
    expected = net[0].weight.detach().double().clone()
    for t in range(12):
        with torch.no_grad():
            net[0].weight.add_(torch.randn(2, 3))
            net[1].running_mean.add_(1.0)
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * net[0].weight.detach().double()
        average.update(net)
    assert torch.allclose(average.state["0.weight"].double(), expected, atol=1e-5)
    assert torch.equal(average.state["1.running_mean"], net[1].running_mean)


@pytest.fixture
def net():
    trunk = scaled(feature_extractor("squeezenet1_1"), HALF, HALF).requires_grad_(True)
    heads = [HeadSpec("a", "single", ("x", "y"), inputs=("age",)), HeadSpec("b", "number")]
    return TunedNet(trunk, 512, heads, {"age": 1})


def test_every_parameter_is_in_one_group_and_layers_learn_faster_towards_the_heads(net):
    groups = parameter_groups(net, 1e-2, 1e-3, 0.1, 0.05)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rate) == sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
    trunk = [rate[id(p)] for p in net.trunk.parameters()]
    assert trunk == sorted(trunk) and trunk[0] == pytest.approx(1e-4) and trunk[-1] == pytest.approx(1e-3)
    assert {rate[id(p)] for p in [*net.heads.parameters(), *net.conditions.parameters()]} == {1e-2}


def test_vectors_are_not_decayed(net):
    for group in parameter_groups(net, 1e-2, 1e-3, 0.1, 0.05):
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}


def test_one_head_alone_has_no_variance_to_learn(net):
    alone = TunedNet(net.trunk, 512, [HeadSpec("b", "number")], {})
    assert net.log_variance.requires_grad and not alone.log_variance.requires_grad
