"""An SMB share as fsspec shows it, over a connection of its own and to the one server."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from stat import S_ISDIR, S_ISREG
from typing import Any

import smbclient
from fsspec.implementations.smb import SMBFileSystem
from smbprotocol.file_info import FileAttributes

from ingest.sources.entries import SourceUnavailable

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Share(SMBFileSystem):  # type: ignore[misc]
    """fsspec's own has one connection a server for the whole process, whose first login then reads for everybody.

    A folder's files are told with the listing, not asked for one by one.
    """

    def _connect(self) -> None:
        self._connections = _OneServer(f"{self.host.lower()}:{self._port}")
        smbclient.register_session(
            self.host,
            username=self.username,
            password=self.password,
            port=self._port,
            connection_timeout=self.timeout,
            connection_cache=self._connections,
        )

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Mapping[str, Any]]:  # noqa: ARG002
        told = smbclient.scandir(self._unc(path), **self._how)
        return [_listed(f"{path.rstrip('/')}/{each.name}", each.smb_info) for each in told]

    def info(self, path: str, **_: Any) -> Mapping[str, Any]:
        found = smbclient.stat(self._unc(path), follow_symlinks=False, **self._how)
        kind = "directory" if S_ISDIR(found.st_mode) else "file" if S_ISREG(found.st_mode) else "link"
        return {"name": path, "type": kind, "size": found.st_size, "mtime": found.st_mtime_ns // 1000 / 1e6}

    def close(self) -> None:
        smbclient.reset_connection_cache(fail_on_error=False, connection_cache=self._connections)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return smbclient.open_file(self._unc(path), mode, share_access="rwd", **self._how)

    def _unc(self, path: str) -> str:
        return f"\\\\{self.host}\\" + path.strip("/").replace("/", "\\")

    @property
    def _how(self) -> Mapping[str, Any]:
        return {
            "username": self.username,
            "password": self.password,
            "port": self._port,
            "connection_timeout": self.timeout,
            "connection_cache": self._connections,
        }


class _OneServer(dict[str, Any]):
    """Connections by `host:port`. A share may refer to another server (DFS), which would get the credentials too."""

    def __init__(self, server: str) -> None:
        super().__init__()
        self._server = server

    def get(self, key: str, default: Any = None) -> Any:
        """Asked by the library before it connects."""
        if key != self._server:
            raise SourceUnavailable(f"The share is on another server, {key}, which is not followed.")
        return super().get(key, default)


def _listed(path: str, told: Any) -> Mapping[str, Any]:
    attributes = told.file_attributes
    if attributes & FileAttributes.FILE_ATTRIBUTE_REPARSE_POINT:
        kind = "link"
    else:
        kind = "directory" if attributes & FileAttributes.FILE_ATTRIBUTE_DIRECTORY else "file"
    # To the microsecond below, as `info` tells it: the two are compared.
    changed_at = (told.last_write_time - _EPOCH) // timedelta(microseconds=1) / 1e6
    return {"name": path, "type": kind, "size": told.end_of_file, "mtime": changed_at}
