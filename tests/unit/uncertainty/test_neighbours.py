"""Nearest neighbours against scikit-learn and naive float64."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from uncertainty import neighbours
from uncertainty.errors import PoolError, ShapeError
from uncertainty.neighbours import nearest


def unit(n, d, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(params=[False, True], ids=["one tile", "many tiles"])
def tiles(request, monkeypatch):
    if request.param:
        for name, value in (("_TILE", 7), ("_BLOCK", 5), ("_GATHERED", 50)):
            monkeypatch.setattr(neighbours, name, value)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("k", [1, 10, 59])
def test_neighbours_are_those_of_scikit_learn(k):
    x, q = unit(59, 6), unit(31, 6, 1)
    distances, rows = nearest(torch.from_numpy(q), torch.from_numpy(x), k)
    expected, expected_rows = NearestNeighbors(algorithm="brute").fit(x).kneighbors(q, k)
    assert rows.tolist() == expected_rows.tolist()
    assert distances.numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.usefixtures("tiles")
def test_a_row_is_not_its_own_neighbour_when_skipped():
    x = unit(40, 5)
    distance = np.linalg.norm(x[:, None].astype(np.float64) - x[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    distances, rows = nearest(torch.from_numpy(x), x, 39, np.arange(40))
    assert (rows.numpy() != np.arange(40)[:, None]).all()
    assert distances.numpy() == pytest.approx(np.sort(distance, 1)[:, :39], abs=1e-6)


def test_distances_of_near_copies_keep_their_digits():
    x = unit(50, 384)
    near = x + 1e-5 * unit(50, 384, 1)
    distances, rows = nearest(torch.from_numpy(near), x, 1)
    assert rows.flatten().tolist() == list(range(50))
    # The product form alone would be wrong by up to 5e-4.
    assert distances.flatten().tolist() == pytest.approx([1e-5] * 50, rel=0.02)


def test_half_precision_rows_in_a_file_are_read_as_they_are(tmp_path):
    x = unit(100, 8).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    expected = nearest(torch.from_numpy(unit(9, 8, 1)), torch.from_numpy(x), 3)
    out = nearest(torch.from_numpy(unit(9, 8, 1)), mapped, 3)
    assert torch.equal(out[0], expected[0]) and torch.equal(out[1], expected[1])


def test_without_queries_there_are_no_neighbours():
    distances, rows = nearest(torch.empty(0, 4), unit(5, 4), 2)
    assert distances.shape == rows.shape == (0, 2)


@pytest.mark.parametrize(("k", "skip"), [(0, None), (6, None), (5, np.zeros(2, int))])
def test_a_number_of_neighbours_that_does_not_exist_is_refused(k, skip):
    with pytest.raises(PoolError, match=f"neighbours, got {k}"):
        nearest(torch.zeros(2, 4), unit(5, 4), k, skip)


def test_another_width_is_refused():
    with pytest.raises(ShapeError, match=r"\[2, 3\] and \[5, 4\]"):
        nearest(torch.zeros(2, 3), unit(5, 4), 1)
