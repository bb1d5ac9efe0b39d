"""A real server of every kind of source, on loopback, with folders on it that a test fills and changes.

Each is a context manager that skips, with the reason, where the server or the client's extra is not installed.
"""

import asyncio
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import fsspec
import pytest

START_WITHIN_S = 30.0
LOGIN = {"username": "anna", "password": "hunter22-right"}
WRONG_LOGIN = {"username": "anna", "password": "hunter22-wrong"}
AZURITE = Path(sys.prefix) / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"


class Folder(Protocol):
    """What is on the server, changed past the source."""

    def put(self, path: str, content: str) -> None: ...
    def remove(self, path: str) -> None: ...
    def move(self, old: str, new: str) -> None: ...


@dataclass(frozen=True)
class Place:
    """A folder on a server, and how a source reaches it."""

    url: str
    options: dict[str, str]
    wrong_options: dict[str, str]
    """Which the server refuses."""
    folder: Folder = field(repr=False)

    def at_port(self, port: int) -> "Place":
        """Said to be on another port of this machine."""
        if "endpoint_url" in self.options:
            return replace(
                self, options=self.options | {"endpoint_url": _at(self.options["endpoint_url"], port)}
            )
        return replace(self, url=_at(self.url, port))


MakePlace = Callable[[], Place]


# What is changed on disk


@dataclass(frozen=True)
class DiskFolder:
    root: Path

    def put(self, path: str, content: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)

    def remove(self, path: str) -> None:
        (self.root / path).unlink()

    def move(self, old: str, new: str) -> None:
        (self.root / new).parent.mkdir(parents=True, exist_ok=True)
        (self.root / old).rename(self.root / new)


def _new_folder(root: Path) -> Path:
    folder = root / f"place-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    return folder


@contextmanager
def sftp_server(folder: Path) -> Iterator[MakePlace]:
    """asyncssh's, which shares no code with the client."""
    _need("asyncssh", "paramiko")
    import asyncssh

    connections: list[asyncssh.SSHServerConnection] = []

    class Login(asyncssh.SSHServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            connections.append(conn)

        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return {"username": username, "password": password} == LOGIN

    # Of two kinds, of which a client knows one.
    keys = [asyncssh.generate_private_key(kind) for kind in ("ssh-ed25519", "ecdsa-sha2-nistp256")]
    listening, stop = Event(), Event()
    ports: list[int] = []

    async def serve() -> None:
        server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Login,
            server_host_keys=keys,
            sftp_factory=partial(asyncssh.SFTPServer, chroot=bytes(folder)),
            allow_scp=False,
        )
        ports.append(server.get_port())
        listening.set()
        await asyncio.to_thread(stop.wait)
        server.close()
        for connection in connections:
            connection.abort()
            await connection.wait_closed()
        await server.wait_closed()

    thread = Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert listening.wait(START_WITHIN_S)
    host_key = keys[1].export_public_key().decode().strip()

    def make() -> Place:
        root = _new_folder(folder)
        url = f"sftp://127.0.0.1:{ports[0]}/{root.name}"
        known = {"host_key": host_key}
        return Place(url, {**LOGIN, **known}, {**WRONG_LOGIN, **known}, DiskFolder(root))

    try:
        yield make
    finally:
        stop.set()
        thread.join(10)


@contextmanager
def webdav_server(folder: Path) -> Iterator[MakePlace]:
    _need("wsgidav", "cheroot", "webdav4")
    from cheroot import wsgi
    from wsgidav.wsgidav_app import WsgiDAVApp

    app = WsgiDAVApp({
        "provider_mapping": {"/": {"root": str(folder), "readonly": True}},
        "simple_dc": {"user_mapping": {"*": {LOGIN["username"]: {"password": LOGIN["password"]}}}},
        "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
        "verbose": 0,
        "logging": {"enable": False},
    })  # fmt: skip
    server = wsgi.Server(("127.0.0.1", 0), app)
    server.prepare()
    thread = Thread(target=server.serve, daemon=True)
    thread.start()

    def make() -> Place:
        root = _new_folder(folder)
        url = f"webdav://127.0.0.1:{server.bind_addr[1]}/{root.name}"
        return Place(url, LOGIN, WRONG_LOGIN, DiskFolder(root))

    try:
        yield make
    finally:
        server.stop()
        thread.join(10)


