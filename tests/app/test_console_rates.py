"""The charts of the overview: what they are made of, and that they hold only so much."""

from app.console.rates import KEPT, NONE_YET, POINTS, TOKENS, Rates, Sample, charts_of, totals
from tests.app.conftest import Api

ENGINE = b"""# HELP vllm:generation_tokens_total Tokens.
vllm:generation_tokens_total{engine="0",replica="1"} %d.0
vllm:generation_tokens_total{engine="0",replica="2"} %d.0
vllm:time_to_first_token_seconds_bucket{le="0.1",replica="1"} 7.0
vllm:time_to_first_token_seconds_sum{replica="1"} 2.0
broken line
"""


def test_samples_are_summed_by_name_and_by_lane() -> None:
    found = totals(ENGINE % (30, 12) + b'a_total{lane="bulk",x="1"} 2\na_total{lane="bulk",x="2"} 3e0\n')
    assert found[TOKENS, ""] == 42
    assert found["vllm:time_to_first_token_seconds_sum", ""] == 2
    assert (found["a_total", "bulk"], found["a_total", ""]) == (5, 5)
    assert not any(name.endswith("_bucket") for name, _ in found)


async def test_the_charts_show_what_was_done(api: Api) -> None:
    rates = Rates(api.services)
    await rates.take()
    await api.add_document(await api.store(), "harbour.txt", "The harbour master is Ondine Marsh.")
    for _ in range(3):
        assert (await api.chat("Who is the harbour master?")).status_code == 200
    await rates.take()
    told = {chart.title: {line.name: line.now for line in chart.lines} for chart in rates.charts()}
    # No engine tells of a cache here, so there is nothing to make a mean of.
    assert told.pop("Prompts sent where they are cached") == {"": NONE_YET}
    shown = {title: {name: float(now) for name, now in lines.items()} for title, lines in told.items()}
    assert shown["Answers"]["interactive"] > 0
    assert shown["Answers"]["bulk"] == 0
    assert shown["Documents ingested"][""] > 0
    assert shown["Embedding and reranking requests"]["bulk"] > 0
    assert shown["First byte of an answer"][""] > 0
    assert shown["Disk used"][""] > 0
    assert shown["Memory used"][""] > 0


def test_who_started_again_counts_from_nothing_and_a_line_has_so_many_points() -> None:
    samples = [
        Sample(
            at=10.0 * number, totals={(TOKENS, ""): count}, waiting=0, arrived=0, disk_bytes=0, memory_bytes=0
        )
        for number, count in enumerate([100.0, 160.0, 10.0, *([20.0] * KEPT)])
    ]
    first_token, tokens, *_ = charts_of(samples[:3])
    assert first_token.title == "First token"
    assert (tokens.lines[0].now, tokens.most) == ("0", "6.0")
    assert tokens.lines[0].points == "0.0,0.0 240.0,60.0"
    (line,) = charts_of(samples)[1].lines
    assert 10 < len(line.points.split()) <= POINTS


def test_what_waits_is_shown_by_lane_as_it_stands() -> None:
    samples = [
        Sample(
            at=10.0 * number,
            totals={("strongroom_generation_queued", "bulk"): waiting},
            waiting=0,
            arrived=0,
            disk_bytes=0,
            memory_bytes=0,
        )
        for number, waiting in enumerate([1.0, 4.0, 3.0])
    ]
    (chart,) = (each for each in charts_of(samples) if each.title == "Answers that wait for an engine")
    assert {line.name: line.now for line in chart.lines} == {
        "interactive": "0",
        "bulk": "3.0",
        "background": "0",
    }
    assert chart.most == "4.0"
