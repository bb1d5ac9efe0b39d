"""`strongroom status`: roles, lanes, queues, jobs and rates of a running Strongroom, in the terminal or as JSON."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from app.commands.remote import Json, Remote, RemoteUnreachable
from app.commands.terminal import DataDir, KeyFile, Url, console, print_json, with_remote
from serving.protocols import Lane

BARS = "▁▂▃▄▅▆▇█"
SHOWN = 40
"""Looks that a sparkline reaches back."""
JOB_STATES = ("queued", "running", "failed")


@dataclass(frozen=True)
class Look:
    """What a server told at one moment. `samples`: the value of each name and labels."""

    at: float
    ready: Json
    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def total(self, name: str, **labels: str) -> float:
        """Of all samples of that name which have these labels."""
        wanted = frozenset(labels.items())
        return sum(value for (each, told), value in self.samples.items() if each == name and wanted <= told)


@dataclass(frozen=True)
class Rate:
    """Something counted, by the second."""

    title: str
    counted: Callable[[Look], float]


def _counter(name: str, **labels: str) -> Callable[[Look], float]:
    return lambda look: look.total(name, **labels)


RATES = {
    "requests": Rate("requests", _counter("strongroom_requests_total")),
    "searches": Rate("searches", _counter("strongroom_stage_seconds_count", stage="load")),
    "answers": Rate("answers", _counter("strongroom_generation_requests_total", outcome="answered")),
    "refused": Rate(
        "refused as overloaded", _counter("strongroom_generation_requests_total", outcome="overloaded")
    ),
    "embedded_tokens": Rate("tokens embedded", _counter("strongroom_models_tokens_total")),
    "generated_tokens": Rate("tokens generated", _counter("vllm:generation_tokens_total")),
}


@dataclass
class History:
    """Rates between one look and the next."""

    last: Look | None = None
    rates: dict[str, deque[float]] = field(
        default_factory=lambda: {name: deque(maxlen=SHOWN) for name in RATES}
    )

    def add(self, look: Look) -> None:
        if self.last is not None:
            for name, rate in RATES.items():
                # A server that started again counts from 0.
                counted = max(rate.counted(look) - rate.counted(self.last), 0.0)
                self.rates[name].append(counted / max(look.at - self.last.at, 1e-3))
        self.last = look


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, for scripts; a line a look with --watch.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Show what a running Strongroom does: roles, lanes, queues, jobs, rates. Exit status 1 while a role is away."""

    async def run(remote: Remote) -> bool:
        history = History()
        history.add(await look_at(remote))
        with Live(console=console, auto_refresh=False, transient=not watch) as live:
            while True:
                await asyncio.sleep(every)
                history.add(await look_at(remote))
                if as_json:
                    print_json(told(history))
                elif watch:
                    live.update(shown(history), refresh=True)
                if not watch:
                    break
        if not as_json and not watch:
            console.print(shown(history))
        assert history.last is not None
        return bool(history.last.ready["ready"])

    try:
        is_ready = with_remote(url, key_file, data_dir, run)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(0 if is_ready else 1)


async def look_at(remote: Remote) -> Look:
    """Raises RemoteRefused."""
    ready, metrics = await asyncio.gather(remote.readiness(), remote.metrics())
    if ready is None:
        raise RemoteUnreachable("The server does not answer.")
    return Look(time.monotonic(), ready, samples_of(metrics))


def samples_of(metrics: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
    }


def told(history: History) -> Json:
    look = history.last
    assert look is not None
    replicas = {"ready": 0, "unready": 0, "broken": 0, "draining": 0}
    for (name, labels), value in look.samples.items():
        if name == "strongroom_generation_replica_state" and value:
            replicas[dict(labels)["state"]] += 1
    return {
        "ready": look.ready["ready"],
        "roles": look.ready["roles"],
        "lanes": {
            lane.value: {
                "models_waiting_texts": look.total("strongroom_models_waiting_texts", lane=lane.value),
                "generation_queued": look.total("strongroom_generation_queued", lane=lane.value),
            }
            for lane in Lane
        },
        "jobs": {state: look.total("strongroom_ingestion_jobs", state=state) for state in JOB_STATES},
        "oldest_job_s": round(look.total("strongroom_ingestion_oldest_due_seconds"), 1),
        "sources": {
            state: look.total("strongroom_sources", state=state) for state in ("swept", "paused", "failing")
        },
        "collections": look.total("strongroom_collections"),
        "engines": {**replicas, "in_flight": look.total("strongroom_generation_in_flight")},
        "disk_free_bytes": look.total("strongroom_disk_free_bytes"),
        "per_second": {name: round(rates[-1], 2) if rates else None for name, rates in history.rates.items()},
    }


def shown(history: History) -> RenderableType:
    now = told(history)
    roles = _table("role", "state", "reason")
    for name, role in now["roles"].items():
        color = "green" if role["state"] == "ready" else "red"
        roles.add_row(name, f"[{color}]{role['state']}[/]", role["reason"])
    lanes = _table("lane", "texts that wait for models", "requests that wait for an engine")
    for name, lane in now["lanes"].items():
        lanes.add_row(name, f"{lane['models_waiting_texts']:.0f}", f"{lane['generation_queued']:.0f}")
    rates = _table("per second", "now", f"the last {SHOWN} looks")
    for name, rate in RATES.items():
        past = history.rates[name]
        rates.add_row(rate.title, f"{past[-1]:,.1f}" if past else "", sparkline(past))
    jobs, sources, engines = now["jobs"], now["sources"], now["engines"]
    lines = (
        f"documents: {jobs['queued']:.0f} wait, {jobs['running']:.0f} in hand; "
        f"the oldest waits for {now['oldest_job_s']:.0f} s",
        f"sources: {sources['swept']:.0f} swept, {sources['failing']:.0f} failing, {sources['paused']:.0f} paused",
        f"engines: {engines['ready']} ready, {engines['in_flight']:.0f} requests in flight",
        f"collections: {now['collections']:,.0f}; free on disk: {now['disk_free_bytes'] / 2**30:,.1f} GiB",
    )
    return Group(roles, lanes, rates, *lines)


def sparkline(values: Iterable[float]) -> str:
    """A bar a value, the highest as high as there is."""
    shown = [*values]
    highest = max(shown, default=0.0)
    if highest <= 0:
        return BARS[0] * len(shown)
    return "".join(BARS[min(int(value / highest * len(BARS)), len(BARS) - 1)] for value in shown)


def _table(*columns: str) -> Table:
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in table.columns[1:2]:
        column.no_wrap = True
    return table
