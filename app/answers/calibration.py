"""How the evidence score was calibrated on somebody's own questions: a small file beside their data.

`strongroom eval calibrate` writes it, and the api role reads it at its start. Without it the weights that are shipped
with the code count (`retrieval.evidence.SHIPPED`).
"""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from retrieval.evidence import SHIPPED, SIGNALS, Calibration, Weighing

FILE = "evidence.json"
"""In the data folder."""

Share = Annotated[float, Field(ge=0, le=1)]


class CalibrationInvalid(Exception):
    """The calibration file cannot be used; the message names it, the field, and what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Interval(_Strict):
    """A figure on questions that took no part in the fit, with its 95 % interval."""

    value: Share
    low: Share
    high: Share


class HeldOut(_Strict):
    """How well refusals hit, on questions that took no part in the fit. A right one is of an unanswerable question."""

    answerable: int
    unanswerable: int
    refusal_precision: Interval
    refusal_recall: Interval
    balanced_accuracy: Interval
    auc: Interval


class Fitted(_Strict):
    """Weights and threshold, and how good they are."""

    intercept: float
    weights: dict[str, float]
    threshold: Share
    reranker: str | None
    """The alias whose scores are among the signals."""
    questions: str
    """Name of the file that it was fitted on."""
    fitted_at: datetime
    held_out: HeldOut

    @field_validator("weights")
    @classmethod
    def _check_names(cls, weights: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(weights.keys() - SIGNALS):
            raise ValueError(f"there is no signal {unknown[0]!r}, but {', '.join(sorted(SIGNALS))}")
        return weights

    def weighing(self) -> Weighing:
        return Weighing(self.intercept, self.weights, self.threshold)


class CalibrationFile(_Strict):
    """`plain` is used without a reranker, `reranked` with one. What is missing is as shipped."""

    format: Literal[1] = 1
    plain: Fitted | None = None
    reranked: Fitted | None = None


def read_calibration(data_dir: Path, *, reranker: str | None) -> Calibration:
    """What counts for a data folder. `reranker`: the alias of the one that is used now. Raises CalibrationInvalid."""
    path = data_dir / FILE
    told = _read(path)
    fitted = told.reranked
    if fitted is not None and reranker is not None and fitted.reranker != reranker:
        raise CalibrationInvalid(
            f"{path}: reranked.reranker is '{fitted.reranker}', but models.reranker is '{reranker}', whose scores mean "
            "something else. Remove the file, and run `strongroom eval calibrate` again."
        )
    return Calibration(
        plain=told.plain.weighing() if told.plain else SHIPPED.plain,
        reranked=fitted.weighing() if fitted else SHIPPED.reranked,
    )


def write_fitted(data_dir: Path, fitted: Fitted) -> Path:
    """Puts it in place of the one of its kind, and leaves the other. Returns the file. Raises CalibrationInvalid."""
    path = data_dir / FILE
    kind = "plain" if fitted.reranker is None else "reranked"
    changed = _read(path).model_copy(update={kind: fitted})
    unfinished = path.with_name(f"{FILE}.new")
    unfinished.write_text(changed.model_dump_json(indent=1) + "\n", "utf-8")
    unfinished.replace(path)
    return path


def _read(path: Path) -> CalibrationFile:
    try:
        return CalibrationFile.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return CalibrationFile()
    except OSError as error:
        raise CalibrationInvalid(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CalibrationInvalid(
            f"{path}: {field}: {first['msg']}. Remove the file, and run `strongroom eval calibrate` again."
        ) from error
