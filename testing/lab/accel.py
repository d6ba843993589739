"""KVM or TCG, and the guest's clock.

/dev/kvm may be there and yet not boot a stock kernel (nested virtualisation
without all it takes). So it is tried, once per boot of this machine.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import threading
import time
from pathlib import Path

from .common import say

PROBE_S = 20
RDTSC = bytes.fromhex("0f31" "48c1e220" "4809d0" "c3")
"""x86 code of a function: rdtsc; shl rdx, 32; or rax, rdx; ret"""


def choose(wanted: str, cache: Path, initramfs: Path, probe_command: list[str]) -> str:
    """``kvm`` or ``tcg``: as wanted, or for ``auto`` what a trial shows.

    ``probe_command`` boots the VM under KVM with ``lab.probe=1`` and its console on stdout.
    """
    if wanted != "auto":
        return wanted
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = cache / f"accel-{boot[:8]}-{initramfs.stem[-12:]}"
    if known.exists():
        return known.read_text()
    start = time.monotonic()
    found = "kvm" if _boots(probe_command) else "tcg"
    remark = "" if found == "kvm" else " (/dev/kvm is there but does not boot this kernel)"
    say(f"KVM probe: {found}, {time.monotonic() - start:.1f} s{remark}")
    known.write_text(found)
    return found


def _boots(command: list[str]) -> bool:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    killer = threading.Timer(PROBE_S, process.kill)
    killer.start()
    try:
        output = process.stdout.read()
        process.wait()
    finally:
        killer.cancel()
        process.kill()
    return b"LAB-PROBE-OK" in output


def clock_arguments() -> str:
    """Kernel arguments that give a TCG guest a sane and quick clock.

    TCG's time stamp counter is this machine's. The guest would calibrate it
    against an emulated timer chip, and on a busy machine came out wrong by a
    factor of 4. So it is measured here and told to the kernel. Where that fails,
    the guest takes the slow HPET, which is right.
    """
    if os.environ.get("LAB_TSC") == "hpet":
        return ""
    try:
        khz = _tsc_khz()
    except (OSError, ValueError, AttributeError) as error:
        say(f"cannot measure this machine's TSC ({error}): the guests use the HPET")
        return ""
    return f"tsc=reliable tsc_early_khz={khz}"


def _tsc_khz() -> int:
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(RDTSC)
    rdtsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))

    def sample() -> tuple[float, int]:
        """Time in ns and counter, from the try that was disturbed least."""
        tries = []
        for _ in range(50):
            before = time.monotonic_ns()
            count = rdtsc()
            after = time.monotonic_ns()
            tries.append((after - before, (before + after) / 2, count))
        _, at, count = min(tries)
        return at, count

    at0, count0 = sample()
    time.sleep(0.1)
    at1, count1 = sample()
    return round((count1 - count0) / (at1 - at0) * 1e6)
