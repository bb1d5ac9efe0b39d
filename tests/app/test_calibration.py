"""The calibration file: what is in it counts, what is not is as shipped, and what is wrong is told with its name."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.answers.calibration import (
    FILE,
    CalibrationInvalid,
    Fitted,
    HeldOut,
    Interval,
    read_calibration,
    write_fitted,
)
from app.running.serve import check_start
from app.settings import Settings
from retrieval.evidence import SHIPPED

SURE = Interval(value=0.9, low=0.8, high=1.0)
HELD_OUT = HeldOut(
    answerable=30,
    unanswerable=30,
    refusal_precision=SURE,
    refusal_recall=SURE,
    balanced_accuracy=SURE,
    auc=SURE,
)


def fitted(reranker: str | None = None) -> Fitted:
    return Fitted(
        intercept=-1.5,
        weights={"words": 3.0},
        threshold=0.25,
        reranker=reranker,
        questions="harbour",
        fitted_at=datetime(2026, 11, 1, tzinfo=UTC),
        held_out=HELD_OUT,
    )


def test_without_a_file_the_shipped_weights_count(tmp_path: Path) -> None:
    assert read_calibration(tmp_path, reranker="demo") == SHIPPED


def test_what_is_written_counts_and_leaves_the_other_kind_alone(tmp_path: Path) -> None:
    assert write_fitted(tmp_path, fitted()) == tmp_path / FILE
    plain_only = read_calibration(tmp_path, reranker="demo")
    assert plain_only.plain == fitted().weighing()
    assert plain_only.reranked == SHIPPED.reranked
    write_fitted(tmp_path, fitted("demo"))
    both = read_calibration(tmp_path, reranker="demo")
    assert both.plain == both.reranked == fitted().weighing()
    assert [each.name for each in tmp_path.iterdir()] == [FILE]


def test_weights_for_another_reranker_are_refused_and_not_passed_over(tmp_path: Path) -> None:
    write_fitted(tmp_path, fitted("demo"))
    with pytest.raises(
        CalibrationInvalid, match=r"evidence\.json: reranked\.reranker is 'demo', but .* 'large'"
    ):
        read_calibration(tmp_path, reranker="large")
    assert read_calibration(tmp_path, reranker=None).plain == SHIPPED.plain


def with_weight(told: dict[str, Any], name: str, weight: Any) -> None:
    told["plain"]["weights"][name] = weight


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda told: told["plain"].update(threshold=1.5), "plain.threshold"),
        (lambda told: told["plain"].pop("intercept"), "plain.intercept"),
        (lambda told: told["plain"].update(intercept=float("nan")), "plain.intercept"),
        (lambda told: with_weight(told, "magic", 1.0), "'magic'"),
        (lambda told: with_weight(told, "words", "much"), "plain.weights.words"),
        (lambda told: told.update(plane=1), "plane"),
        (lambda told: told.update(format=2), "format"),
        (lambda told: told["plain"]["held_out"]["auc"].update(low=-1), "plain.held_out.auc.low"),
    ],
)
def test_a_damaged_file_is_refused_by_its_name_and_field(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], named: str
) -> None:
    path = write_fitted(tmp_path, fitted())
    told = json.loads(path.read_text())
    spoil(told)
    path.write_text(json.dumps(told))
    with pytest.raises(CalibrationInvalid) as refused:
        read_calibration(tmp_path, reranker=None)
    assert str(path) in str(refused.value)
    assert named in str(refused.value)
    assert "strongroom eval calibrate" in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_file_that_is_no_calibration_stops_the_start_with_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    settings = Settings().with_options(server={"port": 1_0999}, storage={"data_dir": str(tmp_path)})
    with pytest.raises(CalibrationInvalid, match=r"evidence\.json"):
        check_start(settings)
