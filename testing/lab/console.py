"""What a VM's kernel complains of on its console."""

from __future__ import annotations

import re
from pathlib import Path

COMPLAINT = re.compile(
    r"\[ cut here \]|kernel BUG at|BUG: unable to handle|BUG: kernel NULL|BUG: KASAN|BUG: KFENCE|UBSAN:"
    r"|BUG: scheduling while atomic|general protection fault|Oops: |Kernel panic|refcount_t: ")
"""Soft lockups and RCU stalls are not among them: a busy machine, or a frozen VM, makes them."""

SHOWN = 40
"""Lines shown from the first complaint on."""


def complaint(log: Path) -> list[str]:
    """The lines from the first complaint of a console log on, or nothing."""
    lines = log.read_text(errors="replace").splitlines()
    for at, line in enumerate(lines):
        if COMPLAINT.search(line):
            return lines[at:at + SHOWN]
    return []


def tail(log: Path, lines: int = 30) -> str:
    """The end of a console log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
