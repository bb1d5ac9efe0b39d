"""After a sweep the collection is as the source, and what did not change was not computed again."""

import time
from collections.abc import Iterator
from threading import Event, Thread

import pytest
from sqlalchemy.orm import Session

from ingest.leadership import Deposed
from ingest.sources.entries import Entry, Listing, SourceUnavailable
from ingest.sources.local import LocalFolder
from ingest.sources.sweep import SweepStopped
from retrieval.catalog import delete_file
from tests.ingest.sources.watched import Watched, replace_in_place

pytestmark = pytest.mark.slow

VAULT = "The vault of the archive opens at nine."
KEY = "The key to the cellar hangs in the hall."
WHALES = "Whales feed on krill in the cold sea."


async def test_files_come_and_go_with_the_folder(watched: Watched) -> None:
    watched.write("a.txt", VAULT)
    watched.write("letters/1920/b.md", KEY)
    assert await watched.swept() == {"added": 2}
    assert watched.answers() == {"a.txt": VAULT, "letters/1920/b.md": KEY}
    (watched.root / "a.txt").unlink()
    watched.write("letters/c.txt", WHALES)
    assert await watched.swept() == {"added": 1, "removed": 1, "unchanged": 1}
    assert watched.answers() == watched.on_disk()
    assert watched.blob_count() == 2


async def test_what_did_not_change_is_neither_opened_nor_written(watched: Watched) -> None:
    watched.write("a.txt", VAULT)
    watched.write("empty.txt", "")
    await watched.swept()

    class Unopened(LocalFolder):
        def read(self, entry: Entry) -> Iterator[bytes]:
            pytest.fail(f"{entry.path} was opened")

    def forbid(_: Session) -> None:
        pytest.fail("something was written")

    watched.files = Unopened(watched.root)
    assert await watched.swept(check=forbid) == {"unchanged": 1, "refused": 1}


async def test_a_file_that_was_only_touched_is_not_parsed_or_embedded_again(watched: Watched) -> None:
    path = watched.write("a.txt", VAULT)
    await watched.swept()
    chunks, parsed = watched.chunk_ids("a.txt"), list(watched.stack.parser.calls)
    path.touch()
    assert await watched.swept() == {"unchanged": 1}
    assert (watched.chunk_ids("a.txt"), watched.stack.parser.calls) == (chunks, parsed)
    assert await watched.swept() == {"unchanged": 1}


async def test_the_old_version_answers_until_the_new_one_is_complete(watched: Watched) -> None:
    path = watched.write("a.txt", VAULT)
    await watched.swept()
    replace_in_place(path, WHALES)
    watched.sweep()
    assert watched.answers() == {"a.txt": VAULT}
    during: list[dict[str, str]] = []

    async def look(_: str) -> None:
        during.append(watched.answers())

    watched.stack.parser.meanwhile = look
    await watched.stack.worker().drain()
    assert during == [{"a.txt": VAULT}]
    assert watched.answers() == {"a.txt": WHALES}
    assert len(watched.files_by_path()) == watched.blob_count() == 1


async def test_a_third_version_replaces_the_first_when_the_second_never_was_complete(
    watched: Watched,
) -> None:
    path = watched.write("a.txt", VAULT)
    await watched.swept()
    replace_in_place(path, KEY)
    watched.sweep()
    replace_in_place(path, WHALES)
    watched.sweep()
    assert watched.answers() == {"a.txt": VAULT}
    await watched.stack.worker().drain()
    assert watched.answers() == {"a.txt": WHALES}
    assert len(watched.files_by_path()) == watched.blob_count() == 1


async def test_a_file_that_goes_while_its_new_version_waits_takes_both_with_it(watched: Watched) -> None:
    path = watched.write("a.txt", VAULT)
    watched.write("b.txt", KEY)
    await watched.swept()
    replace_in_place(path, WHALES)
    watched.sweep()
    path.unlink()
    assert await watched.swept() == {"removed": 1, "unchanged": 1}
    assert watched.answers() == {"b.txt": KEY}
    assert len(watched.files_by_path()) == watched.blob_count() == 1


async def test_a_renamed_file_keeps_its_id_and_its_chunks(watched: Watched) -> None:
    path = watched.write("drafts/a.txt", VAULT)
    await watched.swept()
    file_id, chunks = watched.files_by_path()["drafts/a.txt"].id, watched.chunk_ids("drafts/a.txt")
    parsed = len(watched.stack.parser.calls)
    target = watched.root / "final" / "b.txt"
    target.parent.mkdir()
    path.rename(target)
    assert await watched.swept() == {"renamed": 1}
    assert watched.files_by_path()["final/b.txt"].id == file_id
    assert watched.chunk_ids("final/b.txt") == chunks
    assert watched.answers() == {"final/b.txt": VAULT}
    assert len(watched.stack.parser.calls) == parsed


