"""Things known by a public name: what all registries of this package have in common."""

from typing import Generic, Protocol, TypeVar

from .errors import UnknownMethodError


class Named(Protocol):
    """Whatever says its own name."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """Things of one kind, each under its own name.

    Args:
        kind: what they are, for messages: "strategy".
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._known: dict[str, T] = {}

    def register(self, info: T) -> None:
        """Make a thing known under `info.name`; a name can be taken once.

        Raises:
            ValueError: the name is taken.
        """
        if info.name in self._known:
            raise ValueError(f"{self._kind} {info.name!r} is already registered")
        self._known[info.name] = info

    def get(self, name: str) -> T:
        """The thing of that name.

        Raises:
            UnknownMethodError: lists the known names.
        """
        try:
            return self._known[name]
        except KeyError:
            raise UnknownMethodError(name, self._known) from None

    def list(self) -> list[T]:
        """All of them by name."""
        return [self._known[name] for name in sorted(self._known)]
