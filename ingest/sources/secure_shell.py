"""A folder behind SSH as fsspec shows it, on a server that is known by its key."""

from base64 import b64decode
from itertools import pairwise
from stat import S_ISREG
from typing import Any

import paramiko
from fsspec.implementations.sftp import SFTPFileSystem

from ingest.sources.entries import SourceRefused

SSH_PORT = 22


class KnownHost(SFTPFileSystem):  # type: ignore[misc]
    """fsspec's own trusts whoever answers first: they would get the password."""

    def __init__(
        self, host: str, *, port: int, host_key: paramiko.PKey, silence_s: float, **login: Any
    ) -> None:
        """`silence_s` is for how long a server may say nothing."""
        self._host_key = host_key
        self._silence_s = silence_s
        super().__init__(host, port=port, **login)

    def _connect(self) -> None:
        self.client = paramiko.SSHClient()
        self.client.set_missing_host_key_policy(paramiko.RejectPolicy())
        port = self.ssh_kwargs["port"]
        name = self.host if port == SSH_PORT else f"[{self.host}]:{port}"
        self.client.get_host_keys().add(name, self._host_key.get_name(), self._host_key)
        try:
            self.client.connect(self.host, **self.ssh_kwargs)
            self.ftp = self.client.open_sftp()
        except paramiko.BadHostKeyException as error:
            self.client.close()
            raise SourceRefused(
                f"options: host_key is not the server's, which has {error.key.get_name()} "
                f"{error.key.get_base64()}. Change it if that is right.",
                param="options",
            ) from error
        except BaseException:
            self.client.close()
            raise
        self.ftp.get_channel().settimeout(self._silence_s)

    def _decode_stat(self, stat: paramiko.SFTPAttributes, parent_path: str | None = None) -> dict[str, Any]:
        told: dict[str, Any] = super()._decode_stat(stat, parent_path)
        if told["type"] == "file" and not S_ISREG(stat.st_mode or 0):
            told["type"] = "other"
        return told


def read_host_key(text: str) -> paramiko.PKey:
    """A server's public key, as ssh-keyscan or its `.pub` file has it. Raises SourceRefused."""
    words = text.split()
    for kind, key in pairwise(words):
        if kind.startswith(("ssh-", "ecdsa-")):
            try:
                return paramiko.PKey.from_type_string(kind, b64decode(key, validate=True))
            except (ValueError, paramiko.SSHException) as error:
                raise SourceRefused(f"options: host_key cannot be read: {error}.", param="options") from error
    raise SourceRefused(
        "options: host_key must be the server's public key, such as `ssh-keyscan -t ed25519 HOST` prints.",
        param="options",
    )
