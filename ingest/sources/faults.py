"""What a source's client library raised, in words that name what to change and keep what is secret."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_REFUSED = (401, 403)
_REFUSALS = frozenset({
    "AuthenticationException", "BadAuthenticationType",  # paramiko
    "LogonFailure", "SMBAuthenticationError", "AccessDenied",  # smbprotocol
    "ClientAuthenticationError",  # Azure
    "RefreshError",  # Google
})  # fmt: skip
"""By name: the packages are extras, and may not be installed."""
_LEAST_SECRET_CHARS = 4
_MOST_CHARS = 500


@dataclass(frozen=True)
class Faults:
    """Of one source."""

    secrets: Sequence[str] = ()
    """Kept out of what is told."""
    credentials: Sequence[str] = ()
    """Names of the options that say who asks."""

    def tell(self, what: str, error: BaseException) -> str:
        """`what` is what did not work, without a full stop."""
        if is_refusal(error):
            return f"{what}: {refused(self.credentials)}"
        message = " ".join(f"{type(error).__name__}: {error}".split())
        for secret in self.secrets:
            if len(secret) >= _LEAST_SECRET_CHARS:
                message = message.replace(secret, "…")
        # A query may be signed, and then is a secret itself.
        message = re.sub(r"\?[^\s'\"]+", "?…", message)
        return f"{what}: {message}"[:_MOST_CHARS]


def refused(credentials: Sequence[str]) -> str:
    names = ", ".join(sorted(credentials)) or "the url"
    return (
        f"the server refuses who asks. Change {names} with `strongroom sources options ID --options FILE`, "
        "or let the server's owner allow it."
    )


def is_refusal(error: BaseException) -> bool:
    """Whether the server did answer, and said no to the credentials."""
    return any(
        isinstance(each, PermissionError) or type(each).__name__ in _REFUSALS or _status(each) in _REFUSED
        for each in _with_causes(error)
    )


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> object:
    """HTTP's, wherever a client library keeps it."""
    for name in ("status", "status_code", "code"):
        told = getattr(error, name, None)
        if isinstance(told, int):
            return told
    return getattr(getattr(error, "response", None), "status_code", None)
