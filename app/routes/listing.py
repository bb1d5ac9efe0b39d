"""Pages of lists in OpenAI's shape."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query

from retrieval.catalog import Order, PageRequest

Row = TypeVar("Row")


def _page_of(
    limit: Annotated[int, Query(ge=1, le=10_000)] = 20,
    order: Order = Order.DESC,
    after: str | None = None,
    before: str | None = None,
) -> PageRequest:
    return PageRequest(limit=limit, order=order, after=after, before=before)


Page = Annotated[PageRequest, Depends(_page_of)]


def one_more(page: PageRequest) -> PageRequest:
    """Asks for a row beyond the page, which tells whether there is more."""
    return PageRequest(limit=page.limit + 1, order=page.order, after=page.after, before=page.before)


def listing(rows: Sequence[Row], page: PageRequest, shape: Callable[[Row], dict[str, Any]]) -> dict[str, Any]:
    """`rows` come from `one_more(page)`; the one beyond the page stands first when the page ends at a cursor."""
    shown = [shape(row) for row in (rows[-page.limit :] if page.backward else rows[: page.limit])]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(rows) > page.limit,
    }
