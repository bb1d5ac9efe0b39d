"""What a run leaves behind: every outcome as it comes, so that a run that was cut goes on, and run.json at its end."""

import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from app.evaluation.intervals import Estimate, estimates, matrix
from app.evaluation.lines import EvaluationRefused, read_lines

RUN, REPORT, BEGUN, OUTCOMES = "run.json", "report.html", "begun.json", "outcomes.jsonl"
"""The first two stand in the folder of a finished run, the last two in that of one that goes on or was cut."""

RUNS = "evaluations"
"""The folder of all of them, in the data folder."""

Setting = str | int | float | bool | None | list[str]


class Kind(StrEnum):
    RETRIEVAL = "retrieval"
    ANSWERS = "answers"


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cited(Strict):
    """A citation of an answer, checked. `wanted_as`: which of the question's documents it is, by the name or id given
    there. `is_wanted` is None where the question names no documents.
    """

    filename: str
    quote: str
    wanted_as: str | None
    is_wanted: bool | None
    is_verbatim: bool


class Outcome(Strict):
    """What became of one question in one variant: a stage of search, or an answer.

    `wanted` and `found` are ids of documents, best first; or the answers wanted, and the one given.
    """

    variant: str
    id: str
    question: str
    wanted: tuple[str, ...]
    found: tuple[str, ...] = ()
    wanted_documents: tuple[str, ...] = ()
    metrics: dict[str, float | None] = {}
    """None where a metric does not apply."""
    seconds: float
    stage_ms: dict[str, float] = {}
    """What the server says each of its stages took."""
    answerable: bool | None = None
    grounded: bool | None = None
    evidence: float | None = None
    """Score of what was found, 0..1, as the server weighs it."""
    citations: tuple[Cited, ...] = ()
    error: str | None = None


class Summary(Strict):
    """The mean of a metric in a variant, with its 95 % interval, over `count` questions."""

    variant: str
    metric: str
    mean: float
    low: float
    high: float
    count: int


class Timing(Strict):
    """Time per question in a variant, as the client saw it; `stage_ms` are the server's means."""

    variant: str
    p50_ms: float
    p95_ms: float
    stage_ms: dict[str, float]


class Begun(Strict):
    """What is known at a run's start."""

    format: Literal[1] = 1
    kind: Kind
    name: str
    main_metric: str
    """By which the worst questions are told."""
    settings: dict[str, Setting]
    versions: dict[str, str]
    started_at: datetime


class Run(Begun):
    """A finished run."""

    notes: tuple[str, ...]
    summaries: tuple[Summary, ...]
    timings: tuple[Timing, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(outcome.variant for outcome in self.outcomes))

    def of(self, variant: str) -> dict[str, Outcome]:
        """Outcomes by the question's id."""
        return {outcome.id: outcome for outcome in self.outcomes if outcome.variant == variant}


class RunFolder:
    """The folder of a run that goes on: a context manager. `outcomes` has those of earlier attempts too."""

    def __init__(self, path: Path, begun: Begun, outcomes: Sequence[Outcome]) -> None:
        self.path = path
        self.begun = begun
        self.outcomes = {(outcome.variant, outcome.id): outcome for outcome in outcomes}

    @classmethod
    def begin(cls, parent: Path, begun: Begun) -> Self:
        """A new folder, named by time and name."""
        name = re.sub(r"[^\w.-]+", "-", begun.name).strip("-.") or "run"
        stem = f"{begun.started_at:%Y%m%d-%H%M%S}-{name[:60]}"
        for suffix in ("", *(f"-{number}" for number in range(2, 1_000))):
            path = parent / f"{stem}{suffix}"
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            (path / BEGUN).write_text(begun.model_dump_json(indent=1), "utf-8")
            return cls(path, begun, ())
        raise EvaluationRefused(f"{parent} has too many runs named {stem}.")

    @classmethod
    def resume(cls, path: Path, begun: Begun) -> Self:
        """The folder of a run that was cut. Raises EvaluationRefused unless it began with the same settings."""
        if (path / RUN).exists():
            raise EvaluationRefused(f"{path} is finished: it has a {RUN}.")
        try:
            earlier = Begun.model_validate_json((path / BEGUN).read_bytes())
        except OSError as error:
            raise EvaluationRefused(f"{path} is no run that could be resumed: it has no {BEGUN}.") from error
        except ValidationError as error:
            raise EvaluationRefused(f"{path / BEGUN} is damaged: begin a new run.") from error
        _check_same(path, earlier, begun)
        return cls(path, earlier, _read_outcomes(path / OUTCOMES))

    def __enter__(self) -> Self:
        self._log: BinaryIO = (self.path / OUTCOMES).open("ab")
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._log.close()

    def add(self, outcome: Outcome) -> None:
        self.outcomes[outcome.variant, outcome.id] = outcome
        self._log.write(outcome.model_dump_json(exclude_defaults=True).encode() + b"\n")
        self._log.flush()

    def finish(self, outcomes: Sequence[Outcome], notes: Iterable[str]) -> Run:
        """Writes run.json, which takes the place of what was kept meanwhile."""
        run = Run(
            **dict(self.begun),
            notes=tuple(notes),
            summaries=tuple(summarised(outcomes)),
            timings=tuple(timed(outcomes)),
            outcomes=tuple(outcomes),
        )
        unfinished = self.path / f"{RUN}.new"
        unfinished.write_text(run.model_dump_json(indent=1, exclude_defaults=True), "utf-8")
        unfinished.replace(self.path / RUN)
        for name in (BEGUN, OUTCOMES):
            (self.path / name).unlink(missing_ok=True)
        return run


