"""`lab run --host`: no VM, where this machine has RDMA devices itself."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from pathlib import Path

from .common import EXIT_KERNEL, EXIT_TIMEOUT, missing, say, usage
from .console import COMPLAINT
from .options import Options

DEVICES = Path("/sys/class/infiniband")


def run(options: Options) -> int:
    """Runs the command here, in the environment that it has in a VM."""
    devices = sorted(path.name for path in DEVICES.iterdir()) if DEVICES.is_dir() else []
    if not devices:
        raise missing("this machine has no RDMA device (`rdma link` lists none): leave out --host, or as root "
                      "`modprobe rdma_rxe && rdma link add rxe0 type rxe netdev ETH`")
    out = Path(options.out or ".").absolute()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise usage(f"--out {out}: {error.strerror}") from error
    _lift_memlock()
    complaints = _kernel_log()
    if not options.quiet:
        say(f"on this machine, with {', '.join(devices)}")
    environment = {**os.environ, "LAB": "1", "LAB_HOST": "host", "LAB_OUT": str(out), **options.env}
    code = call(options.command, environment, options.timeout)
    lines = _new_complaints(complaints)
    if lines and not options.allow_warnings:
        say("this machine's kernel complained (--allow-warnings to let it pass):\n" + "\n".join(lines))
        return EXIT_KERNEL
    return code


def call(command: list[str], environment: dict[str, str], timeout: float | None) -> int:
    """Runs a command on this machine; at the timeout, or when the lab is interrupted, its process group ends."""
    # At a terminal it stays in our group, or it could not read.
    own_group = not os.isatty(0)
    try:
        process = subprocess.Popen(command, env=environment, start_new_session=own_group)
    except OSError as error:
        say(f"{command[0]}: {error.strerror}")
        return 127 if isinstance(error, FileNotFoundError) else 126
    try:
        code = process.wait(timeout)
        return code if code >= 0 else 128 - code
    except subprocess.TimeoutExpired:
        return EXIT_TIMEOUT
    finally:
        if process.returncode is None:
            _end(process, own_group)


def _end(process: subprocess.Popen[bytes], own_group: bool) -> None:
    """TERM, two seconds, KILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            if own_group:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            process.wait(2)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _lift_memlock() -> None:
    """RDMA memory is locked memory. Without the right to lift the limit it stays as it is."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        say(f"the limit of locked memory stays {limit} bytes (ulimit -l; root may lift it)")


def _kernel_log() -> int | None:
    """/dev/kmsg, placed at its end; None where this user may not read it."""
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    os.lseek(log, 0, os.SEEK_END)
    return log


def _new_complaints(log: int | None) -> list[str]:
    """Lines since `_kernel_log` from the first complaint on."""
    if log is None:
        return []
    lines: list[str] = []
    while True:
        try:
            record = os.read(log, 8192).decode(errors="replace")
        except BrokenPipeError:
            continue  # records were overwritten
        except OSError:
            break
        text = record.partition(";")[2].split("\n")[0]
        if lines or COMPLAINT.search(text):
            lines.append(text)
    os.close(log)
    return lines[:40]
