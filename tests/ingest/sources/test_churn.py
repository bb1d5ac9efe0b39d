"""Whatever happens in a folder, once it is quiet the collection is as the folder (F17)."""

import random

import pytest

from tests.ingest.sources.watched import Watched

pytestmark = pytest.mark.slow

FILES = 1_000
ROUNDS = 2
CHANGES = 250


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_a_thousand_files_in_random_churn_end_as_the_folder(watched: Watched) -> None:
    dice = random.Random(17)
    written = 0

    def text() -> str:
        nonlocal written
        written += 1
        # Now and then the same text again, so that contents have several paths.
        return f"The vault opens at nine on day {written if dice.random() < 0.9 else dice.randrange(20)}."

    def new_path() -> str:
        return f"{dice.randrange(8)}/{dice.randrange(5)}/{dice.randrange(4 * FILES)}.txt"

    for _ in range(FILES):
        watched.write(new_path(), text())
    await watched.swept()
    assert watched.answers() == watched.on_disk()
    for _ in range(ROUNDS):
        for _ in range(CHANGES):
            paths = sorted(watched.on_disk_paths())
            path = watched.root / dice.choice(paths)
            target = watched.root / (dice.choice(paths) if dice.random() < 0.3 else new_path())
            match dice.randrange(5):
                case 0:
                    watched.write(new_path(), text())
                case 1:
                    path.write_text(text())
                case 2:
                    path.unlink()
                case 3 if target != path:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.rename(target)
                case _:
                    path.touch()
        # Twice without the worker in between: new versions stand before old ones that still answer.
        watched.sweep()
        watched.write(dice.choice(sorted(watched.on_disk_paths())), text())
        await watched.swept()
        assert watched.answers() == watched.on_disk()
        assert set(watched.files_by_path()) == watched.on_disk_paths()
        assert set(watched.entries()) == watched.on_disk_paths()
    embedded = len(watched.stack.embedder.calls)
    assert set(await watched.swept()) == {"unchanged"}
    assert len(watched.stack.embedder.calls) == embedded
    assert watched.blob_count() == len(set(watched.on_disk().values()))
