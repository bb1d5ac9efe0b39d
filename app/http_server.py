"""Runs an ASGI application as a role's process."""

import uvicorn
from fastapi import FastAPI

DRAIN_S = 4
"""What running requests get to end in after SIGTERM; with what follows, a stop stays below 10 s."""


def run_http(app: FastAPI, host: str, port: int) -> None:
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    uvicorn.Server(config).run()
