"""Sources that are no local folder: fsspec's own memory, a real HTTP server on loopback, a real git repository."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ingest.sources.addresses import open_source, read_address
from ingest.sources.entries import Source, SourceRefused, SourceUnavailable
from ingest.sources.faults import Faults
from ingest.sources.remote import RemoteFolder
from retrieval.database import Database
from retrieval.scope import Scope
from tests.ingest.sources.watched import Watched

VAULT = "The vault of the archive opens at nine."
KEY = "The key to the cellar hangs in the hall."


def opened(url: str, cache: Path, **options: str) -> Source:
    return open_source(read_address(url, options), cache=cache)


# fsspec's memory


class Bucket(MemoryFileSystem):  # type: ignore[misc]
    """Of one test: the library's own is shared by the process."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.store: dict[str, Any] = {}
        self.pseudo_dirs = [""]
        self.opened: list[str] = []
        self.broken = False
        self.unreadable = False
        self.has_expired = False

    def info(self, path: str, **kwargs: Any) -> Any:
        if self.has_expired and path == "/bucket/letters":
            raise PermissionError("ExpiredToken")
        return super().info(path, **kwargs)

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self.opened.append(path)
        if self.unreadable:
            raise PermissionError("AccessDenied")
        return super()._open(path, *args, **kwargs)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        if self.broken and path.endswith("deep"):
            raise OSError("SlowDown for key hunter22 at http://bucket?sig=hunter23")
        return super().ls(path, detail=detail, **kwargs)


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def watched_bucket(bucket: Bucket, database: Database, scope: Scope, tmp_path: Path) -> Watched:
    return Watched(
        database,
        scope,
        tmp_path,
        RemoteFolder(bucket, "/bucket/letters", bucket="/bucket", faults=Faults(["hunter22"])),
    )


async def test_a_bucket_is_followed_by_its_tags(watched_bucket: Watched, bucket: Bucket) -> None:
    bucket.pipe_file("/bucket/letters/a.txt", VAULT.encode())
    bucket.pipe_file("/bucket/letters/deep/b.txt", KEY.encode())
    bucket.pipe_file("/bucket/other/c.txt", b"Not ours.")
    assert await watched_bucket.swept() == {"added": 2}
    assert watched_bucket.answers() == {"a.txt": VAULT, "deep/b.txt": KEY}
    bucket.opened.clear()
    assert await watched_bucket.swept() == {"unchanged": 2}
    assert bucket.opened == []
    bucket.mv("/bucket/letters/a.txt", "/bucket/letters/deep/a.txt")
    assert await watched_bucket.swept() == {"renamed": 1, "unchanged": 1}
    bucket.rm("/bucket/letters/deep/b.txt")
    assert await watched_bucket.swept() == {"removed": 1, "unchanged": 1}
    assert watched_bucket.answers() == {"deep/a.txt": VAULT}


async def test_a_listing_that_fails_midway_removes_nothing_and_tells_no_secret(
    watched_bucket: Watched, bucket: Bucket
) -> None:
    bucket.pipe_file("/bucket/letters/a.txt", VAULT.encode())
    bucket.pipe_file("/bucket/letters/deep/b.txt", KEY.encode())
    await watched_bucket.swept()
    bucket.broken = True
    with pytest.raises(SourceUnavailable, match="SlowDown") as failed:
        watched_bucket.sweep()
    assert "hunter2" not in str(failed.value)
    assert len(watched_bucket.answers()) == 2


async def test_names_that_mean_something_in_a_url_are_names_like_others(
    watched_bucket: Watched, bucket: Bucket
) -> None:
    for name in ("a#1.txt", "why?.txt", "50%.txt", "%2e%2e.txt", "a b.txt"):
        bucket.pipe_file(f"/bucket/letters/{name}", f"{VAULT} {name}".encode())
    assert await watched_bucket.swept() == {"added": 5}
    assert watched_bucket.answers()["why?.txt"] == f"{VAULT} why?.txt"


async def test_a_bucket_whose_folder_is_empty_removes_nothing_unless_that_is_right(
    watched_bucket: Watched, bucket: Bucket
) -> None:
    bucket.mkdir("/bucket")
    bucket.pipe_file("/bucket/letters/a.txt", VAULT.encode())
    await watched_bucket.swept()
    bucket.rm("/bucket/letters", recursive=True)
    assert "--allow-empty" in (watched_bucket.sweep().note or "")
    assert watched_bucket.answers() == {"a.txt": VAULT}
    assert await watched_bucket.swept(may_empty=True) == {"removed": 1}
    bucket.rm("/bucket", recursive=True)
    with pytest.raises(SourceUnavailable, match="cannot be listed"):
        watched_bucket.sweep()


