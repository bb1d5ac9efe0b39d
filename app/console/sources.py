"""Watched places in the console: what they brought, and what an admin does with them."""

from typing import Annotated, Any

from cron_descriptor import FormatException, Options, get_description
from fastapi import APIRouter, Form, Request, Response

from app.console.session import SignedIn, SignedInAdmin
from app.console.views import ConsoleRoute, views_of
from app.errors import BadRequest
from app.routes import sources as api
from app.routes.body import read_model
from app.routes.caller import UseServices
from retrieval import catalog
from retrieval.catalog import PageRequest

router = APIRouter(prefix="/console/sources", include_in_schema=False, route_class=ConsoleRoute)

MOST_COLLECTIONS = 1000
WHEN = {"5m": "every 5 minutes", "1h": "every hour", "1d": "every day", "watch": "at once (local folders)"}
"""What an admin chooses from, in words; or a cron is written."""
UNITS = {"s": "second", "m": "minute", "h": "hour", "d": "day"}


@router.get("")
def sources_page(request: Request, services: UseServices, visitor: SignedIn) -> Response:
    with services.database.read() as session:
        page = PageRequest(limit=MOST_COLLECTIONS)
        collections = catalog.list_collections(session, visitor.scope, page)
    return views_of(request).page(
        "sources.html",
        visitor,
        sources=[
            api.get_source(each["id"], services, visitor.scope)
            for each in api.list_sources(services, visitor.scope)["data"]
        ],
        collections=collections,
        names={each.id: each.name or each.id for each in collections},
        when=WHEN,
        schedule_of=schedule_of,
        allowed=services.settings.sources,
    )


@router.post("")
def add_source(
    services: UseServices,
    visitor: SignedInAdmin,
    url: Annotated[str, Form()],
    collection: Annotated[str, Form()],
    when: Annotated[str, Form()] = "1h",
    cron: Annotated[str, Form()] = "",
    include: Annotated[str, Form()] = "",
    tries_first: Annotated[bool, Form()] = False,
) -> Response:
    told = {
        # A folder may be written as people write it.
        "url": f"file://{url.strip()}" if url.startswith("/") else url.strip(),
        "collection": collection,
        "include": include.split(),
        "cron": cron.strip() or None,
        "watch": when == "watch" and not cron.strip(),
        "every": when if when != "watch" and not cron.strip() else None,
    }
    body = read_model(api.AddSource, told)
    api.add(services, visitor.scope, body, by_owner=False, tries_first=tries_first)
    return Response(headers={"HX-Redirect": "/console/sources"})


@router.post("/{source_id}/{action}")
def act(source_id: str, action: str, services: UseServices, visitor: SignedInAdmin) -> Response:
    match action:
        case "sweep" | "try":
            api.ask_sweep(source_id, api.AskSweep(dry_run=action == "try"), services, visitor.scope)
        case "pause":
            api.pause_source(source_id, services, visitor.scope)
        case "resume":
            api.resume_source(source_id, services, visitor.scope)
        case _:
            raise BadRequest(f"There is no action '{action}'.", param="action")
    return Response(headers={"HX-Refresh": "true"})


@router.delete("/{source_id}")
def remove_source(
    source_id: str,
    services: UseServices,
    visitor: SignedInAdmin,
    *,
    keep_files: bool = False,
) -> Response:
    api.remove_source(source_id, services, visitor.scope, keep_files=keep_files)
    return Response(headers={"HX-Redirect": "/console/sources"})


def schedule_of(source: dict[str, Any]) -> str:
    """When the API's source is looked at, in words."""
    if source["cron"]:
        return _cron_in_words(source["cron"])
    if source["watch"]:
        return "as soon as something changes"
    if source["every"]:
        count, unit = source["every"][:-1], UNITS[source["every"][-1]]
        return f"every {unit}" if count == "1" else f"every {count} {unit}s"
    return "when asked"


def _cron_in_words(cron: str) -> str:
    options = Options(use_24hour_time_format=True, locale_code="en_US")
    try:
        told: str = get_description(cron, options)
    except FormatException:
        return f"at {cron} UTC"  # Such as `last`, which only the scheduler knows.
    return f"{told[0].lower()}{told[1:]}, in UTC"
