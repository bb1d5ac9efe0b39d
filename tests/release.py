"""The release check: builds what is released, and asks it a first question where nothing else of this tree is.

The wheel is made of the source archive, so that this one is whole as well, and is installed into an environment of its
own, outside of this tree. Models and the engine's environment are this tree's, by settings.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path

from tests.stack import ENGINE_PYTHON, MODELS, ROOT, eventually, free_port

PACKAGES = ("app", "ingest", "retrieval", "serving")
VENDOR = "app/pages/vendor"
"""What `make console` fetches: released, and not in git."""
SHOTS = "app/pages/shots/"
QUESTION = "At what temperature does the Icehouse keep the seed vault?"
MANUAL = ROOT / "data" / "samples" / "icehouse-vault-manual.pdf"
START_S = 600.0
"""An engine's first start takes a minute, and several where others have the cores."""


@dataclass(frozen=True)
class Built:
    """What a release consists of."""

    wheel: Path
    source: Path

    def version(self) -> str:
        with zipfile.ZipFile(self.wheel) as wheel:
            (metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
            return str(BytesParser().parsebytes(wheel.read(metadata))["Version"])

    def files(self) -> set[str]:
        """Of the wheel, without what packaging adds."""
        with zipfile.ZipFile(self.wheel) as wheel:
            return {name for name in wheel.namelist() if ".dist-info/" not in name}


def build(folder: Path) -> Built:
    """From the files that git knows, in a copy: a build leaves things behind."""
    tree = folder / "tree"
    for name in (*_tracked(), *_fetched()):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    out = folder / "dist"
    out.mkdir()
    _run(
        sys.executable,
        "-c",
        f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})",
        at=tree,
    )
    (source,) = out.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    _run(*pip, "--wheel-dir", str(out), str(unpacked), at=folder)
    (wheel,) = out.glob("*.whl")
    return Built(wheel, source)


def missing_files(built: Built) -> set[str]:
    """What belongs to the packages and is not in the wheel: pages, migrations, dashboards, lists of pins."""
    wanted = {name for name in (*_tracked(), *_fetched()) if name.partition("/")[0] in PACKAGES}
    for_readers = {name for name in wanted if name.endswith("README.md") or name.startswith(SHOTS)}
    return wanted - for_readers - built.files()


def version_errors(version: str) -> list[str]:
    """Where another version stands than the one that is built."""
    told = {
        "pyproject.toml": tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"],
        "CHANGELOG.md": re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0],
    }
    tags = set(re.findall(r"image: strongroom[\w-]*:(\S+)", (ROOT / "docker-compose.yml").read_text()))
    told |= {f"docker-compose.yml ({tag})": tag for tag in tags}
    return [
        f"{place} tells of {other}, built is {version}" for place, other in told.items() if other != version
    ]


def answer_a_first_question(built: Built, folder: Path) -> str:
    """Installed in an environment of its own: from the start to an answer, and a check of all that is stored."""
    folder.mkdir()
    begun = time.monotonic()
    environment = folder / "venv"
    _run(sys.executable, "-m", "venv", str(environment), at=folder)
    programs = environment / "bin"
    pip = [str(programs / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    pip += ["--progress-bar", "off", "-c", str(ROOT / "constraints.txt")]
    _run(*pip, "torch", at=folder)
    _run(*pip, str(built.wheel), at=folder)
    _run(str(programs / "python"), "-m", "pip", "check", at=folder)
    settings = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        "STRONGROOM_SERVER__PORT": str(free_port()),
        "STRONGROOM_MODELS__FOLDER": str(MODELS),
        "STRONGROOM_ENGINE__PYTHON": str(ENGINE_PYTHON),
    }
    print(f"installed in {time.monotonic() - begun:.0f} s")
    begun = time.monotonic()
    log = folder / "log"
    with log.open("wb") as output:
        running = subprocess.Popen(
            [programs / "strongroom", "serve"], cwd=folder, env=settings, stdout=output, stderr=output
        )
    try:
        _wait_ready(running, log)
        _run("strongroom", "add", str(MANUAL), "--collection", "manuals", at=folder, env=settings)
        told = _run("strongroom", "ask", QUESTION, "--collection", "manuals", at=folder, env=settings)
        print(f"answered {time.monotonic() - begun:.0f} s after the start")
        _run("strongroom", "verify", at=folder, env=settings)
    finally:
        running.terminate()
        running.wait(30)
    return told


def _wait_ready(running: subprocess.Popen[bytes], log: Path) -> None:
    try:
        eventually(
            lambda: running.poll() is not None or "Strongroom is ready" in log.read_text(), within_s=START_S
        )
        assert running.poll() is None, "it ended"
    except AssertionError as error:
        sys.exit(f"The start failed: {error}\n{log.read_text()[-3000:]}")


def _tracked() -> list[str]:
    return _run("git", "ls-files", at=ROOT).split()


def _fetched() -> list[str]:
    return [str(path.relative_to(ROOT)) for path in (ROOT / VENDOR).glob("*")]


def _run(*command: str, at: Path, env: dict[str, str] | None = None) -> str:
    """What it prints. Fails when it does."""
    done = subprocess.run(
        command,
        cwd=at,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="strongroom-release-") as folder:
        built = build(Path(folder))
        version = built.version()
        errors = version_errors(version)
        errors += [f"{name} is not in the wheel" for name in sorted(missing_files(built))]
        if not _fetched():
            errors.append(f"{VENDOR} is empty: `make console` fetches the console's scripts")
        if errors:
            sys.exit("\n".join(errors))
        print(f"{built.wheel.name}: {len(built.files())} files; installing it")
        told = answer_a_first_question(built, Path(folder) / "elsewhere")
        if "21" not in told or MANUAL.name not in told:
            sys.exit(f"The first question was answered without its citation:\n{told}")
        print(told)
        print(f"strongroom {version} can be released.")


if __name__ == "__main__":
    main()
