"""Runs on disk: what was kept outlives a kill, and two finished runs compare; the report shows what went wrong."""

from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from app.evaluation.compare import compare
from app.evaluation.lines import EvaluationRefused
from app.evaluation.report import render
from app.evaluation.runs import BEGUN, OUTCOMES, RUN, Begun, Cited, Kind, Outcome, Run, RunFolder, read_run

METRIC = "nDCG@10"


def begun(kind: Kind = Kind.RETRIEVAL, *, k: int = 10, name: str = "harbour") -> Begun:
    return Begun(
        kind=kind,
        name=name,
        main_metric=METRIC,
        settings={"k": k, "stages": ["fused"]},
        versions={"strongroom": "0.1.0"},
        started_at=datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC),
    )


def outcome(
    question_id: str, value: float = 1.0, *, variant: str = "fused", question: str = "Who?"
) -> Outcome:
    return Outcome(
        variant=variant,
        id=question_id,
        question=question,
        wanted=("a",),
        found=("b", "a"),
        metrics={METRIC: value},
        seconds=0.01,
    )


def finished(
    parent: Path, outcomes: list[Outcome], kind: Kind = Kind.RETRIEVAL, name: str = "harbour"
) -> Run:
    with RunFolder.begin(parent, begun(kind, name=name)) as folder:
        return folder.finish(outcomes, ["A note."])


def test_a_finished_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    with RunFolder.begin(tmp_path, begun(name="har bour/../x")) as folder:
        folder.add(outcome("q1", 0.5))
        run = folder.finish([*folder.outcomes.values()], ["A note."])
    assert folder.path.name == "20300102-030405-har-bour-..-x"
    assert folder.path.parent == tmp_path
    assert [each.name for each in folder.path.iterdir()] == [RUN]
    assert read_run(folder.path) == read_run(folder.path / RUN) == run
    (summary,) = run.summaries
    assert (summary.variant, summary.metric, summary.mean, summary.count) == ("fused", METRIC, 0.5, 1)


def test_two_runs_of_one_second_have_a_folder_each(tmp_path: Path) -> None:
    first, second = RunFolder.begin(tmp_path, begun()), RunFolder.begin(tmp_path, begun())
    assert first.path != second.path


def test_a_run_that_was_killed_within_a_line_goes_on_after_the_last_whole_one(tmp_path: Path) -> None:
    with RunFolder.begin(tmp_path, begun()) as folder:
        folder.add(outcome("q1"))
        folder.add(outcome("q2"))
    log = folder.path / OUTCOMES
    log.write_bytes(log.read_bytes()[:-7])
    resumed = RunFolder.resume(folder.path, begun())
    assert list(resumed.outcomes) == [("fused", "q1")]
    with resumed:
        resumed.add(outcome("q2", 0.25))
        run = resumed.finish([*resumed.outcomes.values()], [])
    assert [each.metrics[METRIC] for each in run.outcomes] == [1.0, 0.25]


def test_a_run_is_resumed_with_the_settings_it_began_with_only(tmp_path: Path) -> None:
    folder = RunFolder.begin(tmp_path, begun())
    with pytest.raises(EvaluationRefused, match="k was 10 and is 5"):
        RunFolder.resume(folder.path, begun(k=5))
    with pytest.raises(EvaluationRefused, match="a run of retrieval"):
        RunFolder.resume(folder.path, begun(Kind.ANSWERS))
    with pytest.raises(EvaluationRefused, match="no run that could be resumed"):
        RunFolder.resume(tmp_path, begun())
    with pytest.raises(EvaluationRefused, match="not finished: go on with --resume"):
        read_run(folder.path)
    (folder.path / BEGUN).write_text("{")
    with pytest.raises(EvaluationRefused, match="damaged"):
        RunFolder.resume(folder.path, begun())
    with folder:
        folder.finish([outcome("q1")], [])
    with pytest.raises(EvaluationRefused, match="is finished"):
        RunFolder.resume(folder.path, begun())