@contextmanager
def smb_server(folder: Path) -> Iterator[MakePlace]:
    """samba's. Its users are the system's: two that every Debian has, with passwords of their own here."""
    _need("smbclient")
    smbd, pdbedit = shutil.which("smbd"), shutil.which("pdbedit")
    if smbd is None or pdbedit is None:
        pytest.skip("samba is not installed: there is no smbd")
    if os.geteuid() != 0:
        pytest.skip("smbd changes its user, which needs root")
    port = free_port()
    state = Path(tempfile.mkdtemp(prefix="strongroom-samba-", dir="/tmp"))
    folders = "".join(
        f"{name} = {state}\n"
        for name in (
            "private dir", "state directory", "cache directory", "lock directory", "pid directory",
            "ncalrpc dir", "usershare path",
        )
    )  # fmt: skip
    (state / "smb.conf").write_text(
        "[global]\n"
        f"{folders}smb ports = {port}\ninterfaces = 127.0.0.1\nbind interfaces only = yes\n"
        "server role = standalone\ndisable netbios = yes\nload printers = no\nprinting = bsd\n"
        "map to guest = never\nserver min protocol = SMB2\nusershare max shares = 0\n"
        f"passdb backend = tdbsam:{state}/passwords.tdb\nlog file = {state}/log\n"
        f"[letters]\npath = {folder}\nread only = yes\nforce user = root\nvalid users = {SMB_USER}\n"
    )
    config = f"--configfile={state}/smb.conf"
    try:
        for user, password in ((SMB_USER, LOGIN["password"]), (SMB_STRANGER, LOGIN["password"])):
            typed = f"{password}\n{password}\n"
            subprocess.run(
                [pdbedit, config, "--create", f"--user={user}", "--password-from-stdin"],
                input=typed, text=True, check=True, capture_output=True,
            )  # fmt: skip
        command = [smbd, config, "--foreground", "--debug-stdout"]
        with _started(command, port, state / "out"):

            def make() -> Place:
                root = _new_folder(folder)
                url = f"smb://127.0.0.1:{port}/letters/{root.name}"
                right = {"username": SMB_USER, "password": LOGIN["password"]}
                wrong = {"username": SMB_USER, "password": WRONG_LOGIN["password"]}
                return Place(url, right, wrong, DiskFolder(root))

            yield make
    finally:
        shutil.rmtree(state, ignore_errors=True)


SMB_USER = "daemon"
SMB_STRANGER = "games"
"""Known to the server, but not let into the share."""


