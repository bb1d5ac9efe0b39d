"""Google's buckets as fsspec shows them: over HTTP alone, and given up on within seconds."""

from gcsfs.core import GCSFileSystem
from gcsfs.retry import retry_request

TRIES = 2
"""gcsfs's own six take half a minute; a sweep that fails is tried again anyway."""


class GoogleBuckets(GCSFileSystem):  # type: ignore[misc]
    """Not `gcsfs.GCSFileSystem`, which also asks storage.googleapis.com by gRPC, whatever endpoint it is given."""

    _request = retry_request(retries=TRIES)(GCSFileSystem._request.__wrapped__)  # noqa: SLF001
