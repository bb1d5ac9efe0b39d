"""Passes /v1 on to our api and has texts that are too long for the model cut, as OGX expects of an embedding server.

OGX counts 800 tokens a chunk, by another tokenizer, and our api refuses what the model cannot read whole.
"""

import argparse
from collections.abc import AsyncIterator

import aiohttp
import orjson
from aiohttp import web

MOST_BYTES = 256 << 20
API = web.AppKey("api", str)
SESSION = web.AppKey("session", aiohttp.ClientSession)


async def pass_on(request: web.Request) -> web.Response:
    body = await request.read()
    if request.method == "POST":
        body = orjson.dumps({**orjson.loads(body), "truncate": True})
    headers = {"Authorization": request.headers.get("Authorization", ""), "Content-Type": "application/json"}
    url = request.app[API] + request.path
    async with request.app[SESSION].request(request.method, url, data=body, headers=headers) as reply:
        return web.Response(body=await reply.read(), status=reply.status, content_type=reply.content_type)


async def health(_: web.Request) -> web.Response:
    return web.Response()


async def _session(app: web.Application) -> AsyncIterator[None]:
    async with aiohttp.ClientSession() as app[SESSION]:
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--api", required=True, metavar="URL")
    options = parser.parse_args()
    app = web.Application(client_max_size=MOST_BYTES)
    app[API] = options.api
    app.cleanup_ctx.append(_session)
    app.router.add_get("/health", health)
    app.router.add_route("*", "/v1/{path:.*}", pass_on)
    web.run_app(app, host="127.0.0.1", port=options.port, print=None)


if __name__ == "__main__":
    main()
