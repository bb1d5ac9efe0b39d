"""Reports of evaluations and benchmarks, as the commands write them."""

from datetime import UTC, datetime
from pathlib import Path

from app.evaluation.runs import RUNS, Begun, Kind, Outcome, RunFolder
from app.measuring.figures import BENCHMARKS, FIGURES, Chats, Figures, Ingested, Lanes, Load, Spread


def write_run(
    data_dir: Path, collection_id: str | None, *, hour: int, right: int, question: str = "Who is it?"
) -> str:
    """A run of 40 questions, of which so many were answered rightly. Returns its name."""
    begun = Begun(
        kind=Kind.ANSWERS,
        name="harbour",
        main_metric="f1",
        settings={"collection_id": collection_id},
        versions={"strongroom": "1"},
        started_at=datetime(2026, 1, 1, hour, tzinfo=UTC),
    )
    outcomes = [
        Outcome(
            variant="answers",
            id=f"line {number}",
            question=f"{question} {number}",
            wanted=("Ondine",),
            found=("Ondine" if number < right else "Nobody",),
            metrics={"f1": float(number < right)},
            seconds=0.1 + number / 100,
            answerable=True,
            grounded=True,
        )
        for number in range(40)
    ]
    with RunFolder.begin(data_dir / RUNS, begun) as folder:
        folder.finish(outcomes, [])
    return folder.path.name


def write_bench(data_dir: Path, *, hour: int, tokens: int) -> str:
    """Returns its name."""
    spread = Spread(p50_ms=20.0, p95_ms=40.0)
    measured_at = datetime(2026, 1, 1, hour, tzinfo=UTC)
    figures = Figures(
        measured_at=measured_at,
        version="1",
        server="http://127.0.0.1:8080",
        machine="a box",
        models=["demo"],
        ingested=Ingested(documents=50, characters=10_000, seconds=5.0, failed=0),
        searches=[Load(clients=each, requests=50, refused=0, seconds=2.0, time=spread) for each in (1, 4)],
        lanes=Lanes(alone=spread, beside_bulk=spread, bulk_texts_per_s=30.0),
        chats=[
            Chats(
                clients=each,
                requests=9,
                refused=0,
                seconds=2.0,
                time=spread,
                first_token=spread,
                between_tokens=spread,
                tokens=tokens * each,
            )
            for each in (1, 2)
        ],
    )
    folder = data_dir / BENCHMARKS / f"{measured_at:%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True)
    (folder / FIGURES).write_text(figures.model_dump_json())
    return folder.name