async def test_a_file_moved_over_another_keeps_its_chunks_and_ends_the_other(watched: Watched) -> None:
    watched.write("a.txt", VAULT)
    new = watched.write("b.txt", WHALES)
    await watched.swept()
    chunks = watched.chunk_ids("b.txt")
    new.rename(watched.root / "a.txt")
    assert await watched.swept() == {"renamed": 1, "removed": 1}
    assert watched.answers() == {"a.txt": WHALES}
    assert watched.chunk_ids("a.txt") == chunks
    assert watched.entries() == ["a.txt"]


async def test_rotated_files_keep_their_chunks(watched: Watched) -> None:
    for name, text in (("log.txt", VAULT), ("log.1.txt", KEY), ("log.2.txt", WHALES)):
        watched.write(name, text)
    await watched.swept()
    before = {text: watched.chunk_ids(name) for name, text in watched.on_disk().items()}
    (watched.root / "log.1.txt").rename(watched.root / "log.2.txt")
    (watched.root / "log.txt").rename(watched.root / "log.1.txt")
    watched.write("log.txt", "A new day begins in the archive.")
    counts = await watched.swept()
    assert watched.answers() == watched.on_disk()
    assert counts["renamed"] == 2
    assert watched.chunk_ids("log.1.txt") == before[VAULT]
    assert watched.chunk_ids("log.2.txt") == before[KEY]
    assert await watched.swept() == {"unchanged": 3}


async def test_two_files_that_swap_names_both_answer_under_their_new_ones(watched: Watched) -> None:
    watched.write("a.txt", VAULT)
    watched.write("b.txt", KEY)
    await watched.swept()
    (watched.root / "a.txt").rename(watched.root / "c.txt")
    (watched.root / "b.txt").rename(watched.root / "a.txt")
    (watched.root / "c.txt").rename(watched.root / "b.txt")
    parsed = len(watched.stack.parser.calls)
    await watched.swept()
    assert watched.answers() == {"a.txt": KEY, "b.txt": VAULT}
    assert len(watched.stack.parser.calls) == parsed
    assert await watched.swept() == {"unchanged": 2}


async def test_a_renamed_file_whose_new_name_means_another_kind_is_ingested_anew(watched: Watched) -> None:
    path = watched.write("a.txt", VAULT)
    await watched.swept()
    path.rename(watched.root / "a.md")
    assert await watched.swept() == {"added": 1, "removed": 1}
    assert watched.files_by_path()["a.md"].media_type == "text/markdown"
    assert watched.answers() == {"a.md": VAULT}


async def test_the_same_content_under_two_paths_is_two_documents_of_one_blob(watched: Watched) -> None:
    watched.write("a.txt", VAULT)
    watched.write("b.txt", VAULT)
    assert await watched.swept() == {"added": 2}
    assert watched.answers() == {"a.txt": VAULT, "b.txt": VAULT}
    assert watched.blob_count() == 1


async def test_a_refused_file_is_told_with_its_reason_and_tried_again_when_it_changes(
    watched: Watched,
) -> None:
    path = watched.write("a.pdf", VAULT)
    watched.write("large.txt", "x" * 10_001)
    assert await watched.swept() == {"refused": 2}
    assert "is named .pdf" in watched.refusals()["a.pdf"]
    assert "10000 bytes" in watched.refusals()["large.txt"]
    assert await watched.swept() == {"refused": 2}
    path.unlink()
    watched.write("large.txt", KEY)
    assert await watched.swept() == {"added": 1}
    assert watched.refusals() == {}


async def test_a_file_that_becomes_unreadable_stops_answering(watched: Watched) -> None:
    path = watched.write("a.txt", VAULT)
    await watched.swept()
    replace_in_place(path, "")
    assert await watched.swept() == {"refused": 1, "removed": 1}
    assert watched.answers() == {}
    assert watched.blob_count() == 0


async def test_patterns_choose_what_is_taken(watched: Watched) -> None:
    for path in ("a.txt", "b.md", "drafts/c.txt", "final/deep/d.txt"):
        watched.write(path, f"{VAULT} {path}")
    assert await watched.swept(include=["*.txt"], exclude=["drafts/**"]) == {"added": 2}
    assert set(watched.answers()) == {"a.txt", "final/deep/d.txt"}
    assert await watched.swept(include=["final/**/*.txt"]) == {"removed": 1, "unchanged": 1}


