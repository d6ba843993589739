"""Exit codes, messages and the cache directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

EXIT_USAGE = 2
"""Wrong arguments."""
EXIT_MISSING = 6
"""Something the lab needs is not on this machine; the message has the remedy."""
EXIT_TIMEOUT = 124
"""The command took longer than --timeout."""
EXIT_VM = 125
"""A VM died or never came up."""
EXIT_KERNEL = 126
"""A VM's kernel complained (WARN, oops, panic)."""


class LabError(Exception):
    """Ends the lab with a message and an exit code."""

    def __init__(self, message: str, code: int = EXIT_VM) -> None:
        super().__init__(message)
        self.code = code


def missing(message: str) -> LabError:
    """The error for a prerequisite that this machine lacks."""
    return LabError(message, EXIT_MISSING)


def usage(message: str) -> LabError:
    """The error for wrong arguments."""
    return LabError(message, EXIT_USAGE)


def say(message: str) -> None:
    """Prints one line about the lab itself, on stderr."""
    print(f"lab: {message}", file=sys.stderr, flush=True)


def cache_dir() -> Path:
    """Where the kernel and the initramfs are kept; made if need be."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(os.environ.get("LAB_CACHE") or os.path.join(base, "afterimage-lab")).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise missing(f"cannot make the cache {path}: {error.strerror}. Set LAB_CACHE") from error
    return path


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Only one lab at a time fills the cache; the others wait and find it full."""
    try:
        file = open(cache / "lock", "w")
    except OSError as error:
        raise missing(f"cannot write the cache {cache}: {error.strerror}. Set LAB_CACHE") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def tool(name: str) -> str | None:
    """Full path of a program, also where PATH lacks the system directories."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