@contextmanager
def site_server(folder: Path) -> Iterator[MakePlace]:
    """Python's own, behind a password."""

    class Site(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def send_head(self) -> Any:
            return super().send_head() if _is_let_in(self) else None

    with _serving(partial(Site, directory=str(folder))) as port:

        def make() -> Place:
            root = _new_folder(folder)
            url = f"http://127.0.0.1:{port}/{root.name}/"
            return Place(url, LOGIN, WRONG_LOGIN, DiskFolder(root))

        yield make


def _is_let_in(request: BaseHTTPRequestHandler) -> bool:
    proof = b64encode(f"{LOGIN['username']}:{LOGIN['password']}".encode()).decode()
    if request.headers.get("Authorization") == f"Basic {proof}":
        return True
    request.send_response(401)
    request.send_header("WWW-Authenticate", 'Basic realm="letters"')
    request.send_header("Content-Length", "0")
    request.end_headers()
    return False


@dataclass(frozen=True)
class GitFolder:
    """Every change is a commit."""

    disk: DiskFolder

    def put(self, path: str, content: str) -> None:
        self.disk.put(path, content)
        self._commit()

    def remove(self, path: str) -> None:
        self.disk.remove(path)
        self._commit()

    def move(self, old: str, new: str) -> None:
        self.disk.move(old, new)
        self._commit()

    def _commit(self) -> None:
        git(self.disk.root, "add", "--all")
        git(self.disk.root, "commit", "--quiet", "--message", "change")


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@contextmanager
def git_server(folder: Path) -> Iterator[MakePlace]:
    """git's own program behind Python's server, as it stands behind Apache elsewhere."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")

    class Backend(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if not _is_let_in(self):
                return
            path, _, query = self.path.partition("?")
            size = int(self.headers.get("Content-Length", 0))
            done = subprocess.run(
                ["git", "http-backend"],
                input=self.rfile.read(size),
                env={
                    "PATH": os.defpath,
                    "GIT_PROJECT_ROOT": str(folder),
                    "GIT_HTTP_EXPORT_ALL": "1",
                    "GIT_CONFIG_COUNT": "1",
                    "GIT_CONFIG_KEY_0": "safe.directory",
                    "GIT_CONFIG_VALUE_0": "*",
                    "PATH_INFO": path,
                    "QUERY_STRING": query,
                    "REQUEST_METHOD": self.command,
                    "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                    "CONTENT_LENGTH": str(size),
                    "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                    "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                },
                capture_output=True,
                check=True,
            )
            head, _, body = done.stdout.partition(b"\r\n\r\n")
            headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
            self.send_response(int(headers.pop("Status", "200").split()[0]))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the name that the server looks for

    with _serving(Backend) as port:

        def make() -> Place:
            root = _new_folder(folder)
            git(root, "init", "--quiet", "--initial-branch=main")
            url = f"git+http://127.0.0.1:{port}/{root.name}/.git"
            return Place(url, LOGIN, WRONG_LOGIN, GitFolder(DiskFolder(root)))

        yield make


# What is changed through the store's own interface


@dataclass(frozen=True)
class StoreFolder:
    store: fsspec.AbstractFileSystem
    root: str

    def put(self, path: str, content: str) -> None:
        self.store.pipe_file(f"{self.root}/{path}", content.encode())

    def remove(self, path: str) -> None:
        self.store.rm_file(f"{self.root}/{path}")

    def move(self, old: str, new: str) -> None:
        self.store.cp_file(f"{self.root}/{old}", f"{self.root}/{new}")
        self.remove(old)


@contextmanager
def s3_server(folder: Path) -> Iterator[MakePlace]:
    """moto's, which checks signatures once it has a user."""
    _need("moto", "flask", "flask_cors", "boto3", "s3fs")
    import boto3

    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    with _started(command, port, folder / "log", INITIAL_NO_AUTH_ACTION_COUNT="3"):
        iam = boto3.client(
            "iam", endpoint_url=endpoint, region_name="us-east-1",
            aws_access_key_id="setup", aws_secret_access_key="setup",
        )  # fmt: skip
        iam.create_user(UserName="anna")
        allowed = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}],
        }
        iam.put_user_policy(UserName="anna", PolicyName="s3", PolicyDocument=json.dumps(allowed))
        made = iam.create_access_key(UserName="anna")["AccessKey"]
        right = {"key": made["AccessKeyId"], "secret": made["SecretAccessKey"], "endpoint_url": endpoint}
        store = fsspec.filesystem(
            "s3", key=right["key"], secret=right["secret"], endpoint_url=endpoint,
            use_listings_cache=False, skip_instance_cache=True,
        )  # fmt: skip

        def make() -> Place:
            bucket = f"bucket-{secrets.token_hex(4)}"
            store.mkdir(bucket)
            wrong = right | {"secret": "hunter22-wrong-secret-of-40-characters.."}
            return Place(f"s3://{bucket}/letters", right, wrong, StoreFolder(store, f"{bucket}/letters"))

        yield make


