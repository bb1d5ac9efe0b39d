"""An Azure container as fsspec would show it, through Microsoft's own client.

Not through adlfs: it takes credentials from the worker's own environment, and keeps every file system it ever made.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from azure.core.credentials import AzureSasCredential
from azure.core.exceptions import ResourceNotFoundError
from azure.identity import ClientSecretCredential
from azure.storage.blob import BlobPrefix, BlobProperties, ContainerClient, LinearRetry


class Container:
    """What a RemoteFolder asks of a file system. Paths begin with the container's name."""

    def __init__(
        self,
        container: str,
        *,
        options: Mapping[str, str],
        connect_s: float,
        silence_s: float,
        tries: int,
    ) -> None:
        """Raises ValueError for a key that is none."""
        self._container = container
        account = options["account_name"]
        self.client = ContainerClient(
            options.get("endpoint_url", f"https://{account}.blob.core.windows.net"),
            container,
            credential=_credential(options),
            connection_timeout=connect_s,
            read_timeout=silence_s,
            retry_policy=LinearRetry(backoff=1, retry_total=tries - 1, random_jitter_range=0),
        )

    def ls(self, path: str, *, detail: bool) -> list[Mapping[str, Any]]:
        assert detail
        prefix = self._blob(path)
        try:
            listed = self.client.walk_blobs(f"{prefix}/" if prefix else None)
            told = [self._told(each) for each in listed]
        except ResourceNotFoundError as error:
            raise FileNotFoundError(path) from error
        if prefix and not told:
            raise FileNotFoundError(path)
        return told

    def info(self, path: str) -> Mapping[str, Any]:
        blob = self._blob(path)
        try:
            if not blob:
                self.client.get_container_properties()
                return {"name": path, "type": "directory"}
            return self._told(self.client.get_blob_client(blob).get_blob_properties())
        except ResourceNotFoundError as error:
            raise FileNotFoundError(path) from error

    @contextmanager
    def open(self, path: str, mode: str, **_: Any) -> Iterator[Any]:
        assert mode == "rb"
        try:
            yield self.client.download_blob(self._blob(path))
        except ResourceNotFoundError as error:
            raise FileNotFoundError(path) from error

    def _blob(self, path: str) -> str:
        return path.removeprefix(self._container).strip("/")

    def _told(self, each: BlobProperties | BlobPrefix) -> Mapping[str, Any]:
        name = f"{self._container}/{each.name}"
        if isinstance(each, BlobPrefix):
            return {"name": name, "type": "directory"}
        return {
            "name": name,
            "type": "file",
            "size": each.size,
            "etag": each.etag.strip('"'),  # a listing tells it without quotes, a look with
            "last_modified": each.last_modified,
        }


def _credential(options: Mapping[str, str]) -> Any:
    """None for a container that is open to all."""
    if "account_key" in options:
        return {"account_name": options["account_name"], "account_key": options["account_key"]}
    if "sas_token" in options:
        return AzureSasCredential(options["sas_token"].removeprefix("?"))
    if "client_id" in options:
        return ClientSecretCredential(options["tenant_id"], options["client_id"], options["client_secret"])
    return None
