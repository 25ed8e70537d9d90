"""Answers in, targets out; what cannot be used is refused with a way out."""

import numpy as np
import pytest

from training.errors import DataError
from training.tuning import Examples, HeadSpec
from training.tuning.heads import check_heads, targets_of
from training.tuning.split import hold_out

NAN = np.nan
ABC = HeadSpec("abc", "single", ("a", "b", "c"))
TAGS = HeadSpec("tags", "multiple", ("x", "y"))
AGE = HeadSpec("age", "number")


def examples(n=3, **answers):
    return Examples(np.arange(n), {name: np.array(values) for name, values in answers.items()}, {})


def test_a_missing_answer_is_masked_in_every_kind():
    given = examples(abc=[2, -1, 0], tags=[[1, 0], [NAN, NAN], [1, 1]], age=[3.5, 4.0, NAN])
    assert targets_of(ABC, given).values.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert targets_of(TAGS, given).values.tolist() == [[1, 0], [0, 0], [1, 1]]
    assert targets_of(AGE, given).values.ravel().tolist() == [3.5, 4.0, 0]
    assert [targets_of(head, given).answered.tolist() for head in (ABC, TAGS, AGE)] == [
        [True, False, True],
        [True, False, True],
        [True, True, False],
    ]
    assert not targets_of(HeadSpec("other", "number"), given).answered.any()


@pytest.mark.parametrize(
    ("head", "answers", "reason"),
    [
        (ABC, [0, 1, 3], "below 3"),
        (ABC, [0, 1, -2], "-1 for none"),
        (ABC, [0.5, 1, 1], "class indices"),
        (ABC, [[0], [1], [2]], r"shape \[3\]"),
        (TAGS, [0, 1, 1], r"shape \[3, 2\]"),
        (TAGS, [[0, 2], [1, 0], [1, 0]], "0 or 1"),
    ],
)
def test_answers_that_make_no_sense_are_refused(head, answers, reason):
    with pytest.raises(DataError, match=reason):
        targets_of(head, examples(**{head.name: answers}))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (("h", "binary", ("a", "b")), "unknown kind"),
        (("h", "single", ("a",)), "at least 2 classes"),
        (("h", "number", ("a",)), "no classes"),
        (("h", "single", ("a", "b"), 0.0), "positive"),
    ],
)
def test_heads_that_make_no_sense_are_refused(spec, reason):
    with pytest.raises(DataError, match=reason):
        HeadSpec(*spec)


@pytest.mark.parametrize(
    ("heads", "given", "reason"),
    [
        ([], examples(abc=[0, 1, 2]), "at least one head"),
        ([ABC, ABC], examples(abc=[0, 1, 2]), "differ"),
        ([ABC], examples(abc=[-1, -1, -1]), "label something first"),
        ([ABC], Examples(np.array([1, 1]), {"abc": np.array([0, 1])}, {}), "distinct"),
        ([HeadSpec("abc", "single", ("a", "b"), inputs=("sex",))], examples(abc=[0, 1, 1]), "'sex'.*got nothing"),
    ],
)
def test_sets_that_cannot_be_trained_on_are_refused(heads, given, reason):
    with pytest.raises(DataError, match=reason):
        check_heads(heads, given)


def test_held_out_groups_are_whole_and_no_class_is_lost():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [150, 49, 1])
    groups = rng.integers(0, 80, 200)
    given = Examples(np.arange(200), {"abc": labels}, {}, groups)
    for seed in range(10):
        train, held = hold_out([ABC], given, 0.2, seed)
        assert sorted([*train, *held]) == list(range(200))
        assert not set(groups[train]) & set(groups[held])
        assert set(labels[train]) == {0, 1, 2}
        assert 20 <= len(held) <= 40


def test_the_same_seed_holds_out_the_same_examples_and_another_one_others():
    given = examples(200, abc=np.arange(200) % 3)
    first, again, other = (hold_out([ABC], given, 0.2, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_a_handful_is_not_worth_holding_out_and_unanswered_examples_are_in_neither():
    given = examples(100, abc=np.where(np.arange(100) < 50, 1, -1))
    train, held = hold_out([ABC], given, 0.2, 0)
    assert train.tolist() == list(range(50)) and not len(held)
