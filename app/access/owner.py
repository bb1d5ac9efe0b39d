"""Proof that a request comes from the server's own machine: who can read the server's secret is its owner."""

import hashlib
import hmac

OWNER_HEADER = "X-Strongroom-Owner"


def owner_proof(secret: bytes, body: bytes) -> str:
    """For the header, over the body that it comes with."""
    return hmac.new(secret, b"the owner sends\n" + body, hashlib.sha256).hexdigest()


def is_owner(secret: bytes, body: bytes, proof: str | None) -> bool:
    if proof is None:
        return False
    # As bytes: text that is not ASCII cannot be compared in constant time.
    return hmac.compare_digest(owner_proof(secret, body).encode(), proof.encode())
