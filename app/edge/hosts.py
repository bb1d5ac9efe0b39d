"""By which names this server may be called: a page elsewhere can have its own name lead a browser to this machine."""

import ipaddress
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import INVALID, WrongHost, error_body, reply
from app.settings import LOOPBACK, Settings

ANY = "*"


class KnownHosts:
    """ASGI middleware: 421 for a request to a name that somebody on the internet could own and that nobody listed.

    Addresses and names without a dot are nobody's there. Links are made of `server.public_url`, never of this header.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._own = own_names(settings) | settings.server.host_names
        self._known: set[bytes] = set()
        """Of which it was found out."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_known(scope):
            error = WrongHost()
            body = error_body(str(error), INVALID, code="wrong_host")
            await reply(421, body)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1:
            return False
        if hosts[0] in self._known:
            return True
        name = name_in("http://" + hosts[0].decode("latin-1"))
        if name is None or not (ANY in self._own or name in self._own or _is_local(name)):
            return False
        if len(self._known) < 100:
            self._known.add(hosts[0])
        return True


def own_names(settings: Settings) -> frozenset[str]:
    """Of this machine, and of the address that the server listens on or is reached by."""
    public = urlsplit(settings.public_url).hostname
    return LOOPBACK | {settings.server.host.lower()} | ({public} if public else frozenset())


def name_in(url: str) -> str | None:
    """The host of an address that is nothing but scheme, host and port; None for any other."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or parts.username is not None:
        return None
    if parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname


def _is_local(name: str) -> bool:
    if "." not in name and ":" not in name:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
