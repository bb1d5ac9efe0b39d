"""Sealed secrets open for their owner alone."""

import pytest

from ingest.sealing import SealBroken, Sealer

SECRET = bytes(range(32))


def test_a_sealed_secret_opens_for_its_owner_and_cannot_be_read() -> None:
    sealed = Sealer(SECRET).seal("open sesame", owner="file-1")
    assert b"sesame" not in sealed
    assert Sealer(SECRET).open(sealed, owner="file-1") == "open sesame"
    assert Sealer(SECRET).seal("open sesame", owner="file-1") != sealed


@pytest.mark.parametrize(
    ("secret", "owner", "cut"), [(bytes(32), "file-1", None), (SECRET, "file-2", None), (SECRET, "file-1", 5)]
)
def test_it_opens_neither_under_another_secret_nor_elsewhere_nor_changed(
    secret: bytes, owner: str, cut: int | None
) -> None:
    sealed = Sealer(SECRET).seal("open sesame", owner="file-1")
    with pytest.raises(SealBroken, match="another data folder"):
        Sealer(secret).open(sealed[:cut], owner=owner)
