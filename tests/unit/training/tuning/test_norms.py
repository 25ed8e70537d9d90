"""Norms that convolutions do the work of: the same function and gradients as the network as torchvision wrote it."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from training.backbones import feature_extractor
from training.tuning.norms import FoldedNorm, fold_norms


def with_statistics(net):
    """Norms that do something, as after training."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.mark.parametrize(
    ("name", "folded"), [("mobilenet_v2", 52), ("resnet18", 20), ("densenet121", 59), ("vgg11_bn", 8), ("vit_b_32", 0)]
)
def test_a_folded_network_is_the_same_function_with_the_same_names(name, folded):
    plain = with_statistics(feature_extractor(name)).double()
    ours = deepcopy(plain)
    assert fold_norms(ours) == folded
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x))
    assert list(ours.state_dict()) == list(plain.state_dict())


def test_gradients_are_those_of_convolution_and_norm_apart():
    plain = with_statistics(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2)
        )
    ).double()
    ours = deepcopy(plain)
    assert fold_norms(ours) == 2
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    for net in (plain, ours):
        net(x).square().sum().backward()
    for theirs, mine in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_a_norm_that_takes_new_statistics_is_a_norm_again():
    plain = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    ours = deepcopy(plain)
    fold_norms(ours)
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(ours.train()(x), plain.train()(x))
    torch.testing.assert_close(ours[1].running_mean, plain[1].running_mean)
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))


def test_a_copy_stands_on_its_own():
    net = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    fold_norms(net)
    copy, x = deepcopy(net), torch.randn(1, 3, 8, 8)
    before = copy(x)
    with torch.no_grad():
        net[1].bias.add_(1)
    torch.testing.assert_close(copy(x), before)


class UsedTwice(nn.Module):
    """A convolution whose result goes elsewhere too, and a norm behind two convolutions."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.seen, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.seen(x)
        return self.norm(self.a(x)) + self.norm(self.b(x)) + self.other(y) + y


class Branches(nn.Module):
    """What it does depends on the numbers it is given."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)) if x.sum() > 0 else x


@pytest.mark.parametrize("net", [UsedTwice(), Branches()])
def test_what_is_not_one_convolution_before_one_norm_is_left_alone(net):
    assert fold_norms(net) == 0
    assert not any(isinstance(module, FoldedNorm) for module in net.modules())