@contextmanager
def gcs_server(folder: Path) -> Iterator[MakePlace]:
    """An emulator, which asks nobody for credentials: refused ones are those that Google's library refuses."""
    _need("gcp_storage_emulator", "gcsfs")
    from ingest.sources.google_buckets import GoogleBuckets

    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port),
        "--in-memory", "--quiet",
    ]  # fmt: skip
    with _started(command, port, folder / "log"):
        store = GoogleBuckets(
            token="anon", project="tests", endpoint_url=endpoint,
            use_listings_cache=False, skip_instance_cache=True,
        )  # fmt: skip

        def make() -> Place:
            bucket = f"bucket-{secrets.token_hex(4)}"
            store.mkdir(bucket)
            account = {
                "type": "service_account", "client_email": "anna@example.org", "private_key": "hunter22-wrong",
                "token_uri": "https://oauth2.googleapis.com/token",
            }  # fmt: skip
            right = {"endpoint_url": endpoint}
            wrong = right | {"token": json.dumps(account)}
            return Place(f"gs://{bucket}/letters", right, wrong, StoreFolder(store, f"{bucket}/letters"))

        yield make


@dataclass(frozen=True)
class AzureFolder:
    container: Any

    def put(self, path: str, content: str) -> None:
        self.container.upload_blob(f"letters/{path}", content.encode(), overwrite=True)

    def remove(self, path: str) -> None:
        self.container.delete_blob(f"letters/{path}")

    def move(self, old: str, new: str) -> None:
        self.put(new, self.container.download_blob(f"letters/{old}").readall().decode())
        self.remove(old)


@contextmanager
def azure_server(folder: Path) -> Iterator[MakePlace]:
    """Azurite, Microsoft's own."""
    _need("azure")
    from azure.storage.blob import ContainerClient

    node = shutil.which("node")
    if node is None or not AZURITE.exists():
        pytest.skip(f"azurite is not installed: make dev puts it into {sys.prefix} where npm is")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}/anna"
    key = b64encode(secrets.token_bytes(64)).decode()
    command = [
        node, str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence",
        "--silent", "--disableTelemetry", "--skipApiVersionCheck",
    ]  # fmt: skip
    with _started(command, port, folder / "log", AZURITE_ACCOUNTS=f"anna:{key}"):

        def make() -> Place:
            bucket = f"bucket-{secrets.token_hex(4)}"
            login = {"account_name": "anna", "account_key": key}
            container = ContainerClient(endpoint, bucket, credential=login)
            container.create_container()
            right = {"account_name": "anna", "account_key": key, "endpoint_url": endpoint}
            wrong = right | {"account_key": b64encode(b"hunter22-wrong").decode()}
            return Place(f"az://{bucket}/letters", right, wrong, AzureFolder(container))

        yield make


SERVERS: Mapping[str, Callable[[Path], AbstractContextManager[MakePlace]]] = {
    "s3": s3_server,
    "gcs": gcs_server,
    "azure": azure_server,
    "sftp": sftp_server,
    "webdav": webdav_server,
    "smb": smb_server,
    "http": site_server,
    "git": git_server,
}


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of one that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _need(*modules: str) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (make dev)")


def _at(url: str, port: int) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.hostname}:{port}"))


@contextmanager
def _started(command: Sequence[str], port: int, log: Path, **environment: str) -> Iterator[None]:
    """A process that listens at `port`. The signal reaches it even when the tests are killed."""
    settings = [f"{name}={value}" for name, value in environment.items()]
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=TERM", "env", *settings, *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        give_up_at = time.monotonic() + START_WITHIN_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > give_up_at:
                    pytest.fail(f"{command[0]} did not start:\n{log.read_text(errors='replace')}")
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
