"""Greedy coverage, kernel width and sampling against naive float64 and closed forms."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from uncertainty import coverage


def unit(n, d, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def naive_kernel(x, z, sigma):
    return np.exp(-((x[:, None] - z[None]) ** 2).sum(-1) / sigma**2)


def naive_greedy(x, z, w, covered, sigma, k):
    kernel, covered, rows, gains = naive_kernel(x, z, sigma), covered.copy(), [], []
    for _ in range(k):
        gain = (np.maximum(kernel - covered, 0) * w).sum(1)
        gain[rows] = -1
        rows.append(int(gain.argmax()))
        gains.append(gain[rows[-1]])
        covered = np.maximum(covered, kernel[rows[-1]])
    return rows, gains


def f32(x):
    return torch.from_numpy(x).float()


@pytest.mark.parametrize("table", [0, 10**9], ids=["rows computed again", "table kept"])
@pytest.mark.parametrize("seed", range(4))
def test_lazy_greedy_chooses_what_naive_greedy_in_float64_chooses(seed, table, monkeypatch):
    monkeypatch.setattr(coverage, "_TABLE", table)
    x, z, labelled = unit(120, 6, seed), unit(90, 6, seed + 10), unit(5, 6, seed + 20)
    w = np.random.default_rng(seed).random(90)
    covered = naive_kernel(z, labelled, 0.6).max(1)
    rows, gains = naive_greedy(x, z, w, covered, 0.6, 25)
    out = coverage.greedy_cover(f32(x), f32(z), f32(w), f32(covered), sigma=0.6, k=25)
    assert out.rows == rows
    assert out.gains == pytest.approx(gains, rel=1e-4)


def test_blocks_do_not_change_the_choice(monkeypatch):
    x, w = f32(unit(101, 5)), torch.ones(101)
    whole = coverage.greedy_cover(x, x, w, torch.zeros(101), sigma=0.7, k=10)
    monkeypatch.setattr(coverage, "_BLOCK", 7 * 101)
    assert coverage.greedy_cover(x, x, w, torch.zeros(101), sigma=0.7, k=10).rows == whole.rows


def test_gains_never_grow():
    x = f32(unit(200, 4))
    gains = coverage.greedy_cover(x, x, torch.ones(200), torch.zeros(200), sigma=0.8, k=60).gains
    assert all(late <= early + 1e-4 for early, late in pairwise(gains))


def test_only_weighted_points_attract_choices():
    x = f32(np.eye(4))
    out = coverage.greedy_cover(x, x, torch.tensor([0.0, 1.0, 0.0, 2.0]), torch.zeros(4), sigma=0.1, k=4)
    assert out.rows == [3, 1]


def test_copies_of_what_is_covered_gain_nothing():
    x = f32(unit(6, 8))
    assert coverage.greedy_cover(x, x, torch.ones(6), torch.ones(6), sigma=0.5, k=3).rows == []


def test_a_group_supplies_one_choice():
    x = f32(unit(40, 6))
    groups = np.arange(40) % 4
    out = coverage.greedy_cover(x, x, torch.ones(40), torch.zeros(40), sigma=0.5, k=10, groups=groups)
    assert sorted(groups[out.rows]) == [0, 1, 2, 3]


def test_inputs_of_the_greedy_choice_are_left_untouched():
    x, covered = f32(unit(30, 4)), torch.full((30,), 0.1)
    before = x.clone()
    coverage.greedy_cover(x, x, torch.ones(30), covered, sigma=0.5, k=5)
    assert torch.equal(x, before)
    assert torch.equal(covered, torch.full((30,), 0.1))


def test_coverage_is_the_largest_kernel_value():
    z, c = unit(30, 5), unit(7, 5, 1)
    expected = naive_kernel(z, c, 0.4).max(1)
    assert coverage.coverage(f32(z), f32(c), 0.4).numpy() == pytest.approx(expected, rel=1e-4)


def test_without_centres_nothing_is_covered():
    assert coverage.coverage(torch.ones(3, 2), torch.empty(0, 2), 0.5).tolist() == [0, 0, 0]


def test_width_without_labels_is_half_the_usual_distance():
    # Random directions in high dimension are at distance sqrt(2) from each other.
    width = coverage.kernel_width(f32(unit(500, 400)), torch.empty(0, 400), np.random.default_rng(0))
    assert width == pytest.approx(np.sqrt(2) / 2, rel=0.02)


def test_width_follows_the_median_nearest_label():
    rng = np.random.default_rng(0)
    angles = np.arange(20) * 0.3
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    wide = f32(unit(500, 2))
    assert coverage.kernel_width(wide, f32(circle), rng) == pytest.approx(2 * np.sin(0.15), rel=0.05)


def test_one_pair_of_equal_labels_does_not_collapse_the_width():
    pool, labels = unit(500, 20), unit(30, 20, 1)
    labels[1] = labels[0]
    width = coverage.kernel_width(f32(pool), f32(labels), np.random.default_rng(0))
    assert width > 0.25


def test_labels_that_are_all_copies_leave_the_floor():
    pool = f32(unit(500, 20))
    start = coverage.kernel_width(pool, pool[:0], np.random.default_rng(0))
    assert coverage.kernel_width(pool, pool[:1].repeat(9, 1), np.random.default_rng(0)) == pytest.approx(start / 4)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_width_of_a_pool_of_copies_is_positive(n):
    same = torch.eye(3)[:1].repeat(n, 1)
    assert coverage.kernel_width(same, same[:0], np.random.default_rng(0)) > 0


def test_a_sample_stands_for_all_weight():
    w = np.random.default_rng(0).random(1000)
    rows, representing = coverage.systematic_sample(w, 100, np.random.default_rng(1))
    assert len(rows) == len(set(rows)) <= 100
    assert representing.sum() == pytest.approx(w.sum())


def test_estimates_from_a_sample_are_unbiased():
    rng = np.random.default_rng(0)
    w, f = rng.random(300) ** 4, rng.random(300)
    estimates = []
    for seed in range(2000):
        rows, representing = coverage.systematic_sample(w, 20, np.random.default_rng(seed))
        estimates.append((representing * f[rows]).sum())
    standard_error = np.std(estimates) / np.sqrt(2000)
    assert np.mean(estimates) == pytest.approx((w * f).sum(), abs=4 * standard_error)


def test_a_row_heavier_than_a_step_is_returned_once_and_stands_for_itself():
    w = np.ones(100)
    w[50] = 100
    rows, representing = coverage.systematic_sample(w, 20, np.random.default_rng(0))
    assert (rows == 50).sum() == 1
    assert representing[rows == 50] == pytest.approx(100, abs=2 * w.sum() / 20)


def test_few_rows_with_weight_are_all_returned_with_their_own():
    w = np.zeros(1000)
    w[[3, 999]] = 0.5, 2.0
    rows, representing = coverage.systematic_sample(w, 10, np.random.default_rng(0))
    assert rows.tolist() == [3, 999]
    assert representing.tolist() == [0.5, 2.0]


def test_a_row_without_weight_is_never_drawn():
    w = np.tile([1.0, 0.0], 500)
    for seed in range(50):
        rows, _ = coverage.systematic_sample(w, 37, np.random.default_rng(seed))
        assert (rows % 2 == 0).all()


def test_each_stretch_of_the_order_gets_its_share():
    rows, _ = coverage.systematic_sample(np.ones(1000), 100, np.random.default_rng(0))
    assert np.bincount(rows // 100).tolist() == [10] * 10
