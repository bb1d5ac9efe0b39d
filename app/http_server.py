"""Runs an ASGI application as a role's process."""

import time

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

DRAIN_S = 4
"""What running requests get to end in after SIGTERM; with what follows, a stop stays below 10 s."""


class StampingProtocol(HttpToolsProtocol):
    """Notes when a request came in, as `request.state.arrived_at` in monotonic seconds.

    In a burst a request waits for its handler's turn in the event loop; its deadline has begun all the same.
    """

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["arrived_at"] = time.monotonic()


def run_http(app: ASGIApp, host: str, port: int) -> None:
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=StampingProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    uvicorn.Server(config).run()
