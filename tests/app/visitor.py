"""A visitor of the console, without a browser."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import httpx
from fastapi import FastAPI


class HasApp(Protocol):
    @property
    def app(self) -> FastAPI: ...


@asynccontextmanager
async def visiting(api: HasApp, key: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client that is signed in with a cookie, and sends the token of the pages."""
    transport = httpx.ASGITransport(api.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://strongroom") as client:
        reply = await client.post("/console/sign-in", data={"key": key})
        assert reply.status_code == 303
        await take_token(client)
        yield client


async def take_token(client: httpx.AsyncClient) -> None:
    """Of the page that it is shown, for what it changes from now on."""
    page = await client.get("/console", headers={"accept": "text/html"})
    told = re.search(r'name="csrf-token" content="(\w+)"', page.text)
    assert told is not None
    client.headers["X-CSRF-Token"] = told[1]


def copy_of(client: httpx.AsyncClient, api: HasApp) -> httpx.AsyncClient:
    """Another browser, into which somebody put all that this one holds."""
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(api.app),
        base_url="http://strongroom",
        cookies=client.cookies,
        headers=client.headers,
    )
