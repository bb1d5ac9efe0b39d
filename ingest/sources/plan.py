"""What a sweep has to do: pure, from what is known of a source and what it lists."""

from collections.abc import Mapping
from dataclasses import dataclass

from ingest.sources.entries import Entry, Listing
from ingest.sources.patterns import PathFilter

ORPHAN_PREFIX = "//"
"""Begins the path of an entry for a file whose path has other content now: no source lists such a path."""


@dataclass(frozen=True, slots=True)
class Known:
    """A path as the last sweep left it."""

    tag: str
    digest: str | None
    """Of its bytes, as the blob store makes it."""
    file_id: str | None
    error: str | None


@dataclass(frozen=True)
class Plan:
    unchanged: int
    """Neither opened nor written."""
    refused: int
    """As before, for the same reason."""
    look_into: list[Entry]
    """New, changed, or without a tag; those that cannot be taken among them."""
    gone: list[str]
    """Paths that are known and not listed; none where a listing has gaps, which prove nothing."""
    reason_kept: str | None
    """Why what is not listed stays."""


def make_plan(
    known: Mapping[str, Known], listing: Listing, wanted: PathFilter, *, max_bytes: int, may_empty: bool
) -> Plan:
    unchanged = refused = 0
    look_into: list[Entry] = []
    listed: set[str] = set()
    for entry in listing.entries:
        if not wanted.wants(entry.path) or entry.path in listed:
            continue
        listed.add(entry.path)
        before = known.get(entry.path)
        if before is None or not entry.tag or before.tag != entry.tag:
            look_into.append(_limited(entry, max_bytes))
        elif before.error is not None:
            refused += 1
        else:
            unchanged += 1
    gone = [path for path in known if path not in listed and not path.startswith(ORPHAN_PREFIX)]
    reason_kept = _reason_kept(known, listing, gone, may_empty=may_empty)
    return Plan(
        unchanged=unchanged,
        refused=refused,
        look_into=look_into,
        gone=[] if reason_kept else gone,
        reason_kept=reason_kept,
    )


def _limited(entry: Entry, max_bytes: int) -> Entry:
    if entry.refusal is not None or entry.size_bytes is None or entry.size_bytes <= max_bytes:
        return entry
    return Entry(
        path=entry.path,
        address=entry.address,
        tag=entry.tag,
        refusal=too_large(max_bytes),
    )


def too_large(max_bytes: int) -> str:
    return f"It is larger than the source's limit of {max_bytes} bytes (max_bytes)."


def _reason_kept(
    known: Mapping[str, Known], listing: Listing, gone: list[str], *, may_empty: bool
) -> str | None:
    if not gone:
        return None
    if listing.gaps:
        more = f" and {len(listing.gaps) - 1} more places" if len(listing.gaps) > 1 else ""
        return f"Nothing was removed, as the listing has gaps: {listing.gaps[0]}{more}."
    if not listing.entries and not may_empty and any(each.file_id for each in known.values()):
        return (
            "Nothing was removed, as the source is empty and was not before. If that is right, sweep it once "
            "with --allow-empty."
        )
    return None
