"""Weights between the start and what was tuned."""

import torch

from training.tuning.blend import between


def test_a_quarter_of_the_start_is_a_quarter_of_the_way_back_and_counters_stay():
    start = {"w": torch.tensor([0.0, 4.0]), "count": torch.tensor(1)}
    tuned = {"w": torch.tensor([8.0, 0.0]), "count": torch.tensor(7)}
    found = between(start, tuned, 0.25)
    assert found["w"].tolist() == [6.0, 1.0] and found["count"].item() == 7
    assert between(start, tuned, 0.0)["w"].tolist() == [8.0, 0.0]