def test_a_known_difference_is_found_with_the_questions_that_changed_most(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    before = [outcome(f"q{each}", float(chance.uniform(0.2, 0.6))) for each in range(100)]
    after = [outcome(each.id, (each.metrics[METRIC] or 0) + 0.1) for each in before]
    after[7] = outcome("q7", 1.0)
    (found,) = compare(finished(tmp_path, before), finished(tmp_path, after))
    difference = found.metrics[METRIC]
    assert 0.09 < difference.low <= difference.difference <= difference.high < 0.13
    assert (difference.p < 0.001, difference.better, difference.worse) == (True, 100, 0)
    assert found.changes[0].a.id == "q7"


def test_only_questions_that_both_runs_have_in_the_same_words_are_compared(tmp_path: Path) -> None:
    a = finished(tmp_path, [outcome("q1", 0.2), outcome("q2", 0.9), outcome("q3", 0.1)])
    b = finished(tmp_path, [outcome("q1", 0.4), outcome("q2", 0.1, question="Another?"), outcome("q4", 0.1)])
    (found,) = compare(a, b)
    assert (found.questions, found.left_out) == (1, 3)
    assert found.metrics[METRIC].difference == pytest.approx(0.2)


def test_two_stages_of_one_run_are_compared_with_each_other(tmp_path: Path) -> None:
    run = finished(tmp_path, [outcome("q1", 0.2), outcome("q1", 0.7, variant="reranked")])
    (found,) = compare(run, run, variants=("fused", "reranked"))
    assert found.metrics[METRIC].difference == pytest.approx(0.5)
    with pytest.raises(EvaluationRefused, match="no stage 'bm25', but fused, reranked"):
        compare(run, run, variants=("fused", "bm25"))


def test_runs_that_have_nothing_in_common_are_refused(tmp_path: Path) -> None:
    a = finished(tmp_path, [outcome("q1")])
    with pytest.raises(EvaluationRefused, match="no question in common"):
        compare(a, finished(tmp_path, [outcome("q2")]))
    with pytest.raises(EvaluationRefused, match="share no stage"):
        compare(a, finished(tmp_path, [outcome("q1", variant="dense")]))
    with pytest.raises(EvaluationRefused, match="does not compare"):
        compare(a, finished(tmp_path, [outcome("q1")], Kind.ANSWERS))


class Elements(HTMLParser):
    """Checks that tags are closed in their order, and notes which there are."""

    VOID = frozenset(["meta", "br"])

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs
        if tag not in self.VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = "<script>alert(1)</script>"


def parsed(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    elements.close()
    assert not elements.open
    return elements


def check_is_harmless(page: str) -> Elements:
    """Whole HTML, which loads nothing and runs nothing."""
    elements = parsed(page)
    assert "script" not in elements.seen
    assert not {name for name, _ in elements.attributes} & {"src", "href", "onload", "onerror", "xlink:href"}
    assert "http://" not in page
    assert "https://" not in page
    assert "url(" not in page
    return elements


def test_the_report_of_a_search_is_whole_loads_nothing_and_shows_what_was_wanted_and_found(
    tmp_path: Path,
) -> None:
    worst = outcome("q1", 0.0, question=f"What is {HOSTILE} \" onload='x'?").model_copy(
        update={"wanted": (HOSTILE, "deep"), "found": ("other", "deep"), "error": f"It said {HOSTILE}."}
    )
    run = finished(
        tmp_path, [worst, outcome("q2", 1.0, variant=HOSTILE), worst.model_copy(update={"variant": HOSTILE})]
    )
    page = render(run, lambda document_id: f"Begins with {HOSTILE}: {document_id}")
    told = check_is_harmless(page)
    assert {"table", "svg", "polyline", "rect"} <= told.seen
    assert f"What is {HOSTILE}" in told.text
    assert f"Begins with {HOSTILE}: other" in told.text
    assert "found at 2" in told.text
    assert "not found" in told.text
    assert "A note." in told.text
    assert told.text.index("What is") < told.text.index("Who?"), "the worst comes first"


def test_the_report_of_answers_shows_what_was_said_and_cited(tmp_path: Path) -> None:
    cited = Cited(
        filename=HOSTILE, quote=f"{HOSTILE} it is.", wanted_as=None, is_wanted=False, is_verbatim=False
    )
    said = Outcome(
        variant="answers",
        id="1",
        question="Who?",
        wanted=("Ann",),
        wanted_documents=("people.txt",),
        found=(f"Bob {HOSTILE}",),
        metrics={METRIC: 0.0, "F1": None},
        seconds=1.0,
        answerable=False,
        grounded=True,
        citations=(cited,),
    )
    told = check_is_harmless(render(finished(tmp_path, [said], Kind.ANSWERS)))
    for expected in (
        f"Bob {HOSTILE}",
        "people.txt",
        "not at its place",
        "another document",
        "should have been refused",
    ):
        assert expected in told.text


def test_a_run_in_which_all_questions_failed_has_a_report_too(tmp_path: Path) -> None:
    failed = Outcome(variant="answers", id="1", question="Who?", wanted=(), seconds=0.0, error="Too long.")
    told = check_is_harmless(render(finished(tmp_path, [failed], Kind.ANSWERS)))
    assert "None." in told.text
