"""Splits of the study of faces, on names without pictures."""

import numpy as np
import pytest

from benchmark.faces import ASKED, FOLDS, Faces, fold_of, right, units

SUBJECTS = [f"subject{number:02}" for number in range(1, 7)]
CONDITIONS = ["glasses", "happy", "leftlight", "noglasses", "normal", "sad", "sleepy", "wink"]
NAMES = [(subject, condition) for subject in SUBJECTS for condition in CONDITIONS]
# One picture under two names, as in the published data.
TWINS = {("subject02", "noglasses"): "normal", ("subject03", "normal"): "sad", ("subject05", "glasses"): "normal"}
FACES = Faces(
    [subject for subject, _ in NAMES],
    [condition for _, condition in NAMES],
    [f"{subject}.{TWINS.get((subject, condition), condition)}" for subject, condition in NAMES],
)
SPLITS = [(split, seed) for split in ASKED for seed in range(5)]


def folds_of(values, fold):
    """By value, the folds that it occurs in."""
    return {value: {int(f) for v, f in zip(values, fold, strict=True) if v == value} for value in set(values)}


@pytest.mark.parametrize(("split", "seed"), SPLITS)
def test_pictures_with_the_same_pixels_are_never_on_both_sides(split, seed):
    fold = fold_of(units(FACES, split), FOLDS, seed)
    assert all(len(found) == 1 for found in folds_of(FACES.pixels, fold).values())


@pytest.mark.parametrize("seed", range(5))
def test_subjects_and_conditions_are_never_on_both_sides_of_their_splits(seed):
    for split, names in (("subject", FACES.subjects), ("condition", FACES.conditions)):
        fold = fold_of(units(FACES, split), FOLDS, seed)
        assert all(len(found) == 1 for found in folds_of(names, fold).values())


def test_only_conditions_that_share_a_picture_are_tied_to_each_other():
    unit = units(FACES, "condition")
    tied = {name: set(unit[np.array(FACES.conditions) == name]) for name in CONDITIONS}
    assert tied["glasses"] == tied["normal"] == tied["noglasses"] == tied["sad"]
    assert len(set(unit)) == 5


def test_the_units_of_the_other_splits_are_subjects_and_distinct_pictures():
    assert len(set(units(FACES, "subject"))) == len(SUBJECTS)
    assert len(set(units(FACES, "picture"))) == len(NAMES) - len(TWINS)


@pytest.mark.parametrize(("split", "seed"), SPLITS)
def test_every_fold_gets_its_share_and_a_seed_gives_the_same_folds_again(split, seed):
    unit = units(FACES, split)
    fold = fold_of(unit, FOLDS, seed)
    sizes = np.bincount(fold, minlength=FOLDS)
    assert sizes.max() - sizes.min() <= np.bincount(unit).max()
    assert (fold == fold_of(unit, FOLDS, seed)).all()


@pytest.mark.parametrize("split", ASKED)
def test_other_seeds_draw_other_folds(split):
    unit = units(FACES, split)
    assert len({fold_of(unit, FOLDS, seed).tobytes() for seed in range(5)}) > 1


def test_a_picture_with_two_names_counts_once_and_either_is_right():
    rows = np.array([NAMES.index(("subject03", name)) for name in ("happy", "normal", "sad")])
    classes = FACES.classes("expression")
    for answer, expected in (("normal", [False, True]), ("sad", [False, True]), ("happy", [True, False])):
        found = np.full(3, classes.index(answer))
        assert right(FACES, "expression", rows, found).tolist() == expected


def test_no_glasses_is_no_expression_of_its_own():
    assert set(FACES.classes("expression")) == set(CONDITIONS) - {"noglasses"}
