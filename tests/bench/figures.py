"""What a measure reports: one figure, the bound that it must reach, and the samples behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np


class MeasureFailed(Exception):
    """A figure could not be measured; the message tells why."""


class Outcome(StrEnum):
    MEASURED = "measured"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True)
class Bound:
    """`limit` is in the figure's unit and belongs to what is allowed."""

    limit: float
    is_upper: bool

    def holds(self, measured: float) -> bool:
        return measured <= self.limit if self.is_upper else measured >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.is_upper else '>='} {self.limit:g}"


@dataclass(frozen=True)
class Samples:
    """Single measurements, in the order in which they were taken."""

    values: tuple[float, ...]
    unit: str

    @classmethod
    def milliseconds(cls, seconds: Sequence[float]) -> "Samples":
        return cls(tuple(1000 * each for each in seconds), "ms")

    def percentile(self, percent: float) -> float:
        """Interpolated linearly between neighbours."""
        return float(np.percentile(self.values, percent))

    def to_json(self) -> dict[str, Any]:
        percentiles = {f"p{percent}": round(self.percentile(percent), 4) for percent in (50, 95, 99)}
        return {"n": len(self.values), "unit": self.unit, **percentiles}


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    name: str
    says: str
    """What is measured, for a reader of the table."""
    unit: str = ""
    measured: float | None = None
    bound: Bound | None = None
    outcome: Outcome = Outcome.MEASURED
    reason: str = ""
    """Why it was skipped, failed, or is not judged."""
    is_judged: bool = True
    samples: Mapping[str, Samples] = field(default_factory=dict)
    facts: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def is_ok(self) -> bool | None:
        """None where there is nothing to judge."""
        if self.outcome is Outcome.FAILED:
            return False
        if self.measured is None or self.bound is None or not self.is_judged:
            return None
        return self.bound.holds(self.measured)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "says": self.says,
            "outcome": self.outcome.value,
            "reason": self.reason,
            "measured": self.measured,
            "unit": self.unit,
            "must_reach": str(self.bound) if self.bound else None,
            "ok": self.is_ok,
            "samples": {name: each.to_json() for name, each in self.samples.items()},
            "facts": dict(self.facts),
        }


def skipped(name: str, says: str, why: str) -> Figure:
    return Figure(name, says, outcome=Outcome.SKIPPED, reason=why)


def failed(name: str, says: str, why: str) -> Figure:
    return Figure(name, says, outcome=Outcome.FAILED, reason=why)
