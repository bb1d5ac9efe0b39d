"""Links that open a citation in a browser: signed for one quote, one key and a time, and good for nothing else."""

import base64
import hashlib
import hmac
from dataclasses import dataclass

import orjson


class LinkInvalid(Exception):
    """The link was changed, has expired, or what it showed is gone."""

    def __init__(self) -> None:
        super().__init__("This link has expired or what it showed has been deleted.")


@dataclass(frozen=True)
class CitedPlace:
    """What a link shows: the characters [start_char, end_char) of a document, as the key's holder may see it."""

    key_id: str
    collection_id: str
    file_id: str
    start_char: int
    end_char: int
    page: int | None


class LinkSigner:
    """`secret` is the server's; a purpose is mixed in, so that no other signature passes for a link."""

    def __init__(self, secret: bytes, public_url: str, *, valid_s: float) -> None:
        self._secret = hmac.new(secret, b"citation link", hashlib.sha256).digest()
        self._public_url = public_url
        self._valid_s = valid_s

    def sign(self, place: CitedPlace, *, now: float) -> str:
        payload = orjson.dumps(
            [
                place.key_id,
                place.collection_id,
                place.file_id,
                place.start_char,
                place.end_char,
                place.page,
                int(now + self._valid_s),
            ]
        )
        token = _encode(payload) + "." + _encode(self._signature(payload))
        anchor = f"#page={place.page}" if place.page else ""
        return f"{self._public_url}/citations/{token}{anchor}"

    def read(self, token: str, *, now: float) -> CitedPlace:
        """Raises LinkInvalid."""
        try:
            encoded, signature = token.split(".")
            payload = _decode(encoded)
            genuine = hmac.compare_digest(_decode(signature), self._signature(payload))
        except ValueError as error:
            raise LinkInvalid from error
        if not genuine:
            raise LinkInvalid
        key_id, collection_id, file_id, start_char, end_char, page, expires_at = orjson.loads(payload)
        if now > expires_at:
            raise LinkInvalid
        return CitedPlace(key_id, collection_id, file_id, start_char, end_char, page)

    def _signature(self, payload: bytes) -> bytes:
        return hmac.new(self._secret, payload, hashlib.sha256).digest()[:16]


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
