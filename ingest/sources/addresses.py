"""Addresses of sources: how they are read, which may be used, and what opens them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

import aiohttp
import fsspec
from yarl import URL

from ingest.sources.entries import BackendMissing, Source, SourceRefused, SourceUnavailable
from ingest.sources.local import LocalFolder
from ingest.sources.remote import RemoteFolder
from ingest.sources.repository import Repository

CONNECT_S = 20
READ_S = 60
"""A server that says nothing for so long is taken for dead."""

Options = dict[str, str]


@dataclass(frozen=True)
class Backend:
    """What a scheme needs and takes."""

    extra: str
    options: frozenset[str]
    default_host: str = ""
    """Asked when the address names none."""


_S3 = Backend(
    "sources-s3", frozenset({"key", "secret", "token", "endpoint_url", "region"}), "s3.amazonaws.com"
)
_GCS = Backend("sources-gcs", frozenset({"token"}), "storage.googleapis.com")
_AZURE = Backend(
    "sources-azure",
    frozenset({"account_name", "account_key", "sas_token", "tenant_id", "client_id", "client_secret"}),
    "blob.core.windows.net",
)
_PASSWORD = frozenset({"username", "password"})
_WEBDAV = Backend("sources-webdav", _PASSWORD)
_WEB = Backend("", _PASSWORD)
BACKENDS = {
    "file": Backend("", frozenset()),
    "http": _WEB,
    "https": _WEB,
    "s3": _S3,
    "gs": _GCS,
    "gcs": _GCS,
    "az": _AZURE,
    "abfs": _AZURE,
    "abfss": _AZURE,
    "sftp": Backend("sources-sftp", _PASSWORD | {"host_key"}),
    "webdav": _WEBDAV,
    "webdavs": _WEBDAV,
    "smb": Backend("sources-smb", _PASSWORD),
    "git+https": _WEB,
    "git+http": _WEB,
    "git+file": Backend("", frozenset()),
}
_UNCACHED = {"use_listings_cache": False}
_BUCKETS = ("s3", "gs", "gcs", "az", "abfs", "abfss")
_LOCAL = ("file", "git+file")
_OWN = ("file", "git+https", "git+http", "git+file")
"""Not read through fsspec. To open one connects to nothing."""


@dataclass(frozen=True)
class Address:
    """A source's address without credentials, and the options that were in it or beside it."""

    url: str
    options: Options

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    @property
    def folder(self) -> Path | None:
        """Of a local one."""
        return Path(unquote(urlsplit(self.url).path)) if self.scheme in _LOCAL else None


@dataclass(frozen=True)
class Allowed:
    """What may be added without the owner's hand on the box."""

    roots: tuple[Path, ...] = ()
    hosts: frozenset[str] = frozenset()


