"""The master key: where it comes from, the root key that it opens, and how it is changed without rewriting data.

All that lies on disk is encrypted under keys that hang on the root key. `keys/root.key` holds that, wrapped under the
master key, which is a file of its own, a setting, or what a command prints.
"""

import hashlib
import shlex
import subprocess
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from app.access.key_files import KeysUnusable, check_private, replace_file, write_once
from app.settings import EncryptionSettings
from retrieval.data_keys import KEY_BYTES, WrongKey, decrypt, derived, encrypt, new_key

ROOT_FILE = "root.key"
MASTER_FILE = "master.key"
COMMAND_S = 30.0
FEWEST_VALUES = 12
"""Different bytes in a key: of 32 random ones, so few are less likely than to guess the key."""
_OWNER = "root key"


@dataclass(frozen=True)
class _Master:
    key: bytes
    place: str
    """Where it came from, for messages."""

    @property
    def id(self) -> str:
        """Tells master keys apart, and nothing of them."""
        return hashlib.sha256(derived(self.key, "master key id")).hexdigest()[:12]


def make_root_key(settings: EncryptionSettings, keys_dir: Path, *, is_new: bool) -> bytes:
    """The root key, made in an `is_new` data folder. Raises KeysUnusable."""
    path = keys_dir / ROOT_FILE
    if not path.exists():
        if not is_new:
            raise KeysUnusable(
                f"{path} is missing, and the data folder is encrypted: put that file back, from a backup."
            )
        if not (settings.master_key or settings.master_key_command):
            write_once(_master_file(settings, keys_dir), new_key().hex())
        master = _master(settings, keys_dir)
        write_once(path, _wrapped({master.id: encrypt(master.key, new_key(), owner=_OWNER)}))
    return read_root_key(settings, keys_dir)


def read_root_key(settings: EncryptionSettings, keys_dir: Path) -> bytes:
    """Raises KeysUnusable."""
    path = keys_dir / ROOT_FILE
    if not path.exists():
        raise KeysUnusable(f"{path} is missing: run `strongroom migrate` first.")
    check_private(path)
    return _unwrapped(path, _master(settings, keys_dir))


def rotate_master(settings: EncryptionSettings, keys_dir: Path, *, new_key_file: Path | None) -> str:
    """Wraps the root key under another master key, and says what is left to do. Raises KeysUnusable.

    A master key that we made is replaced by one that we make. One that comes from elsewhere is the owner's to change:
    `new_key_file` holds the new one.
    """
    path, root = keys_dir / ROOT_FILE, read_root_key(settings, keys_dir)
    is_ours = not (settings.master_key or settings.master_key_command)
    if new_key_file is not None:
        new = _Master(_parsed(_read_private(new_key_file), str(new_key_file)), str(new_key_file))
        replace_file(path, _wrapped({new.id: encrypt(new.key, root, owner=_OWNER)}))
        return (
            f"The root key is now under the master key {new.id}. From now on every start needs that one: set it "
            "in the place of the old."
        )
    if not is_ours:
        raise KeysUnusable(
            "The master key comes from a setting or a command: make the new one there, and give its file with --new."
        )
    old, new = _master(settings, keys_dir), _Master(new_key(), str(_master_file(settings, keys_dir)))
    both = {each.id: encrypt(each.key, root, owner=_OWNER) for each in (old, new)}
    # Under both, until the file has changed: whatever happens in between, the file that is there opens it.
    replace_file(path, _wrapped(both))
    replace_file(_master_file(settings, keys_dir), new.key.hex())
    replace_file(path, _wrapped({new.id: both[new.id]}))
    return f"The master key is changed: {new.place} holds {new.id}, {old.id} opens nothing any more."


def root_key_of(settings: EncryptionSettings, keys_dir: Path, wrapped: Path) -> bytes:
    """Of a root key's file elsewhere, such as in a backup. Raises KeysUnusable."""
    return _unwrapped(wrapped, _master(settings, keys_dir))


def master_key_text(settings: EncryptionSettings, keys_dir: Path) -> str:
    """For a backup that should open by itself. Raises KeysUnusable."""
    return _master(settings, keys_dir).key.hex()


def _master_file(settings: EncryptionSettings, keys_dir: Path) -> Path:
    return Path(settings.master_key_file) if settings.master_key_file else keys_dir / MASTER_FILE


def _master(settings: EncryptionSettings, keys_dir: Path) -> _Master:
    if settings.master_key:
        place = "encryption.master_key"
        return _Master(_parsed(settings.master_key, place), place)
    if settings.master_key_command:
        place = "encryption.master_key_command"
        return _Master(_parsed(_printed(settings.master_key_command), place), place)
    path = _master_file(settings, keys_dir)
    return _Master(_parsed(_read_private(path), str(path)), str(path))


def _read_private(path: Path) -> str:
    try:
        check_private(path)
        return path.read_text()
    except FileNotFoundError as error:
        raise KeysUnusable(
            f"The master key {path} is missing. Without it nothing in this data folder can be read: put it back, "
            "or name where it is with encryption.master_key_file."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise KeysUnusable(f"The master key {path} cannot be read ({type(error).__name__}).") from error


def _printed(command: str) -> str:
    try:
        done = subprocess.run(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise KeysUnusable(f"encryption.master_key_command did not run ({type(error).__name__}).") from error
    if done.returncode != 0:
        raise KeysUnusable(f"encryption.master_key_command ended with status {done.returncode}.")
    return done.stdout


def _parsed(told: str, place: str) -> bytes:
    """64 hexadecimal digits, or base64. Never repeats the key in a message."""
    text = told.strip()
    try:
        key = bytes.fromhex(text) if len(text) == 2 * KEY_BYTES else b64decode(text, validate=True)
    except (ValueError, NotBase64):
        key = b""
    if len(key) != KEY_BYTES:
        raise KeysUnusable(
            f"{place} is no key: give 64 hexadecimal digits, as `openssl rand -hex 32` prints them."
        )
    if len(set(key)) < FEWEST_VALUES:
        raise KeysUnusable(f"{place} is no random key: make one with `openssl rand -hex 32`.")
    return key


def _wrapped(keys: Mapping[str, bytes]) -> str:
    return orjson.dumps({each: b64encode(wrapped).decode() for each, wrapped in keys.items()}).decode()


def _unwrapped(path: Path, master: _Master) -> bytes:
    try:
        wrapped = {each: b64decode(key) for each, key in orjson.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise KeysUnusable(f"{path} is damaged: put it back from a backup.") from error
    if master.id not in wrapped:
        raise KeysUnusable(
            f"{master.place} holds the master key {master.id}, but this data folder lies under "
            f"{' or '.join(wrapped)}: give that one."
        )
    try:
        return decrypt(master.key, wrapped[master.id], owner=_OWNER)
    except WrongKey as error:
        raise KeysUnusable(f"{path} is damaged: put it back from a backup.") from error
