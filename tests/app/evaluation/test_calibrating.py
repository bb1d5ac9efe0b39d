"""`strongroom eval calibrate`: the fit on its own, and the command against the api role."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.answers.calibration import FILE, read_calibration
from app.evaluation.calibration import (
    LEAST,
    Sample,
    auc_of,
    best_threshold,
    fit,
    measured,
    scored,
    split,
)
from app.evaluation.runs import read_run
from retrieval.evidence import SHIPPED, Weighing
from tests.app.evaluation.conftest import Commands

START = Weighing(intercept=0.0, weights={"nearness": 0.0, "words": 0.0}, threshold=0.5)


def samples(count: int, *, seed: int, covered_share: float = 0.5) -> list[Sample]:
    """Covered ones have more words; `nearness` is noise."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        is_covered = chance.random() < covered_share
        words = min(max(chance.gauss(0.8 if is_covered else 0.3, 0.15), 0.0), 1.0)
        found.append(Sample({"nearness": chance.random(), "words": words}, is_covered))
    return found


def test_a_fit_finds_the_signal_that_tells_and_a_threshold_that_holds_on_others() -> None:
    fitted = fit(samples(400, seed=1), START)
    assert fitted.weights["words"] > 5 * abs(fitted.weights["nearness"])
    held_out = measured(fitted, samples(2_000, seed=2))
    assert held_out.balanced_accuracy.value > 0.93
    assert held_out.auc.value > 0.97
    for figure in (held_out.balanced_accuracy, held_out.auc, held_out.refusal_recall):
        assert figure.low <= figure.value <= figure.high
        assert figure.high - figure.low < 0.05


def test_kinds_weigh_the_same_however_many_of_each_there_are() -> None:
    held_out = measured(fit(samples(600, seed=3, covered_share=0.9), START), samples(2_000, seed=4))
    assert held_out.refusal_recall.value > 0.9


def test_few_questions_move_the_weights_little() -> None:
    start = Weighing(intercept=-3.0, weights={"nearness": 2.0, "words": 4.0}, threshold=0.5)
    few, many = (fit(samples(count, seed=5), start) for count in (40, 4_000))
    assert abs(few.weights["words"] - 4.0) < abs(many.weights["words"] - 4.0)
    assert abs(many.weights["nearness"]) < 1.0


def test_the_same_samples_give_the_same_halves_weights_and_figures() -> None:
    given = samples(100, seed=6)
    (one, rest), again = split(given), split(given)
    assert (one, rest) == again
    assert sum(each.is_covered for each in one) == sum(each.is_covered for each in given) // 2
    assert fit(one, START) == fit(one, START)
    assert measured(START, rest) == measured(START, rest)


def test_figures_of_a_few_scores_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.4, 0.4, 0.1])
    covered = np.array([True, True, True, False, False])
    assert auc_of(scores, covered) == pytest.approx((2 + 2 + 1.5) / 6)
    # Between .4 and .8: two of three are kept, two of two refused; below .4 all are kept and one of two refused.
    assert best_threshold(scores, covered) == pytest.approx(0.5)
    assert best_threshold(scores / 2, covered) == pytest.approx(0.3), "in the middle between .2 and .4"


def test_scores_of_many_equal_those_of_one() -> None:
    given = samples(20, seed=7)
    weighing = fit(given, START)
    by_hand = [
        1 / (1 + np.exp(-weighing.intercept - sum(weighing.weights[k] * v for k, v in each.signals.items())))
        for each in given
    ]
    np.testing.assert_allclose(scored(weighing, given), by_hand)


ROOMS = (
    "cellar",
    "attic",
    "kitchen",
    "library",
    "chapel",
    "stable",
    "laundry",
    "armoury",
    "bakery",
    "brewery",
)
COLOURS = ("red", "blue", "green", "white", "black")
DOCUMENT = " ".join(
    f"The {colour} {room} of Vellmouth Hall has {7 * number + 3} windows."
    for number, (room, colour) in enumerate((room, colour) for room in ROOMS for colour in COLOURS)
)
OTHERS = (
    "submarine",
    "glacier",
    "violin",
    "parliament",
    "enzyme",
    "comet",
    "cricket",
    "yeast",
    "tariff",
    "sonnet",
)


def write_questions(path: Path, *, answerable: int, unanswerable: int) -> Path:
    rooms = [f"How many windows has the {colour} {room}?" for room in ROOMS for colour in COLOURS]
    others = [f"Who invented the {thing} in {1900 + year}?" for thing in OTHERS for year in range(5)]
    lines: list[dict[str, Any]] = [{"question": each, "answers": ["some"]} for each in rooms[:answerable]]
    lines += [{"question": each, "answerable": False} for each in others[:unanswerable]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.slow
async def test_the_command_fits_tells_its_figures_and_keeps_them(commands: Commands, tmp_path: Path) -> None:
    store_id = await commands.api.store("hall")
    await commands.api.add_document(store_id, "hall.txt", DOCUMENT)
    questions = write_questions(tmp_path / "hall questions.jsonl", answerable=30, unanswerable=30)
    printed = await commands.succeed("calibrate", questions, "--collection", "hall")
    assert "balanced accuracy" in printed
    assert "15 answerable and 15 unanswerable" in printed
    path = commands.data_dir / FILE
    assert str(path) in printed.replace("\n", "")
    kept = json.loads(path.read_text())
    assert kept["plain"]["questions"] == "hall questions"
    assert kept["plain"]["held_out"]["balanced_accuracy"]["value"] > 0.9
    calibration = read_calibration(commands.data_dir, reranker=None)
    assert calibration.plain != SHIPPED.plain
    assert calibration.reranked == SHIPPED.reranked

    commands.api.engine.answer = lambda _: "It has some windows."
    asked = write_questions(tmp_path / "few.jsonl", answerable=3, unanswerable=3)
    await commands.succeed("answers", asked, "--collection", "hall")
    run = read_run(commands.runs[0])
    assert all(outcome.evidence is not None for outcome in run.outcomes)
    assert any("Evidence score: AUC 1.000" in note for note in run.notes)


@pytest.mark.slow
async def test_too_few_questions_of_a_kind_are_refused_before_any_is_asked(
    commands: Commands, tmp_path: Path
) -> None:
    await commands.api.store("hall")
    for answerable, unanswerable, told in ((LEAST, 3, "3 unanswerable"), (3, LEAST, "3 answerable")):
        questions = write_questions(tmp_path / "q.jsonl", answerable=answerable, unanswerable=unanswerable)
        assert told in await commands.fail("calibrate", questions, "--collection", "hall")
    questions = write_questions(tmp_path / "q.jsonl", answerable=LEAST, unanswerable=LEAST)
    assert "no collection 'nowhere'" in await commands.fail("calibrate", questions, "--collection", "nowhere")
    assert not (commands.data_dir / FILE).exists()