def read_run(path: Path) -> Run:
    """A finished run, by its folder or its run.json. Raises EvaluationRefused."""
    file = path / RUN if path.is_dir() else path
    if path.is_dir() and not file.exists() and (path / BEGUN).exists():
        raise EvaluationRefused(f"{path} is not finished: go on with --resume {path}.")
    try:
        return Run.model_validate_json(file.read_bytes())
    except OSError as error:
        raise EvaluationRefused(f"{file} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise EvaluationRefused(f"{file} is no run of this version: {field} {first['msg']}.") from error


def summarised(outcomes: Sequence[Outcome]) -> list[Summary]:
    """Each metric of each variant, in the order in which they first come."""
    found: list[Summary] = []
    for variant, members in _by_variant(outcomes).items():
        metrics = list(dict.fromkeys(metric for outcome in members for metric in outcome.metrics))
        values = matrix([[outcome.metrics.get(metric) for metric in metrics] for outcome in members])
        for metric, estimate in zip(metrics, estimates(values), strict=True):
            if estimate is not None:
                found.append(_summary(variant, metric, estimate))
    return found


def timed(outcomes: Sequence[Outcome]) -> list[Timing]:
    """Questions that failed told no time."""
    found: list[Timing] = []
    for variant, members in _by_variant(outcomes).items():
        answered = [outcome for outcome in members if outcome.error is None]
        if not answered:
            continue
        p50, p95 = np.percentile([outcome.seconds * 1000 for outcome in answered], (50, 95))
        stages = dict.fromkeys(stage for outcome in answered for stage in outcome.stage_ms)
        means = {
            stage: round(sum(each.stage_ms.get(stage, 0.0) for each in answered) / len(answered), 2)
            for stage in stages
        }
        found.append(
            Timing(variant=variant, p50_ms=round(float(p50), 2), p95_ms=round(float(p95), 2), stage_ms=means)
        )
    return found


def now_utc(clock: Callable[[], float] = time.time) -> datetime:
    return datetime.fromtimestamp(clock(), UTC)


def _by_variant(outcomes: Sequence[Outcome]) -> Mapping[str, list[Outcome]]:
    members: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        members[outcome.variant].append(outcome)
    return members


def _summary(variant: str, metric: str, estimate: Estimate) -> Summary:
    return Summary(
        variant=variant,
        metric=metric,
        mean=estimate.mean,
        low=estimate.low,
        high=estimate.high,
        count=estimate.count,
    )


def _check_same(path: Path, earlier: Begun, now: Begun) -> None:
    if earlier.kind is not now.kind:
        raise EvaluationRefused(f"{path} is a run of {earlier.kind}, not of {now.kind}.")
    for name in dict.fromkeys([*earlier.settings, *now.settings]):
        before, after = earlier.settings.get(name), now.settings.get(name)
        if before != after:
            raise EvaluationRefused(
                f"{path} began with other settings: {name} was {before} and is {after}. "
                "Resume it with the same ones, or begin a new run."
            )


def _read_outcomes(path: Path) -> list[Outcome]:
    """A last line without its end was being written when the run was cut: it goes, and its question is asked again."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return [outcome for _, outcome in read_lines(path, Outcome)]
