"""Experiment tracking, which never delays or fails a trial."""

from __future__ import annotations

from typing import Any, Final, Protocol


class Tracker(Protocol):
    """Who is told of trials; none of these may wait or raise."""

    def trial_started(self, number: int, attempt: int, params: dict[str, Any], curve: dict[int, float]) -> None:
        """Take note that a trial begins, or goes on after the epochs of `curve`."""

    def epoch(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        """Take the metrics of an epoch."""

    def trial_ended(self, number: int, outcome: str) -> None:
        """Take note that a trial was told, or left to another worker."""


class NoTracking:
    """Tells nobody."""

    def trial_started(self, number: int, attempt: int, params: dict[str, Any], curve: dict[int, float]) -> None:
        """Do nothing."""

    def epoch(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        """Do nothing."""

    def trial_ended(self, number: int, outcome: str) -> None:
        """Do nothing."""


NO_TRACKING: Final = NoTracking()
