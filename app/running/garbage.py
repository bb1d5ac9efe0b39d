"""Keeps Python's garbage collector from what lives as long as the process."""

import gc


def settle() -> None:
    """For a process that has loaded its libraries: their half a million objects are not looked at again.

    Each full collection would, which stops everything for some tenths of a second: a query's budget many times over.
    """
    gc.collect()
    gc.freeze()
