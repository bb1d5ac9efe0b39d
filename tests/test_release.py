"""What would be released is whole. `make release-check` also installs it, and asks it a first question."""

import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.release import Built, build, missing_files, version_errors


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("release"))


def test_the_wheel_has_all_that_the_packages_have_and_nothing_else(built: Built) -> None:
    assert missing_files(built) == set()
    assert {name.partition("/")[0] for name in built.files()} == {"app", "ingest", "retrieval", "serving"}


def test_a_file_that_is_left_out_is_told(built: Built, tmp_path: Path) -> None:
    short = tmp_path / built.wheel.name
    with zipfile.ZipFile(built.wheel) as whole, zipfile.ZipFile(short, "w") as cut:
        for name in whole.namelist():
            if name != "app/storage/migrations/script.py.mako":
                cut.writestr(name, whole.read(name))
    assert missing_files(Built(short, built.source)) == {"app/storage/migrations/script.py.mako"}


def test_the_version_is_the_same_everywhere(built: Built) -> None:
    assert version_errors(built.version()) == []
    assert version_errors("9.9.9") != []


def test_the_source_archive_holds_no_document_key_or_model(built: Built) -> None:
    with tarfile.open(built.source) as archive:
        rooms = {Path(name).parts[1] for name in archive.getnames() if len(Path(name).parts) > 2}
    # Packaging takes tests along that it finds.
    assert rooms - {"strongroom.egg-info", "tests"} == {"app", "ingest", "retrieval", "serving"}
