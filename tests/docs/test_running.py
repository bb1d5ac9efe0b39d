"""What the READMEs tell people to type works: in a shell, against a stack with the sample documents."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.docs.commands import AS_RUN, NOT_RUN, tried_elsewhere
from tests.docs.documented import blocks, commands
from tests.stack import ENGINE_PYTHON, MODELS, ROOT, Stack, eventually

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]

SAMPLES = ROOT / "data" / "samples"
MANUAL = "icehouse-vault-manual.pdf"
PORT_IN_THE_PAGES = "127.0.0.1:8080"


class Desk:
    """A folder where somebody types, and the stack that runs there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment: dict[str, str] = {}
        self.stack = Stack(folder / "data", samples=SAMPLES)

    def open(self) -> None:
        """Puts there what the commands name, and starts the stack."""
        folder = self.folder
        self.stack.start()
        for name, there in (("samples", SAMPLES), ("models", MODELS)):
            (folder / "data" / name).symlink_to(there)
        (folder / "folder").mkdir()
        shutil.copy(SAMPLES / MANUAL, folder / "folder")
        asked = json.loads((SAMPLES / "questions.json").read_bytes())
        lines = [
            {
                "question": each["question"],
                "answers": each["answer_contains"],
                "answerable": bool(each["file"]),
            }
            for each in asked
        ]
        lines += [
            {"question": f"Who won the {year} football championship?", "answerable": False}
            for year in range(1980, 2010)
        ]
        write_lines(folder / "questions.jsonl", lines)
        write_lines(folder / "few.jsonl", lines[:2])
        write_beir(folder / "beir")
        key = {"Authorization": f"Bearer {self.stack.key}"}
        made = httpx.post(f"{self.stack.url}/v1/keys", headers=key, json={"name": "docs", "role": "reader"})
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # noqa: TID251 - the child's
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "STRONGROOM_ENGINE__PYTHON": str(ENGINE_PYTHON),
            "STRONGROOM_SERVER__PORT": str(self.stack.port),
            "STRONGROOM_KEY": self.stack.key,
            "URL": self.stack.url,
            "ID": made.json()["id"],
        }
        eventually(self._has_samples, within_s=120)

    def run(self, *command: str) -> str:
        """What it prints. Fails when it does."""
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def _has_samples(self) -> bool:
        return "Ask with curl" in self.stack.log.read_text()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    if not ENGINE_PYTHON.exists() or not (MODELS / "SmolLM2-135M-Instruct").is_dir():
        pytest.skip("The engine's environment or the demo models are missing: run `make setup`.")
    desk = Desk(tmp_path_factory.mktemp("docs"))
    try:
        desk.open()
        yield desk
    finally:
        desk.stack.stop()


def test_the_blocks_of_python_are_one_program_that_answers(desk: Desk) -> None:
    """The later ones go on from the first."""
    others = [block for block in blocks() if not tried_elsewhere(block)]
    assert {block.language for block in others} == {"python"}
    program = "\n".join(block.text for block in others)
    assert PORT_IN_THE_PAGES in program
    told = desk.run("python", "-c", program.replace(PORT_IN_THE_PAGES, f"127.0.0.1:{desk.stack.port}"))
    assert "21" in told
    assert f"{MANUAL}, page 2" in told
    assert f"127.0.0.1:{desk.stack.port}/citations/" in told


@pytest.mark.parametrize("command", [each for each in commands() if each not in NOT_RUN])
def test_a_command_does_it(desk: Desk, command: str) -> None:
    # As a person's shell: a part of a pipe that fails is a failure.
    desk.run("bash", "-e", "-o", "pipefail", "-c", AS_RUN.get(command, command))


def write_lines(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_beir(folder: Path) -> None:
    """A test collection of two texts."""
    (folder / "qrels").mkdir(parents=True)
    write_lines(
        folder / "corpus.jsonl",
        [
            {"_id": "vault", "title": "Vault", "text": "The seed vault is cold."},
            {"_id": "ferry", "title": "Ferry", "text": "The ferry leaves at dawn."},
        ],
    )
    write_lines(folder / "queries.jsonl", [{"_id": "q", "text": "How cold is the seed vault?"}])
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tvault\t1\n")
