"""Addresses of sources: how they are read, which may be used, and what opens them."""

import json
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

import aiohttp
from yarl import URL

from ingest.sources.entries import BackendMissing, Source, SourceRefused, SourceUnavailable
from ingest.sources.faults import Faults
from ingest.sources.local import LocalFolder
from ingest.sources.remote import RemoteFolder
from ingest.sources.repository import Repository

CONNECT_S = 20
READ_S = 60
"""A server that says nothing for so long is taken for dead."""
TRIES = 2
"""Of a request: a sweep that fails is tried again anyway, after a while."""

Options = dict[str, str]


@dataclass(frozen=True)
class Backend:
    """What a scheme needs and takes."""

    opens: str = ""
    """`module:class` of the file system. Without, it is not read through one, and to open it connects to nothing."""
    extra: str = ""
    """That the module needs."""
    credentials: frozenset[str] = frozenset()
    """Options that say who asks."""
    places: frozenset[str] = frozenset()
    """Options that say who is asked."""
    default_host: str = ""
    """Asked when the address names none."""

    @property
    def options(self) -> frozenset[str]:
        return self.credentials | self.places


_ENDPOINT = frozenset({"endpoint_url"})
_S3 = Backend(
    "ingest.sources.s3_buckets:S3Buckets",
    "sources-s3",
    frozenset({"key", "secret", "token"}),
    _ENDPOINT | {"region"},
    "s3.amazonaws.com",
)
_GCS = Backend(
    "ingest.sources.google_buckets:GoogleBuckets",
    "sources-gcs",
    frozenset({"token"}),
    _ENDPOINT,
    "storage.googleapis.com",
)
_AZURE = Backend(
    "ingest.sources.blobs:Container",
    "sources-azure",
    frozenset({"account_key", "sas_token", "tenant_id", "client_id", "client_secret"}),
    _ENDPOINT | {"account_name"},
    "blob.core.windows.net",
)
_PASSWORD = frozenset({"username", "password"})
_WEBDAV = Backend("ingest.sources.webdav:WebDav", "sources-webdav", _PASSWORD)
_SFTP = Backend("ingest.sources.secure_shell:KnownHost", "sources-sftp", _PASSWORD, frozenset({"host_key"}))
_SITE = Backend("fsspec.implementations.http:HTTPFileSystem", credentials=_PASSWORD)
_GIT = Backend(credentials=_PASSWORD)
BACKENDS = {
    "file": Backend(),
    "http": _SITE,
    "https": _SITE,
    "s3": _S3,
    "gs": _GCS,
    "gcs": _GCS,
    "az": _AZURE,
    "abfs": _AZURE,
    "abfss": _AZURE,
    "sftp": _SFTP,
    "webdav": _WEBDAV,
    "webdavs": _WEBDAV,
    "smb": Backend("ingest.sources.shares:Share", "sources-smb", _PASSWORD),
    "git+https": _GIT,
    "git+http": _GIT,
    "git+file": Backend(),
}
# Else another source with the same address would get this one's connection and credentials.
_ALONE = {"skip_instance_cache": True}
_UNCACHED = {**_ALONE, "use_listings_cache": False}
_SITES = ("http", "https")
_BUCKETS = ("s3", "gs", "gcs", "az", "abfs", "abfss")
_LOCAL = ("file", "git+file")


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
    if BACKENDS[address.scheme].opens:
        _arguments(address.scheme, urlsplit(address.url), address.options)
        _filesystem_kind(address.scheme)
    else:
        open_source(address, cache=cache)


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
                credentials = {"http.extraHeader": f"Authorization: {_basic(options)}"}
            return Repository(url, unquote(parts.fragment), cache, credentials=credentials)
        case scheme:
            root, arguments = _arguments(scheme, parts, options)
            names = BACKENDS[scheme].credentials
            faults = Faults([options[name] for name in names & options.keys()], sorted(names))
            return RemoteFolder(
                _filesystem(scheme, arguments, faults),
                root,
                bucket=parts.netloc if scheme in _BUCKETS else None,
                asks_each=scheme in _SITES,
                faults=faults,
            )


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


