"""Quality: what `strongroom eval` and `strongroom bench` found, each on its page, and two of them compared."""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path as Folder
from typing import Annotated, TypeVar

from fastapi import APIRouter, Path, Query, Request, Response
from markupsafe import Markup
from sqlalchemy import func, select

from app.console.session import SignedInAdmin
from app.console.views import ConsoleRoute, views_of
from app.errors import BadRequest
from app.evaluation.compare import compare
from app.evaluation.lines import EvaluationRefused
from app.evaluation.plots import title_of
from app.evaluation.report import plots_of, worst
from app.evaluation.runs import RUN, RUNS, Kind, Run, Summary, read_run
from app.evaluation.tables import SURE
from app.measuring.figures import (
    BENCHMARKS,
    FIGURES,
    Figures,
    FiguresUnreadable,
    advice,
    headline,
    read_figures,
)
from app.measuring.report import compared
from app.measuring.report import plots_of as plots_of_figures
from app.routes.caller import UseServices
from app.services import Services
from retrieval import catalog
from retrieval.catalog import NotFound
from retrieval.scope import Scope
from retrieval.tables import Tenant

router = APIRouter(prefix="/console/quality", include_in_schema=False, route_class=ConsoleRoute)

SHOWN = 100
"""The newest of each."""
CHANGES_SHOWN = 25
HELD = 16
"""Runs that are kept read: some have thousands of questions."""
PLAIN_NAME = r"^\w[\w.-]*$"

Name = Annotated[str, Path(pattern=PLAIN_NAME, max_length=200)]
Report = TypeVar("Report")


class ReportMissing(NotFound):
    kind = "report"


@router.get("")
def quality_page(request: Request, services: UseServices, visitor: SignedInAdmin) -> Response:
    runs = {
        name: (run, [each for each in run.summaries if each.metric == run.main_metric])
        for name, run in _listed(services, RUNS, RUN, _run).items()
        if _may_see(services, visitor.scope, run)
    }
    benches = {
        name: (figures, headline(figures))
        for name, figures in _listed(services, BENCHMARKS, FIGURES, _figures).items()
    }
    return views_of(request).page("quality.html", visitor, runs=runs, benches=benches)


@router.get("/runs/{name}")
def run_page(name: Name, request: Request, services: UseServices, visitor: SignedInAdmin) -> Response:
    run = _seen_run(services, visitor.scope, name)
    return views_of(request).page(
        "quality_run.html",
        visitor,
        run=run,
        metrics=_metrics(run),
        summary_of=_summaries(run),
        plots=_drawn(plots_of(run)),
        worst=worst(run),
        by_answers=run.kind is Kind.ANSWERS,
    )


@router.get("/benches/{name}")
def bench_page(name: Name, request: Request, services: UseServices, visitor: SignedInAdmin) -> Response:
    figures = _bench(services, name)
    return views_of(request).page(
        "quality_bench.html",
        visitor,
        figures=figures,
        headline=headline(figures),
        advice=advice(figures),
        plots=_drawn(plots_of_figures(figures)),
    )


@router.get("/compared/runs")
def compared_runs(
    request: Request,
    services: UseServices,
    visitor: SignedInAdmin,
    chosen: Annotated[list[str], Query(max_length=SHOWN)] = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    """Question by question, with how sure a difference is; the older first."""
    runs = [_seen_run(services, visitor.scope, name) for name in _two(chosen)]
    a, b = sorted(runs, key=lambda run: run.started_at)
    try:
        found = compare(a, b)
    except EvaluationRefused as refused:
        raise BadRequest(str(refused), param="chosen") from refused
    return views_of(request).page(
        "quality_compared.html", visitor, a=a, b=b, found=found, sure=SURE, most=CHANGES_SHOWN
    )


@router.get("/compared/benches")
def compared_benches(
    request: Request,
    services: UseServices,
    visitor: SignedInAdmin,
    chosen: Annotated[list[str], Query(max_length=SHOWN)] = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    a, b = sorted((_bench(services, name) for name in _two(chosen)), key=lambda bench: bench.measured_at)
    return views_of(request).page(
        "quality_benches_compared.html", visitor, a=a, b=b, headline=headline(b), found=compared(b, a)
    )


def _two(chosen: list[str]) -> list[str]:
    if len(chosen) != 2 or not all(re.match(PLAIN_NAME, name) for name in chosen):
        raise BadRequest("Choose two reports to compare: tick the boxes at their names.", param="chosen")
    return chosen


def _listed(
    services: Services, folder: str, file_name: str, read: Callable[[Folder, int], Report | None]
) -> dict[str, Report]:
    """The newest first. What cannot be read, or is not finished, is left out."""
    parent = services.settings.storage.data_dir / folder
    files = sorted(parent.glob(f"*/{file_name}"), reverse=True)[:SHOWN]
    found = {path.parent.name: read(path, path.stat().st_mtime_ns) for path in files}
    return {name: report for name, report in found.items() if report is not None}


@lru_cache(HELD)
def _run(path: Folder, _changed_at: int) -> Run | None:
    try:
        return read_run(path)
    except EvaluationRefused:
        return None


@lru_cache(HELD)
def _figures(path: Folder, _changed_at: int) -> Figures | None:
    try:
        return read_figures(path)
    except FiguresUnreadable:
        return None


def _seen_run(services: Services, scope: Scope, name: str) -> Run:
    path = services.settings.storage.data_dir / RUNS / name / RUN
    run = _run(path, path.stat().st_mtime_ns) if path.is_file() else None
    if run is None or not _may_see(services, scope, run):
        raise ReportMissing(name)
    return run


def _bench(services: Services, name: str) -> Figures:
    path = services.settings.storage.data_dir / BENCHMARKS / name / FIGURES
    figures = _figures(path, path.stat().st_mtime_ns) if path.is_file() else None
    if figures is None:
        raise ReportMissing(name)
    return figures


def _may_see(services: Services, scope: Scope, run: Run) -> bool:
    """A run quotes documents: of a collection that is the visitor's and still there; or of all, if all are theirs."""
    collection_id = run.settings.get("collection_id")
    # Held to one tenant, a transaction on PostgreSQL would count one.
    with services.storage.database.read() as session:
        if not isinstance(collection_id, str):
            return session.scalars(select(func.count()).select_from(Tenant)).one() == 1
        try:
            catalog.get_collection(session, scope, collection_id)
        except NotFound:
            return False
    return True


def _metrics(run: Run) -> list[str]:
    return list(dict.fromkeys(each.metric for each in run.summaries))


def _summaries(run: Run) -> dict[tuple[str, str], Summary]:
    return {(each.variant, each.metric): each for each in run.summaries}


def _drawn(plots: list[str]) -> list[tuple[Markup, Markup]]:
    return [(title_of(plot), Markup(plot)) for plot in plots]  # noqa: S704 - plots escapes its texts
