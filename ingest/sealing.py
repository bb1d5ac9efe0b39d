"""Seals small secrets, such as a file's password or a bucket's key, so that a copied database does not tell them."""

from retrieval.data_keys import WrongKey, decrypt, derived, encrypt


class SealBroken(Exception):
    """It was sealed under another root key, or changed since."""

    def __init__(self) -> None:
        super().__init__(
            "A stored secret cannot be opened: it was sealed under the keys of another data folder. Give it again."
        )


class Sealer:
    """Encrypts under a key that is made from the root key."""

    def __init__(self, root: bytes) -> None:
        self._key = derived(root, "sealed secrets")

    def seal(self, text: str, *, owner: str) -> bytes:
        """`owner` is the id of what the secret belongs to: moved to another row, it does not open."""
        return encrypt(self._key, text.encode(), owner=owner)

    def open(self, sealed: bytes, *, owner: str) -> str:
        """Raises SealBroken."""
        try:
            return decrypt(self._key, sealed, owner=owner).decode()
        except WrongKey as error:
            raise SealBroken from error