async def test_a_dry_run_tells_what_would_happen_and_changes_nothing(watched: Watched) -> None:
    watched.write("a.txt", VAULT)
    watched.write("b.txt", KEY)
    await watched.swept()
    replace_in_place(watched.root / "a.txt", WHALES)
    (watched.root / "b.txt").unlink()
    watched.write("c.txt", WHALES)
    watched.write("d.txt", "x" * 10_001)
    expected = {"added": 1, "changed": 1, "removed": 1, "refused": 1}
    assert await watched.swept(is_dry=True) == expected
    assert watched.answers() == {"a.txt": VAULT, "b.txt": KEY}
    assert watched.entries() == ["a.txt", "b.txt"]


async def test_a_source_that_is_suddenly_empty_removes_nothing_unless_that_is_right(watched: Watched) -> None:
    path = watched.write("a.txt", VAULT)
    await watched.swept()
    path.unlink()
    report = watched.sweep()
    assert report.counts["removed"] == 0
    assert "--allow-empty" in (report.note or "")
    assert watched.answers() == {"a.txt": VAULT}
    assert await watched.swept(may_empty=True) == {"removed": 1}
    assert watched.answers() == {}


async def test_a_folder_that_cannot_be_opened_removes_nothing(watched: Watched) -> None:
    watched.write("a.txt", VAULT)
    await watched.swept()
    watched.root.rename(watched.root.with_name("away"))
    with pytest.raises(SourceUnavailable, match="cannot be opened"):
        watched.sweep()
    assert watched.answers() == {"a.txt": VAULT}


async def test_a_listing_with_gaps_adds_but_never_removes(watched: Watched) -> None:
    watched.write("a.txt", VAULT)
    watched.write("hidden/b.txt", KEY)
    await watched.swept()
    watched.write("c.txt", WHALES)

    class Partial(LocalFolder):
        def listing(self) -> Listing:
            whole = super().listing()
            seen = [entry for entry in whole.entries if not entry.path.startswith("hidden/")]
            return Listing(seen, ["hidden: Permission denied"])

    watched.files = Partial(watched.root)
    report = watched.sweep()
    assert (report.counts["added"], report.counts["removed"]) == (1, 0)
    assert "hidden: Permission denied" in (report.note or "")
    await watched.stack.worker().drain()
    assert set(watched.answers()) == {"a.txt", "c.txt", "hidden/b.txt"}


async def test_a_file_that_is_being_written_is_left_for_later(watched: Watched) -> None:
    path = watched.write("a.txt", "")
    stop = Event()

    def go_on_writing() -> None:
        with path.open("a") as file:
            while not stop.wait(0.05):
                file.write(VAULT + "\n")
                file.flush()

    writing = Thread(target=go_on_writing)
    writing.start()
    try:
        assert await watched.swept(clock=time.time) == {"unsettled": 1}
    finally:
        stop.set()
        writing.join()
    assert await watched.swept(clock=time.time) == {"added": 1}


async def test_a_sweep_that_is_stopped_has_done_whole_files_and_the_next_goes_on(watched: Watched) -> None:
    for number in range(6):
        watched.write(f"{number}.txt", f"{VAULT} {number}")
    stopping = Event()
    done = 0

    def stop_after_three(_: Session) -> None:
        nonlocal done
        done += 1
        if done == 3:
            stopping.set()

    with pytest.raises(SweepStopped):
        watched.sweep(check=stop_after_three, stopping=stopping)
    await watched.stack.worker().drain()
    assert len(watched.answers()) == 3
    assert await watched.swept() == {"added": 3, "unchanged": 3}
    assert watched.answers() == watched.on_disk()


async def test_who_was_deposed_changes_nothing_more(watched: Watched) -> None:
    watched.write("a.txt", VAULT)

    def depose(_: Session) -> None:
        raise Deposed

    with pytest.raises(Deposed):
        watched.sweep(check=depose)
    assert (watched.entries(), watched.files_by_path()) == ([], {})


async def test_what_a_user_deleted_stays_deleted_until_the_file_changes(watched: Watched) -> None:
    path = watched.write("a.txt", VAULT)
    await watched.swept()
    with watched.database.write() as session:
        delete_file(session, watched.scope, watched.files_by_path()["a.txt"].id)
    assert await watched.swept() == {"unchanged": 1}
    assert watched.answers() == {}
    replace_in_place(path, WHALES)
    await watched.swept()
    assert watched.answers() == {"a.txt": WHALES}
