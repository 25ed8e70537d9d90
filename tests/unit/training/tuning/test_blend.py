"""Weights between the start and what was tuned."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from training.tuning.blend import best_between, between


def test_a_quarter_of_the_start_is_a_quarter_of_the_way_back_and_counters_stay():
    start = {"w": torch.tensor([0.0, 4.0]), "count": torch.tensor(1)}
    tuned = {"w": torch.tensor([8.0, 0.0]), "count": torch.tensor(7)}
    found = between(start, tuned, 0.25)
    assert found["w"].tolist() == [6.0, 1.0] and found["count"].item() == 7
    assert between(start, tuned, 0.0)["w"].tolist() == [8.0, 0.0]


@pytest.mark.parametrize(
    ("optimum", "best"), [(0.0, 0.0), (0.1, 0.0), (0.2, 0.25), (0.4, 0.5), (1.0, 0.5), (0.125, 0.0), (np.nan, 0.0)]
)
def test_the_share_with_the_least_held_out_loss_is_chosen_and_none_of_the_start_among_equals(optimum, best):
    net = torch.nn.Linear(1, 1, bias=False)

    def judge(net, **about):  # the distance from the best place on the way, which is 1 long
        return SimpleNamespace(held_out=abs(1 - net.weight.item() - optimum))

    start, tuned = {"weight": torch.zeros(1, 1)}, {"weight": torch.ones(1, 1)}
    assert best_between(judge, net, start, tuned, (0.25, 0.5)) == best
