"""Seals small secrets, such as a file's password or a bucket's key, so that a copied database does not tell them."""

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

NONCE_BYTES = 12


class SealBroken(Exception):
    """It was sealed under another server secret, or changed since."""

    def __init__(self) -> None:
        super().__init__(
            "A stored secret cannot be opened: it was sealed under another keys/server.secret. Give it again."
        )


class Sealer:
    """AES-256-GCM under a key that is made from the server's secret."""

    def __init__(self, server_secret: bytes) -> None:
        key = HKDF(SHA256(), length=32, salt=None, info=b"strongroom sealed secrets").derive(server_secret)
        self._cipher = AESGCM(key)

    def seal(self, text: str, *, owner: str) -> bytes:
        """`owner` is the id of what the secret belongs to: moved to another row, it does not open."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, text.encode(), owner.encode())

    def open(self, sealed: bytes, *, owner: str) -> str:
        """Raises SealBroken."""
        try:
            opened = self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], owner.encode())
        except (InvalidTag, ValueError) as error:
            raise SealBroken from error
        return opened.decode()
