"""What can stop the demo, as one tree. Every message says what was wanted, what came, and what to do.

AskFirstError
├── PortTaken             .port
├── DataProblem           images or CSV that cannot be used
├── EnvironmentMissing    Label Studio or Redis is not installed
├── DataDirProblem        the demo's folder is in use, damaged, or its disk is full
├── ProcessFailed         .name; a child ended before it was ready, or never became ready
├── LabelStudioProblem    .status; Label Studio answered with something else than expected
└── OrderMissing          no first order came
"""

from __future__ import annotations


class AskFirstError(Exception):
    """Root of the tree; not raised itself."""


class PortTaken(AskFirstError):
    """Another program listens on a port that we need. Label Studio would silently take the next one."""

    def __init__(self, port: int, option: str, owner: str = "") -> None:
        by = f" by {owner}" if owner else " by another program"
        super().__init__(f"Port {port} is taken{by}. Stop it, or choose another port with {option} NUMBER.")
        self.port = port


class DataProblem(AskFirstError):
    """Images or a CSV of labels that cannot be used."""


class EnvironmentMissing(AskFirstError):
    """A program that the demo starts is not installed."""


class DataDirProblem(AskFirstError):
    """The demo's folder cannot be used now."""


class ProcessFailed(AskFirstError):
    """A child process ended before it was ready, or did not become ready in time."""

    def __init__(self, name: str, what: str, log: str, tail: str) -> None:
        last = f"\nThe last lines of its log:\n{tail}" if tail else ""
        where = f" Its log is {log}" if log else ""
        super().__init__(f"{name} {what}.{where}{last}")
        self.name = name


class LabelStudioProblem(AskFirstError):
    """Label Studio did not do what the demo asked of it."""

    def __init__(self, what: str, status: int | None, detail: str) -> None:
        line = " ".join(detail.split())[:300]
        answer = "did not answer" if status is None else f"answered with status {status}"
        super().__init__(f"Label Studio was asked to {what} and {answer}: {line}")
        self.status = status


class OrderMissing(AskFirstError):
    """The backend did not bring the first order into Label Studio."""
