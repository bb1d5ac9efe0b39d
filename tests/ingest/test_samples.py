"""The sample documents, as the product stores them: blobs whose names tell nothing."""

import json
import shutil
from pathlib import Path

import pytest

from ingest.media_types import detect
from ingest.sandbox import ParserPool
from tests.ingest.reading import read_as

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
QUESTIONS = json.loads((SAMPLES / "questions.json").read_bytes())


@pytest.fixture(scope="module")
async def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The parsed text of each sample by its name."""
    folder = tmp_path_factory.mktemp("blobs")
    parsed = {}
    async with ParserPool(1) as pool:
        for number, sample in enumerate(sorted(SAMPLES.iterdir())):
            if sample.name != "questions.json":
                blob = folder / f"blob-{number}"
                shutil.copy(sample, blob)
                document = await read_as(pool, blob, detect(blob, sample.name))
                parsed[sample.name] = " ".join(document.text.split())
    return parsed


@pytest.mark.parametrize(
    "asked", [each for each in QUESTIONS if each["file"]], ids=lambda asked: asked["question"]
)
async def test_the_quote_that_answers_a_sample_question_stands_in_the_parsed_text(
    texts: dict[str, str], asked: dict[str, str]
) -> None:
    assert " ".join(asked["quote"].split()) in texts[asked["file"]]


def test_there_are_enough_samples_in_enough_formats() -> None:
    samples = [each for each in SAMPLES.iterdir() if each.name != "questions.json"]
    assert len(samples) >= 12
    assert len({each.suffix for each in samples}) >= 6
