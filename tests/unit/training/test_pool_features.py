"""Features learnt from the pool: what they promise to callers, and each closed-form step against a second route."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from training import patch_dictionary, pool_features
from training.errors import CheckpointCorrupt, DataError, RepresentationError
from training.patch_dictionary import PatchDictionary
from training.pool_features import PoolFeatures, choose_input_size


def blobs(count: int, size: int = 16, seed: int = 0, grey: bool = False) -> NDArray[np.uint8]:
    """Smooth random pictures: coarse noise enlarged, so that neighbouring pixels agree as in photographs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, size // 4, size // 4, 1 if grey else 3))
    fine = np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2)
    return np.broadcast_to(fine, (*fine.shape[:3], 3)).astype(np.uint8)


def enlarged_digits(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """scikit-learn's handwritten digits at 32 x 32 pixels, RGB."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))[:count]
    x = torch.from_numpy(images[order].reshape(-1, 1, 8, 8) * 15.9375)
    x = torch.nn.functional.interpolate(x, size=32, mode="bilinear", antialias=False).clamp(0, 255)
    return x.byte().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy(), labels[order]


@pytest.fixture(scope="module")
def learnt() -> PoolFeatures:
    return PoolFeatures.learn(blobs(60), seed=0)


# --- what callers rely on ---------------------------------------------------------------------------------------------


def test_few_labels_reach_much_further_than_on_raw_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_features, "_VIEW_IMAGES", 150)  # for time
    images, labels = enlarged_digits(500)
    embedded = PoolFeatures.learn(images, seed=0).embed(images)
    pixels = images[..., 0].reshape(len(images), -1) / 255.0

    def accuracy(rows: NDArray[np.float64] | NDArray[np.float32]) -> float:
        head = LogisticRegression(C=100, max_iter=300).fit(rows[:100], labels[:100])
        return float(head.score(rows[100:], labels[100:]))

    assert accuracy(embedded) >= 0.94
    assert accuracy(embedded) >= accuracy(pixels) + 0.04


def test_the_same_sample_and_seed_give_the_same_features_and_another_seed_gives_others() -> None:
    images = blobs(30)
    first, again, other = (PoolFeatures.learn(images, seed=seed) for seed in (1, 1, 2))
    assert first.id == again.id
    assert np.array_equal(first.embed(images), again.embed(images))
    assert first.id != other.id


def test_rows_do_not_depend_on_how_images_are_batched(learnt: PoolFeatures) -> None:
    images = blobs(40, seed=5)
    one_by_one = np.concatenate([learnt.embed(images[i : i + 1]) for i in range(len(images))])
    np.testing.assert_allclose(learnt.embed(images), one_by_one, atol=1e-5)


def test_rows_have_unit_length_and_the_announced_width(learnt: PoolFeatures) -> None:
    rows = learnt.embed(blobs(7, seed=3))
    assert rows.shape == (7, learnt.width)
    assert rows.dtype == np.float32
    assert learnt.width <= 320
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_the_two_parts_of_a_row_weigh_as_the_trust_in_the_graph_says(learnt: PoolFeatures) -> None:
    rows = learnt.embed(blobs(7, seed=3))
    near, far = np.split(rows, [learnt.projection.shape[1]], axis=1)
    assert 0 < learnt.trust <= 1
    np.testing.assert_allclose(np.linalg.norm(far, axis=1) / np.linalg.norm(near, axis=1), learnt.trust, rtol=1e-4)


def test_no_images_give_no_rows(learnt: PoolFeatures) -> None:
    assert learnt.embed(blobs(0)).shape == (0, learnt.width)


def test_a_picture_shifted_by_a_pixel_stays_nearer_than_another_picture(learnt: PoolFeatures) -> None:
    images = blobs(20, seed=9)
    rows, moved = learnt.embed(images), learnt.embed(np.roll(images, 1, axis=2))
    distances = np.linalg.norm(rows[:, None] - moved[None], axis=2)
    assert (distances.argmin(1) == np.arange(len(images))).mean() >= 0.9


@pytest.mark.parametrize("count", [2, 3, 13, 30])
def test_pools_of_a_few_images_can_be_learnt_from(count: int) -> None:
    images = blobs(count)
    rows = PoolFeatures.learn(images, seed=0).embed(images)
    assert np.isfinite(rows).all()
    assert np.linalg.norm(rows[0] - rows[1]) > 0.1


def test_a_pool_of_identical_blank_images_gives_finite_rows() -> None:
    blank = np.full((30, 16, 16, 3), 255, np.uint8)
    assert np.isfinite(PoolFeatures.learn(blank, seed=0).embed(blank)).all()


def test_a_grey_pool_uses_one_channel_and_accepts_a_colour_image() -> None:
    features = PoolFeatures.learn(blobs(30, grey=True), seed=0)
    assert {f.shape[1] for f in features.filters} == {1}
    assert np.isfinite(features.embed(blobs(2, seed=4))).all()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 16, 16), np.uint8),
        np.zeros((2, 16, 16, 1), np.uint8),
        np.zeros((2, 16, 20, 3), np.uint8),
        np.zeros((2, 16, 16, 3), np.float32),
        np.zeros((2, 8, 8, 3), np.uint8),
    ],
    ids=["no channels", "one channel", "not square", "floats", "too small"],
)
def test_anything_but_square_uint8_rgb_is_refused(images: NDArray[np.uint8], learnt: PoolFeatures) -> None:
    with pytest.raises(DataError, match="wanted square RGB images"):
        PoolFeatures.learn(images, seed=0)
    with pytest.raises(DataError, match="wanted square RGB images"):
        learnt.embed(images)


def test_images_of_another_size_than_learnt_are_refused(learnt: PoolFeatures) -> None:
    with pytest.raises(DataError, match="16 x 16 pixels, got 32 x 32"):
        learnt.embed(blobs(1, size=32))


def test_one_image_is_too_few_to_learn_from() -> None:
    with pytest.raises(DataError, match="at least 2 images"):
        PoolFeatures.learn(blobs(1), seed=0)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(28, 28)], 32),
        ([(48, 60)], 32),
        ([(49, 60)], 64),
        ([(160, 96)], 64),
        ([(4000, 3000)], 64),
        ([(4000, 3000), (28, 28), (28, 28)], 32),
    ],
)
def test_the_input_size_follows_the_median_shorter_side(sizes: list[tuple[int, int]], expected: int) -> None:
    assert choose_input_size(sizes) == expected


def test_an_input_size_cannot_be_chosen_from_nothing() -> None:
    with pytest.raises(DataError, match="at least one image"):
        choose_input_size([])


def test_an_octave_without_detail_is_left_out_and_one_with_detail_is_not() -> None:
    rng = np.random.default_rng(0)
    small = torch.from_numpy(rng.integers(0, 256, (40, 3, 8, 8))).float()
    large = torch.nn.functional.interpolate(small, size=64, mode="bicubic").clamp(0, 255)
    enlarged = large.byte().permute(0, 2, 3, 1).contiguous().numpy()
    crisp = rng.integers(0, 256, (40, 64, 64, 3)).astype(np.uint8)
    assert patch_dictionary.finest_octave(enlarged, False) == 1
    assert patch_dictionary.finest_octave(crisp, False) == 0
    assert patch_dictionary.finest_octave(enlarged[:, ::2, ::2], False) == 0  # 32 pixels are not halved


# --- storage ----------------------------------------------------------------------------------------------------------


def test_saved_features_come_back_with_the_same_id_and_numbers(learnt: PoolFeatures, tmp_path: Path) -> None:
    learnt.save(tmp_path / "deep" / "features.safetensors")
    again = PoolFeatures.load(tmp_path / "deep" / "features.safetensors")
    images = blobs(5, seed=8)
    assert again.id == learnt.id
    assert np.array_equal(again.embed(images), learnt.embed(images))
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["features.safetensors"]


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "empty", "not ours"])
def test_a_damaged_file_is_refused(learnt: PoolFeatures, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "features.safetensors"
    learnt.save(path)
    data = bytearray(path.read_bytes())
    if damage == "flipped bit":
        data[-5] ^= 1
    path.write_bytes({"cut short": data[: len(data) // 2], "empty": b"", "not ours": b"x" * 100}.get(damage, data))
    with pytest.raises(CheckpointCorrupt):
        PoolFeatures.load(path)


def test_a_missing_file_says_that_features_must_be_learnt_first(tmp_path: Path) -> None:
    with pytest.raises(RepresentationError, match="learn them first"):
        PoolFeatures.load(tmp_path / "none.safetensors")


# --- the steps, each by a second route --------------------------------------------------------------------------------


def test_pooled_responses_equal_a_naive_loop_over_patches(learnt: PoolFeatures) -> None:
    image = blobs(1, seed=11)
    coarse = PatchDictionary(False, 0, learnt.filters, learnt.offsets)
    got = coarse.pooled(image)[0].double().numpy()

    weights = learnt.filters[0].double().flatten(1).numpy()
    x = image[0].astype(np.float64).transpose(2, 0, 1) - 128
    responses = np.zeros((len(weights), 11, 11))
    for row in range(11):
        for column in range(11):
            patch = x[:, row : row + 6, column : column + 6].ravel()
            normalised = (patch - patch.mean()) / np.sqrt(patch.var() + 10.0)
            responses[:, row, column] = weights @ normalised - learnt.offsets[0].double().numpy()
    edges = [(int(np.floor(i * 11 / 4)), int(np.ceil((i + 1) * 11 / 4))) for i in range(4)]
    expected = [
        np.sqrt(np.maximum(sign * responses[:, a:b, c:d] - 0.25, 0).mean((1, 2)))
        for sign in (1, -1)
        for a, b in edges
        for c, d in edges
    ]
    expected_rows = np.stack(expected).reshape(2, 16, -1).transpose(0, 2, 1).ravel()
    np.testing.assert_allclose(got, expected_rows, atol=2e-3)


def test_dictionary_words_are_unit_vectors_in_the_whitened_space() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(20, 20))
    patches = torch.from_numpy((rng.normal(size=(5000, 20)) @ mixing + 3).astype(np.float32))
    weights, offsets = patch_dictionary.learn_words(patches, rng)
    centred = patches.double().numpy() - patches.double().numpy().mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    unwhiten = (vectors * np.sqrt(values + 0.1)) @ vectors.T
    # `weights` had their mean removed; whitened words differ from it by a multiple of ones that the offset reveals.
    shift = (offsets.double().numpy() - weights.double().numpy() @ patches.double().numpy().mean(0)) / (
        patches.double().numpy().mean(0).sum()
    )
    words = (weights.double().numpy() + shift[:, None]) @ unwhiten
    np.testing.assert_allclose(np.linalg.norm(words, axis=1), 1, atol=1e-2)


def test_principal_directions_agree_with_a_singular_value_decomposition() -> None:
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 90)))
    variances, directions = pool_features._principal(rows - rows.mean(0))
    centred = (rows - rows.mean(0)).numpy()
    singular = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose(variances.numpy(), (singular**2 / 40)[:39], rtol=1e-8)
    np.testing.assert_allclose(directions.T @ directions, np.eye(39), atol=1e-8)
    np.testing.assert_allclose((centred @ directions.numpy()).var(0), variances.numpy(), rtol=1e-8)


def test_the_discriminant_gives_nuisance_unit_variance_and_puts_the_most_telling_direction_first() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    nuisance = torch.from_numpy(mixing @ mixing.T)
    between = torch.from_numpy(np.array([9.0, 5.0, 4.0, 2.0, 1.0, 0.5]))
    found = pool_features._discriminant(between, nuisance).numpy()
    floored = nuisance.numpy() + 0.5 * np.trace(nuisance.numpy()) / 6 * np.eye(6)
    np.testing.assert_allclose(found.T @ floored @ found, np.eye(6), atol=1e-6)
    telling = np.diag(found.T @ np.diag(between.numpy()) @ found)
    # Second route: the eigenvalues of the generalised problem between v = t floored v.
    expected = np.sort(np.linalg.eigvals(np.linalg.solve(floored, np.diag(between.numpy()))).real)[::-1]
    np.testing.assert_allclose(telling, expected, rtol=1e-6)


def test_a_direction_that_moves_under_warps_is_shrunk() -> None:
    between, nuisance = torch.tensor([4.0, 4.0]), torch.diag(torch.tensor([100.0, 0.01]))
    found = pool_features._discriminant(between, nuisance)
    lengths = (torch.eye(2) @ found).norm(dim=1)
    assert lengths[1] > 1.5 * lengths[0]


def test_diffusion_coordinates_are_the_eigenvectors_of_the_walk_over_the_pool() -> None:
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.normal(size=(120, 4))).float()
    anchors, diffusion, trust = pool_features._anchor_graph(points)
    weights = pool_features._anchor_weights(points, anchors)
    coordinates = (weights @ diffusion).double().numpy()
    z = weights.double().numpy()
    walk = z @ np.diag(1 / z.sum(0)) @ z.T  # [n, n], what the code never forms
    np.testing.assert_allclose(walk.sum(1), 1, atol=1e-5)
    values = np.linalg.eigvalsh(walk)[::-1]
    for i in range(5):
        assert np.linalg.norm(coordinates[:, i]) == pytest.approx(np.sqrt(120) * values[i + 1] ** 3, rel=1e-3)
        np.testing.assert_allclose(walk @ coordinates[:, i], values[i + 1] * coordinates[:, i], atol=1e-3)
    assert trust == pytest.approx((values[1:9] ** 6).mean(), rel=1e-3)


def test_anchor_weights_sum_to_one_over_the_six_nearest_and_prefer_the_nearest() -> None:
    rng = np.random.default_rng(0)
    points, anchors = (torch.from_numpy(rng.normal(size=(n, 3))).float() for n in (10, 30))
    weights = pool_features._anchor_weights(points, anchors).numpy()
    distances = np.linalg.norm(points.numpy()[:, None] - anchors.numpy()[None], axis=2)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    for row, distance in zip(weights, distances, strict=True):
        assert set(np.flatnonzero(row)) == set(np.argsort(distance)[:6])
        assert row.argmax() == distance.argmin()


def test_the_slowest_diffusion_coordinate_tells_two_rings_apart() -> None:
    rng = np.random.default_rng(0)
    angle, outer = rng.uniform(0, 2 * np.pi, 800), rng.integers(0, 2, 800)
    radius = 1 + 2 * outer + rng.normal(0, 0.05, 800)
    points = torch.from_numpy(np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)).float()
    anchors, diffusion, _ = pool_features._anchor_graph(points)
    slowest = (pool_features._anchor_weights(points, anchors) @ diffusion)[:, 0].numpy()
    assert abs(np.corrcoef(slowest, outer)[0, 1]) >= 0.99
    assert abs(np.corrcoef(points[:, 0].numpy(), outer)[0, 1]) < 0.1


def test_the_graph_weighs_more_in_a_pool_of_groups_than_in_one_without() -> None:
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(600, 30))
    grouped = 0.2 * cloud + rng.normal(size=(12, 30))[rng.integers(0, 12, 600)]
    weights = [pool_features._anchor_graph(torch.from_numpy(x).float())[2] for x in (cloud, grouped)]
    assert 0 <= weights[0] < 0.5
    assert weights[1] > 0.95


def test_views_are_small_changes_and_never_mirrored() -> None:
    ramp = np.zeros((50, 32, 32, 3), np.uint8)
    ramp[:, 8:24, 8:14] = 200
    ramp[:, 8:14, 8:24] = 200  # an L lying on its side: no mirror image of it is itself
    views = pool_features._views(ramp, np.random.default_rng(0)).astype(float)
    assert views.shape == ramp.shape
    assert np.abs(views - ramp).max() > 0
    for view in views:
        same = np.corrcoef(view.ravel(), ramp[0].ravel())[0, 1]
        assert same > np.corrcoef(view.ravel(), ramp[0][:, ::-1].ravel())[0, 1]
