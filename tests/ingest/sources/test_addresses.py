"""Which addresses are sources, and which of them may be added without the owner's hand (A12)."""

import re
import sys
from pathlib import Path

import pytest

from ingest.sources.addresses import Allowed, check_allowed, check_backend, read_address
from ingest.sources.entries import BackendMissing, SourceRefused

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
HOSTS = Allowed(hosts=frozenset({"files.example.org", "s3.amazonaws.com", "minio.local"}))


def test_credentials_leave_the_address() -> None:
    address = read_address(
        "sftp://anna:p%40ss@files.example.org:2222/letters", {"host_key": "ssh-ed25519 AA"}
    )
    assert address.url == "sftp://files.example.org:2222/letters"
    assert address.options == {"username": "anna", "password": "p@ss", "host_key": "ssh-ed25519 AA"}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://files.example.org/", "must begin with"),
        ("memory://x", "must begin with"),
        ("/etc", "must begin with"),
        ("javascript:alert(1)", "must begin with"),
        ("http:///x", "no host"),
        ("s3://", "no bucket"),
        ("http://files.example.org\\@127.0.0.1/", "backslashes"),
        ("http://files.example.org/a b", "spaces"),
        ("http://files.example.org/\u0000", "control"),
        ("http://files.example.org:x/", "cannot be read"),
        ("http://files.example.org/?next=1", "no query"),
        ("file://host/srv", "whole path"),
        ("file://srv/../etc", "whole path"),
        ("file:///srv/../etc", "whole path"),
        ("file:///srv/%2e%2e/etc", "whole path"),
        ("file:///srv%00", "whole path"),
        ("git+ssh://host/x", "must begin with"),
        ("git+ext::sh", "must begin with"),
    ],
)
def test_what_is_no_address_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(SourceRefused, match=reason):
        read_address(url, {})


def test_options_that_a_backend_does_not_take_are_refused_by_name() -> None:
    with pytest.raises(SourceRefused, match=r"takes no key_filename.*host_key"):
        read_address("sftp://files.example.org/x", {"key_filename": "/root/.ssh/id_rsa"})


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:7f00:1]/",
        "http://0x7f.1/",
        "http://2130706433/",
        "http://files.example.org@127.0.0.1/",
        "http://evil-files.example.org/",
        "http://example.org/",
        "http://files.example.org.evil.org/",
        "git+https://github.com/x/y",
        "smb://127.0.0.1/share",
        "gs://bucket/x",
    ],
)
def test_a_host_that_is_not_allowed_is_refused_with_the_settings_name(url: str) -> None:
    with pytest.raises(SourceRefused, match=r"sources\.hosts|takes no"):
        check_allowed(read_address(url, {}), HOSTS)


def test_allowed_hosts_stand_for_their_subdomains() -> None:
    for url in ("https://files.example.org/", "https://OLD.Files.Example.org:8443/x", "s3://bucket/x"):
        check_allowed(read_address(url, {}), HOSTS)


def test_an_endpoint_counts_as_a_host() -> None:
    check_allowed(read_address("s3://b", {"endpoint_url": "https://minio.local:9000"}), HOSTS)
    for endpoint in ("http://169.254.169.254", "http://minio.local@127.0.0.1", "file:///etc", "x"):
        with pytest.raises(SourceRefused):
            check_allowed(read_address("s3://b", {"endpoint_url": endpoint}), HOSTS)
    with pytest.raises(SourceRefused, match="letters and digits"):
        check_allowed(read_address("az://c", {"account_name": "x.evil.org/"}), HOSTS)


def test_folders_are_allowed_below_the_roots_only_also_behind_links(tmp_path: Path) -> None:
    root = tmp_path / "srv"
    (root / "letters").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (root / "out").symlink_to(tmp_path / "etc")
    allowed = Allowed(roots=(root,))
    check_allowed(read_address((root / "letters").as_uri(), {}), allowed)
    check_allowed(read_address(f"git+{root.as_uri()}", {}), allowed)
    for folder in (tmp_path / "etc", root / "out", tmp_path / "srv2", tmp_path):
        with pytest.raises(SourceRefused, match=r"sources\.roots"):
            check_allowed(read_address(folder.as_uri(), {}), allowed)
    with pytest.raises(SourceRefused, match=r"sources\.roots"):
        check_allowed(read_address(root.as_uri(), {}), Allowed())


@pytest.mark.parametrize(
    ("url", "options", "package", "extra"),
    [
        ("s3://b/x", {}, "s3fs", "sources-s3"),
        ("gs://b/x", {}, "gcsfs.core", "sources-gcs"),
        ("az://b/x", {"account_name": "x"}, "azure.storage.blob", "sources-azure"),
        ("sftp://h/x", {"host_key": HOST_KEY}, "paramiko", "sources-sftp"),
        ("webdavs://h/x", {}, "webdav4.client", "sources-webdav"),
        ("smb://h/share", {"username": "a", "password": "b"}, "smbclient", "sources-smb"),
    ],
)
def test_a_missing_package_is_named_by_its_extra(
    url: str, options: dict[str, str], package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Python has it where a package is not installed; what imports it is imported again.
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("s3_buckets", "google_buckets", "blobs", "secure_shell", "webdav", "shares"):
        monkeypatch.delitem(sys.modules, f"ingest.sources.{module}", raising=False)
    with pytest.raises(BackendMissing, match=re.escape(f"strongroom[{extra}]")):
        check_backend(read_address(url, options))


def test_sftp_needs_the_hosts_key() -> None:
    with pytest.raises(SourceRefused, match="ssh-keyscan"):
        check_backend(read_address("sftp://h/x", {"username": "a", "password": "b"}))


@pytest.mark.parametrize(
    ("url", "options", "reason"),
    [
        ("s3://b", {"key": "x"}, "both key and secret"),
        ("az://b", {"account_key": "eA=="}, "needs account_name"),
        ("az://b", {"account_name": "x", "account_key": "?"}, "not Base64"),
        ("az://b", {"account_name": "x", "client_id": "x"}, "tenant_id"),
        ("sftp://h/x", {"host_key": "ssh-ed25519 AA"}, "host_key cannot be read"),
        ("sftp://h/x", {"host_key": "none"}, "ssh-keyscan"),
        ("smb://h/share", {}, "username and password"),
        ("smb://h/", {"username": "a", "password": "b"}, "name a share"),
    ],
)
def test_options_that_cannot_work_are_refused_when_they_are_given(
    url: str, options: dict[str, str], reason: str
) -> None:
    with pytest.raises(SourceRefused, match=reason):
        check_backend(read_address(url, options))


@pytest.mark.parametrize(
    "token",
    [
        "/etc/passwd",
        "cloud",
        "[]",
        '{"type": "external_account", "credential_source": {"file": "/etc/passwd"}}',
        '{"type": "service_account", "token_uri": "http://169.254.169.254/"}',
    ],
)
def test_google_credentials_that_lead_elsewhere_are_refused(token: str) -> None:
    with pytest.raises(SourceRefused, match="service account"):
        check_backend(read_address("gs://b", {"token": token}))
