"""Everything this package refuses, under one root. Messages say what was wanted, what came and what to do."""

from collections.abc import Iterable


class UncertaintyError(Exception):
    """Root of all errors raised by `uncertainty`."""


class ShapeError(UncertaintyError, ValueError):
    """An array has the wrong number of axes, or two arrays disagree about a length."""


class NotADistributionError(UncertaintyError, ValueError):
    """Numbers that should be class probabilities (or their logarithms) do not sum to one."""


class NonFiniteScoreError(UncertaintyError, ValueError):
    """A method returned NaN or infinity; handing it on would let broken examples lead the queue."""

    def __init__(self, method: str, rows: Iterable[int]) -> None:
        self.method = method
        self.rows = tuple(rows)
        shown = ", ".join(map(str, self.rows[:10])) + (", ..." if len(self.rows) > 10 else "")
        super().__init__(
            f"method {method!r} gave NaN or infinity for {len(self.rows)} example(s), rows {shown}; "
            "look for NaN in the model's outputs for these rows"
        )


class NotFittedError(UncertaintyError, RuntimeError):
    """Something was used before there was enough data to fit it."""


class UnknownMethodError(UncertaintyError, LookupError):
    """A name that is not in the registry; the message lists those that are."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        super().__init__(f"unknown method {name!r}; known: {', '.join(self.known)}")


class PoolError(UncertaintyError, ValueError):
    """A pool, or a request made of it, makes no sense."""


class EmptyPool(PoolError):
    """The pool has no rows at all."""

    def __init__(self) -> None:
        super().__init__("the pool has no examples; embed at least one before selecting")


class PoolExhausted(PoolError):
    """The pool has rows, but none of them may be selected any more."""

    def __init__(self, asked: int, left: int) -> None:
        self.asked = asked
        self.left = left
        super().__init__(
            f"asked for {asked} example(s), {left} left: every row is labelled, pending or excluded; "
            "stop, or add examples to the pool"
        )