def _arguments(scheme: str, parts: SplitResult, options: Options) -> tuple[str, dict[str, Any]]:
    """The root folder, and what the file system is made with. Raises SourceRefused, BackendMissing."""
    path = unquote(parts.path)
    bucket = f"{parts.netloc}{path}"
    match scheme:
        case "http" | "https":
            return urlunsplit(parts), {
                "get_client": _client_of(options), "simple_links": False, **_UNCACHED
            }  # fmt: skip
        case "s3":
            if ("key" in options) != ("secret" in options):
                raise SourceRefused("options: s3:// needs both key and secret, or neither.", param="options")
            places = (("region_name", "region"), ("endpoint_url", "endpoint_url"))
            return bucket, {
                "key": options.get("key"), "secret": options.get("secret"), "token": options.get("token"),
                "anon": "key" not in options,
                "client_kwargs": {name: options[option] for name, option in places if option in options},
                "config_kwargs": {
                    "connect_timeout": CONNECT_S, "read_timeout": READ_S, "retries": {"total_max_attempts": TRIES},
                }, **_UNCACHED,
            }  # fmt: skip
        case "gs" | "gcs":
            # Never a name: gcsfs would look for credentials on the box, or open it as a file.
            token = _service_account(options["token"]) if "token" in options else "anon"
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
            return bucket, {
                "token": token, "endpoint_url": options.get("endpoint_url"), "project": "none",
                "requests_timeout": timeout, **_UNCACHED,
            }  # fmt: skip
        case "az" | "abfs" | "abfss":
            _check_azure(options)
            return bucket, {
                "container": parts.netloc, "options": options,
                "connect_s": CONNECT_S, "silence_s": READ_S, "tries": TRIES,
            }  # fmt: skip
        case "sftp":
            return path, {
                "host": parts.hostname, "port": parts.port or 22, "host_key": _host_key(options),
                "silence_s": READ_S, "look_for_keys": False, "allow_agent": False,
                "timeout": CONNECT_S, "banner_timeout": CONNECT_S, "auth_timeout": CONNECT_S,
                "username": options.get("username"), "password": options.get("password"), **_ALONE,
            }  # fmt: skip
        case "webdav" | "webdavs":
            secure = "https" if scheme == "webdavs" else "http"
            auth = (options.get("username", ""), options.get("password", "")) if options else None
            root = urlunsplit((secure, parts.netloc, parts.path, "", ""))
            return "", {
                "base_url": root, "auth": auth, "timeout": READ_S, "follow_redirects": False, **_ALONE
            }  # fmt: skip
        case _:
            assert scheme == "smb"
            if not path.strip("/"):
                raise SourceRefused("url must name a share: smb://host/share.")
            if not options.keys() >= _PASSWORD:
                # Without, the library would ask with what the worker's own user is logged in as.
                raise SourceRefused("options: smb:// needs username and password.", param="options")
            return path, {
                "host": parts.hostname, "port": parts.port, "timeout": CONNECT_S, **options, **_ALONE,
            }  # fmt: skip


def _filesystem(scheme: str, arguments: dict[str, Any], faults: Faults) -> Any:
    kind = _filesystem_kind(scheme)
    try:
        return kind(**arguments)
    except (SourceRefused, SourceUnavailable):
        raise
    except Exception as error:
        # Some connect at once, and raise what their client library does.
        raise SourceUnavailable(faults.tell("The source cannot be reached", error)) from error


def _filesystem_kind(scheme: str) -> Any:
    module, _, name = BACKENDS[scheme].opens.partition(":")
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise BackendMissing(scheme, BACKENDS[scheme].extra) from error


def _client_of(options: Options) -> Any:
    """Makes fsspec's HTTP client: with the credentials, and never led to another host."""

    async def open_client(**kwargs: Any) -> aiohttp.ClientSession:
        headers = {"Authorization": _basic(options)} if options else None
        tracing = aiohttp.TraceConfig()
        tracing.on_request_redirect.append(_stay_on_host)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
        return aiohttp.ClientSession(**kwargs, headers=headers, trace_configs=[tracing], timeout=timeout)

    return open_client


def _basic(options: Options) -> str:
    return aiohttp.encode_basic_auth(options.get("username", ""), options.get("password", ""))


async def _stay_on_host(_: aiohttp.ClientSession, __: Any, told: aiohttp.TraceRequestRedirectParams) -> None:
    target = told.response.headers.get("Location", "")
    if told.url.join(URL(target)).origin() != told.url.origin():
        raise aiohttp.ClientPayloadError("it sends on to another host, which is not followed")


def _host_key(options: Options) -> Any:
    if "host_key" not in options:
        raise SourceRefused(
            "options: sftp:// needs host_key, the server's public key as `ssh-keyscan -t ed25519 HOST` prints it.",
            param="options",
        )
    try:
        return import_module("ingest.sources.secure_shell").read_host_key(options["host_key"])
    except ImportError as error:
        raise BackendMissing("sftp", BACKENDS["sftp"].extra) from error


def _check_azure(options: Options) -> None:
    if "account_name" not in options:
        raise SourceRefused("options: az:// needs account_name.", param="options")
    application = ("tenant_id", "client_id", "client_secret")
    if 0 < sum(name in options for name in application) < len(application):
        raise SourceRefused(
            f"options: az:// needs all of {', '.join(application)}, or none of them.", param="options"
        )
    try:
        b64decode(options.get("account_key", ""), validate=True)
    except ValueError as error:
        raise SourceRefused("options: account_key is not Base64.", param="options") from error


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
