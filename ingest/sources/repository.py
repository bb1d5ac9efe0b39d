"""A git repository as a source, through the git program: the files of one commit, tagged by their content's hash."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from ingest.sources.entries import READ_BYTES, Entry, EntryChanged, Listing, SourceRefused, SourceUnavailable
from ingest.sources.faults import refused

FETCH_S = 600.0
LIST_S = 60.0
SILENCE_S = 60
"""A server that sends nothing for so many whole seconds is taken for dead."""
_LINK, _SUBMODULE = "120000", "160000"
_CREDENTIALS = ("username", "password")
_REFUSALS = ("Authentication failed", "could not read Username", "error: 403")
"""As git says it in English, which LC_ALL=C has it speak."""


class Repository:
    """A Source of the files at `ref` of the repository at `url`, kept in `folder` as a bare clone without history."""

    def __init__(self, url: str, ref: str, folder: Path, *, credentials: Mapping[str, str]) -> None:
        git = shutil.which("git", path=os.defpath)
        if git is None:
            raise SourceRefused("Sources of git+… need the git program where the worker runs: install git.")
        self._git = git
        self._url = url
        self._ref = ref or "HEAD"
        self._folder = folder
        self._credentials = credentials

    def listing(self) -> Listing:
        self._fetch()
        told = self._run("ls-tree", "-r", "-l", "-z", "--full-tree", "FETCH_HEAD", timeout_s=LIST_S)
        entries = [_entry(line) for line in told.decode("utf-8", "backslashreplace").split("\0") if line]
        return Listing(entries, [])

    def look(self, entry: Entry) -> Entry | None:
        return entry

    def read(self, entry: Entry) -> Iterator[bytes]:
        with subprocess.Popen(
            [*self._command, "cat-file", "blob", entry.address],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as reading:
            assert reading.stdout is not None
            try:
                while piece := reading.stdout.read(READ_BYTES):
                    yield piece
            except GeneratorExit:
                reading.kill()
                raise
            if reading.wait() != 0:
                raise EntryChanged(entry.path)

    def close(self) -> None:
        pass

    def _fetch(self) -> None:
        if not (self._folder / "HEAD").exists():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._run("init", "--quiet", "--bare", timeout_s=LIST_S)
        # Not followed to another host, asked for nothing, and no helper program of the repository's choice.
        self._run(
            "-c", "http.followRedirects=false", "-c", "protocol.allow=never",
            "-c", f"protocol.{self._url.partition('://')[0]}.allow=always",
            "-c", "http.lowSpeedLimit=1", "-c", f"http.lowSpeedTime={SILENCE_S}",
            "fetch", "--quiet", "--force", "--depth=1", "--no-tags", "--no-recurse-submodules",
            "--end-of-options", self._url, self._ref,
            timeout_s=FETCH_S,
        )  # fmt: skip

    @property
    def _command(self) -> list[str]:
        return [self._git, f"--git-dir={self._folder}"]

    @property
    def _environment(self) -> dict[str, str]:
        """Nothing of the worker's own. Credentials stand here, as a process's arguments are everybody's to read."""
        environment = {
            "PATH": os.defpath,
            "HOME": str(self._folder),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "true",
            "LC_ALL": "C",
        }
        given = {"safe.directory": "*", **self._credentials}
        environment["GIT_CONFIG_COUNT"] = str(len(given))
        for number, (key, value) in enumerate(given.items()):
            environment[f"GIT_CONFIG_KEY_{number}"] = key
            environment[f"GIT_CONFIG_VALUE_{number}"] = value
        return environment

    def _run(self, *arguments: str, timeout_s: float) -> bytes:
        try:
            done = subprocess.run(
                [*self._command, *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise SourceUnavailable(f"git did not answer within {timeout_s:.0f} s.") from error
        if done.returncode != 0:
            told = " ".join(done.stderr.decode("utf-8", "replace").split())
            if any(said in told for said in _REFUSALS):
                raise SourceUnavailable(f"git cannot read the repository: {refused(_CREDENTIALS)}")
            raise SourceUnavailable(f"git cannot read the repository: {told[:400]}")
        return done.stdout


def _entry(line: str) -> Entry:
    """Of a line of `git ls-tree -l -z`: mode, type, hash, size, then a tab and the path."""
    described, _, path = line.partition("\t")
    mode, _, blob, size = described.split()
    refusal = {_LINK: "It is a symbolic link, which is not followed.", _SUBMODULE: "It is a submodule."}.get(
        mode
    )
    return Entry(
        path=path,
        address=blob,
        tag=blob,
        size_bytes=int(size) if size.isdigit() else None,
        refusal=refusal,
    )
