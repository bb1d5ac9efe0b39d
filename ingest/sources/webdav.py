"""A WebDAV folder as fsspec shows it, whatever its files are called."""

from typing import Any
from urllib.parse import quote

from httpx import URL
from webdav4.client import Client
from webdav4.fsspec import WebdavFileSystem


class WebDav(WebdavFileSystem):  # type: ignore[misc]
    """webdav4's own takes a name such as `10% #1.txt` for a url that is written out already."""

    def __init__(self, base_url: str, **how: Any) -> None:
        super().__init__(base_url, client=_Client(base_url, **how))

    def close(self) -> None:
        self.client.http.close()


class _Client(Client):  # type: ignore[misc]
    def join_url(self, path: str, add_trailing_slash: bool = False) -> URL:
        joined = f"{str(self.base_url).rstrip('/')}/{quote(path.strip('/'))}".rstrip("/")
        return URL(f"{joined}/" if add_trailing_slash else joined)
