"""Lets this process, and all that it starts, see only some folders: Linux's Landlock, by its three system calls.

The numbers are of the kernel's `include/uapi/linux/landlock.h`; the calls have the same numbers on every
architecture. A kernel without Landlock, or one that keeps it off, is told by `restrict` and changes nothing.
"""

import ctypes
import os
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path

_CREATE_RULESET = 444
_ADD_RULE = 445
_RESTRICT_SELF = 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1

_EXECUTE = 1 << 0
_WRITE_FILE = 1 << 1
_READ_FILE = 1 << 2
_READ_DIR = 1 << 3
_REMOVE_FILE = 1 << 5
_MAKE_SOCK = 1 << 9
_TRUNCATE = 1 << 14
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_FILESYSTEM_RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Each newer ABI knows all that the older ones do: moving between folders, truncating, device control."""
_TCP_RIGHTS = 0b11
_TCP_ABI = 4
_SCOPES = 0b11
"""No abstract sockets and no signals to processes outside."""
_SCOPES_ABI = 6


class Access(IntEnum):
    """What may be done with a file, or with a folder and all that is in it."""

    LIST = _READ_DIR
    """Its names are seen."""
    READ = _READ_FILE | _READ_DIR | _EXECUTE
    """Files are read and run."""
    SOCKETS = _MAKE_SOCK | _REMOVE_FILE
    """Sockets are made and, as any file, removed; nothing is read or written."""
    ALL = (1 << 64) - 1


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def restrict(libc: ctypes.CDLL, allowed: Mapping[Path, Access]) -> bool:
    """Leaves only these files and folders; True when the kernel holds the process to that.

    What does not exist is passed over. Needs `no_new_privs`. TCP and signals to others are taken away as well
    where the kernel can.
    """
    abi = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)
    if abi < 1:
        return False
    every_right = _FILESYSTEM_RIGHTS_BY_ABI[max(known for known in _FILESYSTEM_RIGHTS_BY_ABI if known <= abi)]
    rules = _Ruleset(
        every_right,
        _TCP_RIGHTS if abi >= _TCP_ABI else 0,
        _SCOPES if abi >= _SCOPES_ABI else 0,
    )
    # Older kernels take a longer structure, too, as long as what they do not know is zero.
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(ctypes.sizeof(rules)), 0)
    if ruleset < 0:
        return False
    try:
        for path, access in allowed.items():
            _allow(libc, ruleset, path, access & every_right)
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    try:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = _PathBeneath(rights if path.is_dir() else rights & _OF_FILES, folder)
        if libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0) != 0:
            raise OSError(ctypes.get_errno(), f"Landlock does not take {path}.")
    finally:
        os.close(folder)