async def test_a_file_that_may_not_be_read_is_refused_but_expired_credentials_refuse_none(
    watched_bucket: Watched, bucket: Bucket
) -> None:
    bucket.pipe_file("/bucket/letters/a.txt", VAULT.encode())
    await watched_bucket.swept()
    bucket.pipe_file("/bucket/letters/a.txt", KEY.encode())
    bucket.unreadable = True
    bucket.has_expired = True
    assert await watched_bucket.swept() == {"failed": 1}
    assert watched_bucket.answers() == {"a.txt": VAULT}
    bucket.has_expired = False
    assert await watched_bucket.swept() == {"refused": 1, "removed": 1}
    assert "may not read it" in watched_bucket.refusals()["a.txt"]


# HTTP


class Site:
    """A folder as Python's own server shows it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.requests: list[str] = []
        site = self

        class Server(SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                site.requests.append(f"{self.command} {self.path}")

            def do_GET(self) -> None:
                if self.path.startswith("/moved"):
                    self.send_response(302)
                    self.send_header("Location", "http://127.0.0.2:9/latest/meta-data/")
                    self.end_headers()
                else:
                    super().do_GET()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder)))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "site")
    yield site
    site.close()


async def test_an_http_listing_is_followed_by_time_and_size(
    site: Site, database: Database, scope: Scope, tmp_path: Path
) -> None:
    (site.folder / "letters").mkdir()
    (site.folder / "empty").mkdir()
    (site.folder / "letters" / "a b.txt").write_text(VAULT)
    (site.folder / "c.txt").write_text(KEY)
    (site.folder / "links.html").write_text('<p>The vault. <a href="http://127.0.0.2:9/x.txt">Elsewhere</a>')
    watched = Watched(database, scope, tmp_path, opened(site.url, tmp_path))
    assert await watched.swept(include=["*.txt"]) == {"added": 2}
    assert watched.answers() == {"letters/a b.txt": VAULT, "c.txt": KEY}
    site.requests.clear()
    assert await watched.swept(include=["*.txt"]) == {"unchanged": 2}
    assert not [request for request in site.requests if request.startswith("GET") and ".txt" in request]
    (site.folder / "c.txt").unlink()
    assert await watched.swept(include=["*.txt"]) == {"removed": 1, "unchanged": 1}


def test_a_redirect_to_another_host_is_not_followed(site: Site, tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable):
        opened(site.url + "moved/", tmp_path).listing()


def test_a_site_that_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable):
        opened("http://127.0.0.1:9/", tmp_path).listing()


# git


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    return folder


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "change")


async def test_a_repository_is_followed_by_the_hashes_of_its_files(
    repository: Path, database: Database, scope: Scope, tmp_path: Path
) -> None:
    (repository / "docs").mkdir()
    (repository / "docs" / "a.md").write_text(VAULT)
    (repository / "é.txt").write_text(KEY)
    (repository / "link.txt").symlink_to("/etc/passwd")
    commit(repository)
    source = opened(f"git+file://{repository}", tmp_path / "cache")
    watched = Watched(database, scope, tmp_path, source)
    assert await watched.swept() == {"added": 2, "refused": 1}
    assert watched.answers() == {"docs/a.md": VAULT, "é.txt": KEY}
    (repository / "docs" / "a.md").rename(repository / "b.md")
    (repository / "é.txt").unlink()
    (repository / "uncommitted.txt").write_text(KEY)
    git(repository, "add", "b.md", "docs", "é.txt")
    git(repository, "commit", "--quiet", "--message", "moved")
    assert await watched.swept() == {"renamed": 1, "removed": 1, "refused": 1}
    assert watched.answers() == {"b.md": VAULT}


def test_another_branch_is_named_after_the_hash_sign(repository: Path, tmp_path: Path) -> None:
    (repository / "a.txt").write_text(VAULT)
    commit(repository)
    git(repository, "checkout", "--quiet", "-b", "drafts/x")
    (repository / "b.txt").write_text(KEY)
    commit(repository)
    git(repository, "checkout", "--quiet", "main")
    paths = {
        ref: [
            entry.path for entry in opened(f"git+file://{repository}{ref}", tmp_path / ref).listing().entries
        ]
        for ref in ("", "#drafts/x")
    }
    assert paths == {"": ["a.txt"], "#drafts/x": ["a.txt", "b.txt"]}
    with pytest.raises(SourceUnavailable, match="nowhere"):
        opened(f"git+file://{repository}#nowhere", tmp_path / "c").listing()


@pytest.mark.parametrize("ref", ["--upload-pack=touch /tmp/x", "-c"])
def test_a_ref_is_never_an_option_of_git(repository: Path, tmp_path: Path, ref: str) -> None:
    (repository / "a.txt").write_text(VAULT)
    commit(repository)
    with pytest.raises((SourceUnavailable, SourceRefused)):
        opened(f"git+file://{repository}#{ref}", tmp_path / "c").listing()
