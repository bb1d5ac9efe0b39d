"""`strongroom bench`: what a running Strongroom does on its machine, with its models: a report to keep and compare."""

from pathlib import Path
from typing import Annotated

import typer

from app.commands.remote import Remote
from app.commands.terminal import DataDir, KeyFile, Url, console, with_data_dir, with_remote
from app.measuring.figures import BENCHMARKS, FIGURES, Figures, advice, read_figures
from app.measuring.measuring import Measurement
from app.measuring.report import compared, render

REPORT = "bench.html"


def bench(
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"Folder for {REPORT} and {FIGURES}; one in the data folder's {BENCHMARKS} by default."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.2, help="Time for each step.")] = 5.0,
    documents: Annotated[int, typer.Option(min=1, help="Documents to make up and ingest.")] = 50,
    most: Annotated[int, typer.Option(min=1, max=1024, help="Most clients that chat at once.")] = 16,
    compare: Annotated[Path | None, typer.Option(help=f"An earlier {FIGURES}.")] = None,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Measure ingestion, search, lanes, chat, prefix cache and overload of a running server; nothing is left behind."""
    earlier = read_figures(compare) if compare is not None else None
    settings = with_data_dir(data_dir)
    server = url or settings.public_url

    async def run(remote: Remote) -> Figures:
        measurement = Measurement(remote, seconds=seconds, documents=documents, most=most, console=console)
        return await measurement.run(server)

    figures = with_remote(url, key_file, data_dir, run)
    out = out or settings.storage.data_dir / BENCHMARKS / f"{figures.measured_at:%Y%m%d-%H%M%S}"
    out.mkdir(parents=True, exist_ok=True)
    (out / FIGURES).write_text(figures.model_dump_json(indent=2) + "\n")
    (out / REPORT).write_text(render(figures, earlier), "utf-8")
    for each in advice(figures):
        console.print(f"→ {each}", markup=False, highlight=False)
    if earlier is not None:
        for name, (before, gain) in compared(figures, earlier).items():
            console.print(f"{name}: {gain:.2f} times as good as before ({before:.1f})", highlight=False)
    console.print(f"The report is {out / REPORT}.", soft_wrap=True)
