"""All faults run one after the other, and one that fails stops none of the others."""

from tests.faults.__main__ import Run, execute
from tests.faults.report import Row, percentile, row_in, table


def test_the_last_row_that_is_shown_is_the_run_s() -> None:
    shown = 'row: {"fault": "a", "times": 1, "violations": 0}\nelse\nrow: {"fault": "b", "times": 2, "violations": 1}'
    assert row_in(shown) == Row("b", 2, 1)
    assert row_in("nothing") is None


def test_a_run_that_ends_badly_is_a_violation_without_a_row_of_its_own() -> None:
    row, ran, is_well = execute("broken", Run(lambda _: ["tests.faults.none_such"]), lambda count: count)
    assert (row.fault, row.violations, is_well) == ("broken", 1, False)
    assert ran.startswith("failed after")


def test_the_table_has_a_line_for_each() -> None:
    rows = [(Row("F1 kills", 1_000, 0, 4.25, "all well"), "9 s"), (Row("F2", 1, 1), "failed after 1 s")]
    assert table(rows).splitlines()[2:] == [
        "| F1 kills | 1,000 | 0 | 4.2 s | all well | 9 s |",
        "| F2 | 1 | 1 |  |  | failed after 1 s |",
    ]


def test_a_percentile_is_the_least_value_that_so_many_are_not_above() -> None:
    values = [float(each) for each in range(1, 101)]
    assert percentile(values, 0.99) == 99.0
    assert percentile(values, 0.5) == 50.0
    assert percentile([3.0], 0.99) == 3.0
