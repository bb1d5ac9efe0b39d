"""A document's parts as one, for tests of what is in it."""

from collections.abc import Iterable

from ingest.elements import Parsed, ParsedPart


def joined(parsed: Iterable[Parsed]) -> ParsedPart:
    """One part that is all of the document, as its parts would be if they had no length to keep."""
    parts = [one for one in parsed if isinstance(one, ParsedPart)]
    last = parts[-1]
    return ParsedPart(
        "".join(part.text for part in parts),
        tuple(element for part in parts for element in part.elements),
        pages_done=last.pages_done,
        page_count=last.page_count,
        title=last.title,
    )
