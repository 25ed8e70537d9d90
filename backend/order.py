"""An order of tasks on its way to Label Studio, and the file in which the newest one is kept for the web process."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training import api as training

from .wire import order_scores


@dataclass(frozen=True)
class Order:
    """Tasks in the order in which they should be labelled; arrays of one length n."""

    version: str  # version string in Label Studio ("" before it is pushed)
    model: str  # model version ("" before the first label)
    classes: tuple[str, ...]
    ids: np.ndarray  # int64
    scores: np.ndarray  # float64, strictly rising, in [0, 1]: what Label Studio holds
    confidence: np.ndarray  # float32, calibrated, in [0, 1]
    label: np.ndarray  # int32, index into classes, -1: none
    reason: np.ndarray  # int8, index into training.REASONS
    propensity: np.ndarray  # float64, with share and left as in training.Odds; NaN where nothing was chosen
    share: np.ndarray  # float64
    left: np.ndarray  # int32
    strategy: str = ""  # that made the order ("" in files of older releases)
    explore: float = 0.0  # share of the places that the settings gave to chance
    answers: tuple[training.HeadAnswers, ...] = ()  # of each question, where there is more than one single choice
    worth: np.ndarray | None = None  # int8, place in `answers` of the question worth asking most, -1: none

    def __len__(self) -> int:
        return len(self.ids)

    def named(self, version: str) -> Order:
        return Order(**{**self.__dict__, "version": version})

    def head(self, count: int) -> Order:
        """The first `count` tasks; their scores are kept."""
        cut = {name: getattr(self, name)[:count] for name in _ARRAYS}
        rows = np.arange(len(self))[:count]
        answers = tuple(answer.take(rows) for answer in self.answers)
        worth = None if self.worth is None else self.worth[:count]
        return Order(**{**self.__dict__, **cut, "answers": answers, "worth": worth})

    def said(self, row: int) -> list[tuple[str, Any, float]]:
        """What the model answers to a row: (name of the question, "" where there is one; answer; confidence)."""
        if self.answers:
            return said(self.answers, row)
        index = int(self.label[row])
        return [("", self.classes[index], float(self.confidence[row]))] if 0 <= index < len(self.classes) else []

    def question(self, row: int) -> str:
        """Name of the question of a row whose answer is worth most; "" where there is one question only."""
        place = -1 if self.worth is None or len(self.answers) < 2 else int(self.worth[row])
        return self.answers[place].spec.name if place >= 0 else ""


def said(answers: Sequence[training.HeadAnswers], row: int) -> list[tuple[str, Any, float]]:
    """What heads answer to a row: (name, answer, confidence)."""
    found = []
    for answer in answers:
        target = answer.target(row)
        if target is not None:
            found.append((answer.spec.name, answer.spec.said(target), float(answer.confidence[row])))
    return found


_ARRAYS = ("ids", "scores", "confidence", "label", "reason", "propensity", "share", "left")


def from_ranking(
    ranking: training.Ranking, classes: tuple[str, ...], *, strategy: str = "", explore: float = 0.0
) -> Order:
    """Scores for a ranking: the one place where an order becomes numbers for Label Studio."""
    return Order(
        version="",
        model=ranking.version or "",
        classes=classes,
        ids=ranking.example_ids,
        scores=np.asarray(order_scores(ranking.confidence), dtype=np.float64),
        confidence=ranking.confidence,
        label=ranking.label,
        reason=ranking.reason,
        propensity=ranking.odds.propensity,
        share=ranking.odds.share,
        left=ranking.odds.left,
        strategy=strategy,
        explore=explore,
        answers=ranking.answers,
        worth=ranking.worth,
    )


def write_order(path: Path, order: Order) -> None:
    """Write whole, then rename: a reader sees the old order or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with part.open("wb") as file:
        arrays: dict[str, Any] = {name: getattr(order, name) for name in _ARRAYS} | _heads_arrays(order)
        np.savez(
            file,
            version=np.array(order.version),
            model=np.array(order.model),
            classes=np.array(order.classes, dtype=np.str_),
            strategy=np.array(order.strategy),
            explore=np.array(order.explore),
            **arrays,
        )
    os.replace(part, path)


def read_order(path: Path) -> Order | None:
    """The order kept in a file; None when there is none or it cannot be read (it is made anew by the next push)."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return Order(
                version=str(data["version"]),
                model=str(data["model"]),
                classes=tuple(str(c) for c in data["classes"]),
                ids=data["ids"],
                scores=data["scores"],
                confidence=data["confidence"],
                label=data["label"],
                reason=data["reason"],
                **_odds(data),
                **_heads(data),
            )
    except (FileNotFoundError, ValueError, KeyError, OSError, EOFError):
        return None


def _odds(data: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How the places were filled; a file of an older release does not tell."""
    if "propensity" not in data:
        n = len(data["ids"])
        return {"propensity": np.full(n, np.nan), "share": np.full(n, np.nan), "left": np.zeros(n, np.int32)}
    arrays: dict[str, Any] = {name: data[name] for name in ("propensity", "share", "left")}
    return {**arrays, "strategy": str(data["strategy"]), "explore": float(data["explore"])}


def _heads_arrays(order: Order) -> dict[str, np.ndarray]:
    """What is kept of several heads."""
    if not order.answers or order.worth is None:
        return {}
    found = {"heads": np.array(json.dumps([answer.spec.record() for answer in order.answers])), "worth": order.worth}
    for place, answer in enumerate(order.answers):
        found |= {f"answer_{place}": answer.answer, f"sure_{place}": answer.confidence}
    return found


def _heads(data: Mapping[str, np.ndarray]) -> dict[str, Any]:
    if "heads" not in data:
        return {}
    specs = [training.HeadSpec.of(record) for record in json.loads(str(data["heads"]))]
    answers = tuple(
        training.HeadAnswers(spec, data[f"answer_{place}"], data[f"sure_{place}"]) for place, spec in enumerate(specs)
    )
    return {"answers": answers, "worth": data["worth"]}