def read_address(url: str, options: Mapping[str, str]) -> Address:
    """One parser, whose parts are put together anew: nobody reads the address differently. Raises SourceRefused."""
    if any(character.isspace() or not character.isprintable() or character == "\\" for character in url):
        raise SourceRefused("url must be without spaces, backslashes and control characters; write %20.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SourceRefused(f"url cannot be read: {error}.") from error
    backend = BACKENDS.get(parts.scheme)
    if backend is None:
        raise SourceRefused(f"url must begin with one of {', '.join(f'{name}://' for name in BACKENDS)}.")
    taken = dict(options)
    for name, value in (("username", parts.username), ("password", parts.password)):
        if value:
            taken[name] = unquote(value)
    if unknown := sorted(taken.keys() - backend.options):
        known = ", ".join(sorted(backend.options)) or "none"
        raise SourceRefused(
            f"options: {parts.scheme}:// takes no {', '.join(unknown)}; it takes {known}.", param="options"
        )
    if parts.scheme in _LOCAL:
        return Address(_local_url(parts), taken)
    host = (parts.hostname or "").lower() if parts.scheme not in _BUCKETS else parts.netloc.rpartition("@")[2]
    if not host:
        raise SourceRefused(f"url names no {'bucket' if parts.scheme in _BUCKETS else 'host'}.")
    if parts.query:
        raise SourceRefused("url must have no query; give credentials as options.")
    if ":" in host:
        host = f"[{host}]"
    netloc = f"{host}:{port}" if port else host
    fragment = parts.fragment if parts.scheme.startswith("git+") else ""
    return Address(urlunsplit((parts.scheme, netloc, parts.path, "", fragment)), taken)


def check_allowed(address: Address, allowed: Allowed) -> None:
    """Raises SourceRefused for an address that only the owner may add, on the box."""
    folder = address.folder
    if folder is not None:
        real = folder.resolve()
        if not any(real.is_relative_to(root.resolve()) for root in allowed.roots):
            raise SourceRefused(
                f"The folder {folder} is in none of sources.roots. Add its root to that setting, or add the "
                "source on the server's own machine with `strongroom sources add`."
            )
        return
    for host in _hosts(address):
        if not any(host == each or host.endswith(f".{each}") for each in allowed.hosts):
            raise SourceRefused(
                f"The host {host} is not in sources.hosts. Add it to that setting, or add the source on the "
                "server's own machine with `strongroom sources add`."
            )


def check_backend(address: Address, *, cache: Path = Path()) -> None:
    """Finds now what `open_source` would find at the first sweep. Raises SourceRefused, BackendMissing."""
    if address.scheme in _OWN:
        open_source(address, cache=cache)
    else:
        protocol, _, _ = _arguments(address.scheme, urlsplit(address.url), address.options)
        _filesystem_kind(address.scheme, protocol)


def open_source(address: Address, *, cache: Path) -> Source:
    """`cache` is a folder for this source alone. Raises SourceRefused, BackendMissing, SourceUnavailable."""
    parts = urlsplit(address.url)
    options = address.options
    match address.scheme:
        case "file":
            assert address.folder is not None
            return LocalFolder(address.folder)
        case "git+https" | "git+http" | "git+file":
            url = urlunsplit((parts.scheme.removeprefix("git+"), parts.netloc, parts.path, "", ""))
            credentials = {}
            if options:
                secret = aiohttp.BasicAuth(options.get("username", ""), options.get("password", "")).encode()
                credentials = {"http.extraHeader": f"Authorization: {secret}"}
            return Repository(url, unquote(parts.fragment), cache, credentials=credentials)
        case scheme:
            protocol, root, arguments = _arguments(scheme, parts, options)
            filesystem = _filesystem(scheme, protocol, arguments)
            is_site = protocol in ("http", "https")
            return RemoteFolder(filesystem, root, asks_each=is_site, secrets=[*options.values()])


def _local_url(parts: SplitResult) -> str:
    path = Path(unquote(parts.path))
    if (
        parts.netloc not in ("", "localhost")
        or not path.is_absolute()
        or ".." in path.parts
        or "\0" in str(path)
    ):
        raise SourceRefused(
            f"url must name a folder by its whole path, such as {parts.scheme}:///srv/letters."
        )
    fragment = f"#{parts.fragment}" if parts.fragment and parts.scheme == "git+file" else ""
    return f"{parts.scheme}://{quote(str(path))}{fragment}"


def _hosts(address: Address) -> list[str]:
    """Everything that the source will connect to."""
    parts = urlsplit(address.url)
    if address.scheme not in _BUCKETS:
        assert parts.hostname is not None
        return [parts.hostname]
    told = address.options.get("endpoint_url")
    if told is None:
        account = address.options.get("account_name")
        default = BACKENDS[address.scheme].default_host
        if account is not None and not account.isalnum():
            raise SourceRefused("options: account_name has letters and digits only.", param="options")
        return [f"{account}.{default}" if account else default]
    endpoint = read_address(told, {})
    if endpoint.scheme not in ("http", "https"):
        raise SourceRefused("options: endpoint_url must begin with http:// or https://.", param="options")
    return _hosts(endpoint)


def _arguments(scheme: str, parts: SplitResult, options: Options) -> tuple[str, str, dict[str, Any]]:
    """What fsspec is told: protocol, root folder, and the file system's own arguments."""
    path = unquote(parts.path)
    bucket = f"{parts.netloc}{path}"
    match scheme:
        case "http" | "https":
            return scheme, urlunsplit(parts), {
                "get_client": _client_of(options), "simple_links": False, **_UNCACHED
            }  # fmt: skip
        case "s3":
            client = {key: value for key, value in (("region_name", options.get("region")),) if value}
            if "endpoint_url" in options:
                client["endpoint_url"] = options["endpoint_url"]
            return "s3", bucket, {
                "key": options.get("key"), "secret": options.get("secret"), "token": options.get("token"),
                "anon": "key" not in options, "client_kwargs": client,
                "config_kwargs": {"connect_timeout": CONNECT_S, "read_timeout": READ_S}, **_UNCACHED,
            }  # fmt: skip
        case "gs" | "gcs":
            # Never a name: gcsfs would look for credentials on the box, or open it as a file.
            token = _service_account(options["token"]) if "token" in options else "anon"
            return "gcs", bucket, {"token": token, **_UNCACHED}
        case "az" | "abfs" | "abfss":
            return "abfs", bucket, {**options, "anon": len(options) <= 1, **_UNCACHED}
        case "sftp":
            port = parts.port or 22
            return "sftp", path, {
                "host": parts.hostname, "port": port, "host_key_policy": _pinned_key(options),
                "look_for_keys": False, "allow_agent": False,
                "timeout": CONNECT_S, "banner_timeout": CONNECT_S, "auth_timeout": CONNECT_S,
                "username": options.get("username"), "password": options.get("password"),
            }  # fmt: skip
        case "webdav" | "webdavs":
            secure = "https" if scheme == "webdavs" else "http"
            auth = (options.get("username", ""), options.get("password", "")) if options else None
            root = urlunsplit((secure, parts.netloc, parts.path, "", ""))
            return (
                "webdav",
                "",
                {"base_url": root, "auth": auth, "timeout": READ_S, "follow_redirects": False},
            )
        case _:
            assert scheme == "smb"
            return "smb", path, {
                "host": parts.hostname, "port": parts.port, "timeout": CONNECT_S, "share_access": "rwd",
                "register_session_retries": 1, **options,
            }  # fmt: skip


def _filesystem(scheme: str, protocol: str, arguments: dict[str, Any]) -> fsspec.AbstractFileSystem:
    kind = _filesystem_kind(scheme, protocol)
    try:
        # Else another source with the same address would get this one's connection and credentials.
        return kind(**arguments, skip_instance_cache=True)
    except SourceRefused:
        raise
    except Exception as error:
        # Some connect at once, and raise what their client library does. What it says may hold a password.
        raise SourceUnavailable(f"The source cannot be reached: {type(error).__name__}.") from error


def _filesystem_kind(scheme: str, protocol: str) -> type[fsspec.AbstractFileSystem]:
    try:
        kind: type[fsspec.AbstractFileSystem] = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise BackendMissing(scheme, BACKENDS[scheme].extra) from error
    return kind


def _client_of(options: Options) -> Any:
    """Makes fsspec's HTTP client: with the credentials, and never led to another host."""

    async def open_client(**kwargs: Any) -> aiohttp.ClientSession:
        auth = aiohttp.BasicAuth(options["username"], options.get("password", "")) if options else None
        tracing = aiohttp.TraceConfig()
        tracing.on_request_redirect.append(_stay_on_host)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
        return aiohttp.ClientSession(**kwargs, auth=auth, trace_configs=[tracing], timeout=timeout)

    return open_client


async def _stay_on_host(_: aiohttp.ClientSession, __: Any, told: aiohttp.TraceRequestRedirectParams) -> None:
    target = told.response.headers.get("Location", "")
    if told.url.join(URL(target)).origin() != told.url.origin():
        raise aiohttp.ClientPayloadError("it sends on to another host, which is not followed")


def _pinned_key(options: Options) -> Any:
    """A policy for paramiko that knows one key. Without it, whoever answers in the host's place gets the password."""
    if "host_key" not in options:
        raise SourceRefused(
            "options: sftp:// needs host_key, the server's public key as `ssh-keyscan -t ed25519 HOST` prints "
            "it without the host's name.",
            param="options",
        )
    wanted = options["host_key"].split()[:2]
    try:
        paramiko = import_module("paramiko")
    except ImportError as error:
        raise BackendMissing("sftp", BACKENDS["sftp"].extra) from error

    def check(_: Any, __: Any, hostname: str, key: Any) -> None:
        if [key.get_name(), key.get_base64()] != wanted:
            raise paramiko.SSHException(f"the host {hostname} has another key than host_key")

    return type("PinnedKey", (paramiko.MissingHostKeyPolicy,), {"missing_host_key": check})()


def _service_account(text: str) -> dict[str, Any]:
    """Other kinds of Google credentials name addresses to ask, files to read and programs to run."""
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if (
        not isinstance(told, dict)
        or told.get("type") != "service_account"
        or told.get("token_uri") != "https://oauth2.googleapis.com/token"
    ):
        raise SourceRefused("options: token must be the JSON of a Google service account.", param="options")
    return told
