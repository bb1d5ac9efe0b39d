"""`strongroom doctor`: looks at settings, disk, memory, clocks, models, engine, indexes, and says what to do."""

import asyncio

import typer

from app.commands.remote import Remote
from app.commands.terminal import AsJson, DataDir, KeyFile, Url, console, print_json, with_data_dir
from app.running.diagnosis import Finding, State, diagnose
from app.storage.opening import keys_dir

MARKS = {State.OK: "[green]ok[/]     ", State.WARNING: "[yellow]warning[/]", State.FAILED: "[red]failed[/] "}


def doctor(
    as_json: AsJson = False,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Find out what is wrong here and what to do about it. Exit status 1 when something has failed."""
    settings = with_data_dir(data_dir)
    path = key_file or keys_dir(settings) / "admin.key"

    async def run() -> list[Finding]:
        key = path.read_text().strip() if path.exists() else ""
        async with Remote(url or settings.public_url, key) as remote:
            return await diagnose(settings, remote)

    findings = asyncio.run(run())
    if as_json:
        print_json([finding.told() for finding in findings])
    else:
        for finding in findings:
            console.print(f"{MARKS[finding.state]}  [bold]{finding.name}[/]: ", end="")
            console.print(finding.found, markup=False, soft_wrap=True)
            if finding.advice:
                console.print(f"         → {finding.advice}", markup=False, soft_wrap=True)
    raise typer.Exit(1 if any(finding.state is State.FAILED for finding in findings) else 0)
