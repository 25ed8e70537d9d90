"""The registry behind scores, strategies and confidences."""

from dataclasses import dataclass

import pytest

from uncertainty.errors import UnknownMethodError
from uncertainty.named import Registry


@dataclass(frozen=True)
class Thing:
    name: str


@pytest.fixture
def things():
    known = Registry[Thing]("thing")
    for name in ("pear", "apple"):
        known.register(Thing(name))
    return known


def test_what_was_registered_is_found_and_listed_by_name(things):
    assert things.get("pear") == Thing("pear")
    assert [thing.name for thing in things.list()] == ["apple", "pear"]


def test_an_unknown_name_is_answered_with_the_known_ones(things):
    with pytest.raises(UnknownMethodError, match="unknown method 'plum'; known: apple, pear"):
        things.get("plum")


def test_a_second_thing_of_one_name_is_refused_and_the_first_stays(things):
    first = things.get("pear")
    with pytest.raises(ValueError, match="thing 'pear' is already registered"):
        things.register(Thing("pear"))
    assert things.get("pear") is first
