"""Nothing in a watched folder leads out of it or makes a sweep wait (A2)."""

import os
import socket
from pathlib import Path

import pytest

from ingest.sources.entries import Entry, EntryChanged
from ingest.sources.local import MAX_DEPTH, LocalFolder
from tests.ingest.sources.watched import Watched

SECRET = "The secret lies outside the folder."


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    path.mkdir()
    (path / "secret.txt").write_text(SECRET)
    return path


async def test_links_pipes_sockets_and_devices_are_noted_and_never_opened(
    watched: Watched, outside: Path
) -> None:
    watched.write("a.txt", "The vault opens at nine.")
    root = watched.root
    (root / "link.txt").symlink_to(outside / "secret.txt")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(root / "socket.txt"))
    assert await watched.swept() == {"added": 1, "refused": 5}
    assert watched.answers() == {"a.txt": "The vault opens at nine."}
    assert watched.refusals() == {
        "link.txt": "It is a symbolic link, which is not followed.",
        "folder": "It is a symbolic link, which is not followed.",
        "loop": "It is a symbolic link, which is not followed.",
        "pipe.txt": "It is a named pipe.",
        "socket.txt": "It is a socket.",
    }
    assert await watched.swept() == {"unchanged": 1, "refused": 5}


async def test_a_link_that_takes_a_files_place_after_the_listing_is_not_followed(
    watched: Watched, outside: Path
) -> None:
    watched.write("a.txt", "The vault opens at nine.")
    watched.write("b/c.txt", "The key hangs in the hall.")

    class Swapped(LocalFolder):
        """As when the attacker is just in time: the link is there once the listing is done."""

        def read(self, entry: Entry):  # type: ignore[no-untyped-def]
            path = watched.root / entry.path
            path.unlink()
            if entry.path == "a.txt":
                path.symlink_to(outside / "secret.txt")
            else:
                path.parent.rmdir()
                (outside / "c.txt").write_text(SECRET)
                path.parent.symlink_to(outside)
            return super().read(entry)

    watched.files = Swapped(watched.root)
    assert await watched.swept() == {"unsettled": 2}
    assert watched.answers() == {}


@pytest.mark.parametrize("becomes", ["pipe", "device link", "other file", "longer file"])
def test_what_takes_a_files_place_is_not_read(tmp_path: Path, becomes: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("The vault opens at nine.")
    folder = LocalFolder(tmp_path)
    [entry] = folder.listing().entries
    if becomes == "longer file":
        path.write_text(SECRET + SECRET)
    else:
        path.unlink()
    match becomes:
        case "pipe":
            os.mkfifo(path)
        case "device link":
            path.symlink_to("/dev/zero")
        case "other file":
            path.write_text("The vault opens at noon.")
    with pytest.raises(EntryChanged):
        b"".join(folder.read(entry))


def test_a_file_that_changes_while_it_is_read_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 3_000_000)
    folder = LocalFolder(tmp_path)
    [entry] = folder.listing().entries
    reading = folder.read(entry)
    next(reading)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(EntryChanged):
        list(reading)


def test_names_that_are_not_utf8_are_refused_with_the_name_written_out(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("The vault opens at nine.")
    [entry] = LocalFolder(tmp_path).listing().entries
    assert (entry.path, entry.refusal) == ("caf\\xe9.txt", "Its name is not UTF-8.")


def test_a_very_deep_tree_ends_at_a_limit_and_is_noted(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(MAX_DEPTH + 3):
        deep /= "d"
        deep.mkdir()
    (deep / "a.txt").write_text("The vault opens at nine.")
    [entry] = LocalFolder(tmp_path).listing().entries
    assert "deep" in (entry.refusal or "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every folder")
def test_a_folder_that_may_not_be_opened_is_a_gap(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o000)
    assert "closed" in LocalFolder(tmp_path).listing().gaps[0]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_reading_leaves_no_descriptor_open(tmp_path: Path) -> None:
    for number in range(50):
        path = tmp_path / f"{number % 5}" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("The vault opens at nine.")
    folder = LocalFolder(tmp_path)
    before = open_descriptors()
    for entry in folder.listing().entries:
        reading = folder.read(entry)
        next(reading)
        reading.close()  # type: ignore[attr-defined]
        assert folder.look(entry) == entry
    assert open_descriptors() == before
