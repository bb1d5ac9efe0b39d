"""Archives are folders of documents, within limits that are counted while they inflate."""

import io
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.elements import ParseFailed, ParseFailure, ParseOptions
from ingest.parse.folders import parse_tar, parse_zip, shown_name
from tests.ingest.reading import Parser, read_here

VERDICT_S = 2.0


def zipped(path: Path, entries: dict[str, bytes], *, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, entries: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in entries.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def failure(parse: Parser, path: Path, options: ParseOptions | None = None) -> ParseFailed:
    """What becomes of a bad archive, soon, and without giving anything of it before."""
    started = time.monotonic()
    with pytest.raises(ParseFailed) as caught:
        next(parse(path, options or ParseOptions()))
    assert time.monotonic() - started < VERDICT_S
    return caught.value


ENTRIES = {"notes.txt": b"vault", "plans/2024/hall.md": b"# Hall", "empty.txt": b""}
KEPT = {"notes.txt": b"vault", "plans/2024/hall.md": b"# Hall"}
UNWANTED = {"__MACOSX/._notes.txt": b"x", ".DS_Store": b"x", "plans/Thumbs.db": b"x", "._notes.txt": b"x"}


def test_a_zip_is_a_folder_of_its_files(tmp_path: Path) -> None:
    document = read_here(parse_zip, zipped(tmp_path / "a.zip", ENTRIES | UNWANTED))
    assert document.attachments == KEPT
    assert document.text == ""


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_is_a_folder_of_its_files(tmp_path: Path, mode: str) -> None:
    assert read_here(parse_tar, tarred(tmp_path / "a.tar", ENTRIES | UNWANTED, mode)).attachments == KEPT


def test_an_entry_is_gone_when_the_next_is_asked_for(tmp_path: Path) -> None:
    steps = parse_zip(zipped(tmp_path / "a.zip", KEPT), ParseOptions())
    first = next(steps)
    assert first.path.exists()  # type: ignore[union-attr]
    next(steps)
    assert not first.path.exists()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("..\\..\\x.txt", "x.txt"),
        ("C:\\x.txt", "C:/x.txt"),
        ("a/./b/../c", "a/b/c"),
        ("..", "unnamed"),
        ("a\u202etxt.exe", "atxt.exe"),
        ("x" * 5_000, "x" * 255),
        ("a\nb", "a b"),
    ],
)
def test_a_name_is_only_text_that_leads_nowhere(name: str, shown: str) -> None:
    assert shown_name(name) == shown


def test_names_in_utf_8_are_read_when_the_archive_does_not_say_so(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"Tuer.txt": b"vault"})
    path.write_bytes(path.read_bytes().replace(b"Tuer", "Tür".encode()))
    assert list(read_here(parse_zip, path).attachments) == ["Tür.txt"]


def test_links_and_devices_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in [("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("null", tarfile.CHRTYPE)]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    assert failure(parse_tar, tmp_path / "a.tar").code is ParseFailure.EMPTY
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/passwd")
    assert failure(parse_zip, tmp_path / "a.zip").code is ParseFailure.EMPTY


@pytest.mark.parametrize(("parse", "pack"), [(parse_zip, zipped), (parse_tar, tarred)], ids=["zip", "tar.gz"])
def test_what_inflates_without_bound_is_refused(
    tmp_path: Path, parse: Parser, pack: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    path = pack(tmp_path / "bomb", {"notes.txt": b"vault", "zeros.bin": bytes(100 << 20)})
    assert failure(parse, path).code is ParseFailure.TOO_LARGE


@pytest.mark.parametrize(("parse", "pack"), [(parse_zip, zipped), (parse_tar, tarred)], ids=["zip", "tar.gz"])
def test_too_many_entries_are_refused(
    tmp_path: Path, parse: Parser, pack: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    path = pack(tmp_path / "crowd", {f"{number}.txt": b"x" for number in range(2_001)})
    assert failure(parse, path).code is ParseFailure.TOO_LARGE


def test_a_size_that_is_understated_gains_nothing(tmp_path: Path) -> None:
    path = zipped(tmp_path / "liar.zip", {"zeros.bin": bytes(64 << 20)})
    path.write_bytes(path.read_bytes().replace(struct.pack("<L", 64 << 20), struct.pack("<L", 10)))
    assert failure(parse_zip, path).code is ParseFailure.CORRUPT


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "overlap.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("first.txt", b"vault" * 100)
        archive.writestr("second.txt", b"vault" * 100)
        archive.filelist[1].header_offset = 0
        archive.filelist[1].filename = archive.filelist[1].orig_filename = "first.txt"
    assert "overlap" in failure(parse_zip, path).message


@pytest.mark.parametrize(("parse", "pack"), [(parse_zip, zipped), (parse_tar, tarred)], ids=["zip", "tar.gz"])
def test_an_archive_in_two_others_is_not_opened(
    tmp_path: Path, parse: Parser, pack: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    path = pack(tmp_path / "deep", KEPT)
    assert read_here(parse, path, ParseOptions(depth=1)).attachments == KEPT
    assert failure(parse, path, ParseOptions(depth=2)).code is ParseFailure.LIMIT


def test_a_damaged_archive_is_corrupt(tmp_path: Path) -> None:
    path = tarred(tmp_path / "a.tar.gz", {"notes.txt": bytes(range(256)) * 100})
    path.write_bytes(path.read_bytes()[:200])
    assert failure(parse_tar, path).code is ParseFailure.CORRUPT
    path = zipped(tmp_path / "a.zip", {"notes.txt": bytes(range(256)) * 100}, compression=zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    assert failure(parse_zip, path).code is ParseFailure.CORRUPT


SECRET_ZIP = bytes.fromhex(
    "504b03040a0009000000660c775d214930ff110000000500000009001c006e6f7465732e74787455540900035098036b5098"
    "036b75780b00010400000000040000000060d61c868631e53ae5c62ea6f6763acd26504b0708214930ff1100000005000000"
    "504b01021e030a0009000000660c775d214930ff1100000005000000090018000000000001000000a481000000006e6f7465"
    "732e74787455540500035098036b75780b000104000000000400000000504b050600000000010001004f0000006400000000"
    "00"
)
"""Written by Info-ZIP with the password `opensesame`, since Python cannot encrypt one."""


def test_an_encrypted_zip_opens_with_its_password_alone(tmp_path: Path) -> None:
    path = tmp_path / "secret.zip"
    path.write_bytes(SECRET_ZIP)
    assert read_here(parse_zip, path, ParseOptions(password="opensesame")).attachments == {
        "notes.txt": b"vault"
    }
    assert "field `password`" in failure(parse_zip, path).message
    wrong = failure(parse_zip, path, ParseOptions(password="open"))
    assert wrong.code is ParseFailure.ENCRYPTED
    assert "does not open" in wrong.message


def test_a_zip_in_a_method_that_is_not_known_says_so(tmp_path: Path) -> None:
    path = zipped(tmp_path / "aes.zip", {"notes.txt": b"vault"}, compression=zipfile.ZIP_STORED)
    content = path.read_bytes()
    aes = struct.pack("<H", 99)
    path.write_bytes(
        content[:8]
        + aes
        + content[10:].replace(
            b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x00\x00" + aes
        )
    )
    assert "AES" in failure(parse_zip, path).message
