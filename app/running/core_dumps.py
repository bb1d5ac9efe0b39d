"""Keeps what is in a process's memory, and in that of its children, out of core dumps."""

import resource


def forbid_core_dumps() -> None:
    """A limit of one byte, as the kernel takes no notice of 0 where dumps are piped to a program (core(5))."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 0 if most == 0 else 1
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
