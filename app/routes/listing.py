"""Pages of lists in OpenAI's shape."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query

from retrieval.catalog import CursorInvalid, Order, PageRequest

Row = TypeVar("Row")


MOST = 10_000


def _page_of(
    limit: Annotated[int, Query(ge=1, le=MOST)] = 20,
    order: Order = Order.DESC,
    after: str | None = None,
    before: str | None = None,
) -> PageRequest:
    return PageRequest(limit=limit, order=order, after=after, before=before)


def _long_page_of(
    limit: Annotated[int, Query(ge=1, le=MOST)] = MOST,
    order: Order = Order.DESC,
    after: str | None = None,
    before: str | None = None,
) -> PageRequest:
    return PageRequest(limit=limit, order=order, after=after, before=before)


Page = Annotated[PageRequest, Depends(_page_of)]
LongPage = Annotated[PageRequest, Depends(_long_page_of)]
"""Of files OpenAI lists all that it can unless it is told otherwise."""


def one_more(page: PageRequest) -> PageRequest:
    """Asks for a row beyond the page, which tells whether there is more."""
    return PageRequest(limit=page.limit + 1, order=page.order, after=page.after, before=page.before)


def listing(rows: Sequence[Row], page: PageRequest, shape: Callable[[Row], dict[str, Any]]) -> dict[str, Any]:
    """`rows` come from `one_more(page)`; the one beyond the page stands first when the page ends at a cursor."""
    shown = [shape(row) for row in (rows[-page.limit :] if page.backward else rows[: page.limit])]
    return listed(shown, has_more=len(rows) > page.limit)


def listed(shown: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else "",
        "last_id": shown[-1]["id"] if shown else "",
        "has_more": has_more,
    }


def following(
    items: Sequence[dict[str, Any]], *, order: Order, after: str | None
) -> Sequence[dict[str, Any]]:
    """Of a list that is kept whole, oldest first: what comes after the cursor. Raises CursorInvalid."""
    ordered = items[::-1] if order is Order.DESC else items
    if after is None:
        return ordered
    ids = [item["id"] for item in ordered]
    if after not in ids:
        raise CursorInvalid(after, param="after")
    return ordered[ids.index(after) + 1 :]
