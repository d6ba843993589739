"""One virtual machine: its process, its control port, the jobs in it.

    absent --start()--> booting --"ready"--> up <--freeze()/thaw()--> frozen
      ^                    |                  |                          |
      +---- kill(), stop(), or it dies -------+--------------------------+

A job is a shell script in the spool share (jobs/ID.sh), with its output in files
beside it. The control port carries only names and exit codes, one line each (see
init.sh), so nothing that a job prints can disturb it.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from .common import EXIT_TIMEOUT, EXIT_VM, LabError, missing, tool
from .qemu import Machine, remedy

POLL_S = 0.03
CLOCK_PINGS = 10

_spawner = ThreadPoolExecutor(1)
"""Starts every QEMU: the kernel's parent-death signal follows the thread that
forked, so that thread must live as long as the lab."""


class Job:
    """One command in a VM."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.over = threading.Event()
        self.code: int | None = None
        """Exit code; None while it runs, and for ever if the VM died first."""


class Vm:
    """A VM by name. It can be started again after it died."""

    def __init__(self, machine: Machine, directory: Path, sockets: Path, event: Callable[..., None],
                 boot_s: float, with_tty: bool = False) -> None:
        self.name = machine.name
        self.asked_to_die = False
        self._machine, self._event, self._boot_s, self._with_tty = machine, event, boot_s, with_tty
        self.directory, self._sockets = directory, sockets
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ready = threading.Event()
        self._generation = 0
        self._submitted = 0
        for path in (directory / "jobs", directory / "out", sockets):
            path.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------ life and death

    @property
    def console(self) -> Path:
        """The kernel's console of the present run."""
        return self._console_of(self._generation)

    @property
    def consoles(self) -> list[Path]:
        """The consoles of all its runs."""
        return [self._console_of(run) for run in range(1, self._generation + 1)]

    def _console_of(self, run: int) -> Path:
        return self.directory / ("console.log" if run <= 1 else f"console-{run}.log")

    @property
    def running(self) -> bool:
        """Whether its process exists, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Boots it; does not wait."""
        if self.running:
            raise LabError(f"VM {self.name} runs already")
        self._generation += 1
        self.asked_to_die = False
        self._ready = threading.Event()
        for stale in [*self._sockets.iterdir(), *(nic.local for nic in self._machine.nics)]:
            stale.unlink(missing_ok=True)
        self.console.write_bytes(b"")
        command = self._machine.command(self.console, self._sockets, self._with_tty)
        if tool("setpriv"):
            # Should the lab be killed, its VMs die with it, even frozen ones.
            command = [str(tool("setpriv")), "--pdeathsig", "KILL", *command]
        with open(self.directory / "qemu.log", "ab") as log:
            self._process = _spawner.submit(
                subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True).result()
        self._event("start", self.name, pid=self._process.pid)
        threading.Thread(target=self._listen, args=(self._process, self._ready, time.monotonic()), daemon=True).start()

    def wait_ready(self) -> None:
        """Waits until jobs can run; raises if it does not come up in time."""
        self._ready.wait(self._boot_s)
        if self._ready.is_set() and self.running:
            return
        qemu = (self.directory / "qemu.log").read_text(errors="replace")[-1500:]
        if advice := remedy(qemu):
            raise missing(f"{advice}\nQEMU said: {qemu.strip()}")
        end = self.console.read_text(errors="replace")[-1500:].strip()
        why = f"in {self._boot_s:.0f} s (LAB_BOOT_TIMEOUT)" if self.running else "but died"
        raise LabError(f"VM {self.name} did not come up {why}. QEMU: {qemu.strip() or '-'}\nend of its console:\n{end}")

    def kill(self) -> None:
        """Sudden death: SIGKILL. Returns when it is gone."""
        process = self._must_run()
        self.asked_to_die = True
        process.kill()
        process.wait()

    def freeze(self) -> None:
        """Stops its process; its clock goes on."""
        self._must_run().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets a frozen one go on."""
        self._must_run().send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Orderly end, by force after 5 s."""
        if not self.running or self._process is None:
            return
        self.asked_to_die = True
        self._process.send_signal(signal.SIGCONT)
        try:
            self._send("off")
            self._process.wait(5 if self._ready.is_set() else 0.1)
        except (OSError, LabError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()

    def set_carrier(self, up: bool) -> None:
        """Plugs the replication link's cable in or out (QMP set_link)."""
        self._must_run()
        self._qmp("set_link", name="dev-eth0", up=up)

    def _must_run(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise LabError(f"VM {self.name} is not running")
        return self._process

    # ---------------------------------------------------------------------- jobs

    def submit(self, argv: list[str], environment: dict[str, str], directory: str) -> Job:
        """Starts a command, with its stdin empty."""
        self._must_run()
        with self._lock:
            self._submitted += 1
            job = Job(f"j{self._submitted}")
            self._jobs[job.name] = job
        base = self.directory / "jobs" / job.name
        base.with_suffix(".sh").write_text(job_script(job.name, argv, self._environment(environment), directory))
        for suffix in (".out", ".err"):
            base.with_suffix(suffix).write_bytes(b"")  # an earlier lab may have had the same --out
        self._send(f"run {job.name}")
        return job

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"HOME": "/root", "PATH": path, "TMPDIR": "/tmp", "LAB": "1", "LAB_HOST": self.name,
                "LAB_OUT": "/run/lab/spool/out", **more}

    def follow(self, job: Job, out: BinaryIO, err: BinaryIO, timeout: float | None = None,
               cancelled: Callable[[], bool] = lambda: False) -> int:
        """Copies a job's output as it comes. Exit code: the job's, 124 at the timeout, 125 if the VM died."""
        end = None if timeout is None else time.monotonic() + timeout
        base = self.directory / "jobs" / job.name
        with open(base.with_suffix(".out"), "rb") as job_out, open(base.with_suffix(".err"), "rb") as job_err:
            while True:
                over = job.over.wait(POLL_S)
                for source, sink in ((job_out, out), (job_err, err)):
                    if data := source.read():
                        sink.write(data)
                        sink.flush()
                if over:
                    return EXIT_VM if job.code is None else job.code
                late = end is not None and time.monotonic() > end
                if late or cancelled():
                    self._event("timeout" if late else "cancelled", self.name, job=job.name)
                    if self.running:
                        self._send(f"stop {job.name}")
                    return EXIT_TIMEOUT

    def terminal(self, rows: int, columns: int) -> Job:
        """Starts a shell on the VM's second serial line."""
        job = self._jobs["tty"] = Job("tty")
        self._send(f"tty {rows} {columns}")
        return job

    # -------------------------------------------------------------- control port

    def _send(self, line: str) -> None:
        with self._lock:
            if self._control is None:
                raise LabError(f"VM {self.name} is not up yet")
            try:
                self._control.sendall(line.encode() + b"\n")
            except OSError as error:
                raise LabError(f"VM {self.name} does not listen: {error}") from error

    def _listen(self, process: subprocess.Popen[bytes], ready: threading.Event, start: float) -> None:
        """Thread: obeys the control port of one run of the VM until its end."""
        control = socket.socket(socket.AF_UNIX)
        while process.poll() is None:
            try:
                control.connect(str(self._sockets / "ctl"))
                break
            except OSError:
                time.sleep(0.02)
        self._control = control
        clock = ClockCheck()
        try:
            for line in control.makefile("rb"):
                self._obey(line.decode(errors="replace").split(), clock, ready, start)
        except (OSError, LabError):
            pass  # it died; what follows says so
        process.wait()
        self._event("exit", self.name, code=process.returncode, asked=self.asked_to_die)
        ready.set()
        for job in list(self._jobs.values()):
            job.over.set()

    def _obey(self, words: list[str], clock: ClockCheck, ready: threading.Event, start: float) -> None:
        if words[:1] == ["ready"]:
            self._event("ready", self.name, boot_s=round(time.monotonic() - start, 2), guest_uptime_s=float(words[1]))
            # Before any job, so that no job sees the clock jump.
            self._send(f"time {time.time():.6f}")
        elif words[:1] == ["set"]:
            ready.set()
            self._send(clock.ping())
        elif words[:1] == ["timed"]:
            if clock.pong(float(words[1])):
                self._event("clock", self.name, **clock.result())
            else:
                self._send(clock.ping())
        elif words[:1] == ["done"] and (job := self._jobs.get(words[1])):
            job.code = int(words[2])
            job.over.set()

    def _qmp(self, command: str, **arguments: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            try:
                connection.connect(str(self._sockets / "qmp"))
                file = connection.makefile("rw")
                file.readline()
                reply: dict[str, Any] = {}
                for request in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                    file.write(json.dumps(request) + "\n")
                    file.flush()
                    reply = json.loads(file.readline())
                    while "event" in reply:
                        reply = json.loads(file.readline())
            except (OSError, ValueError) as error:
                raise LabError(f"QEMU of VM {self.name} does not answer (is it frozen?): {error}") from error
        if "error" in reply:
            raise LabError(f"QEMU of VM {self.name} refuses {command}: {reply['error'].get('desc')}")
        return reply["return"]


class ClockCheck:
    """How far a VM's clock is from this machine's: the best of a few round trips."""

    def __init__(self) -> None:
        self._sent = 0.0
        self._tries: list[tuple[float, float]] = []

    def ping(self) -> str:
        """The line to send; the answer comes to `pong`."""
        self._sent = time.time()
        return "now"

    def pong(self, guest: float) -> bool:
        """Takes the guest's time; whether that was the last."""
        now = time.time()
        self._tries.append((now - self._sent, guest - (now + self._sent) / 2))
        return len(self._tries) >= CLOCK_PINGS

    def result(self) -> dict[str, float]:
        """Offset and the round trip that bounds its error, in ms."""
        trip, offset = min(self._tries)
        return {"guest_minus_host_ms": round(offset * 1e3, 2), "round_trip_ms": round(trip * 1e3, 2)}


def job_script(name: str, argv: list[str], environment: dict[str, str], directory: str) -> str:
    """The script that a VM runs for a job. Only built-ins of the shell: processes are dear."""
    lines = [f"cd {shlex.quote(directory)} 2>/dev/null || cd /", f"echo $$ >/run/lab/{name}.pid",
             "ulimit -l unlimited", "ulimit -n 65536", "ulimit -c 0"]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in environment.items()]
    lines += ["exec " + shlex.join(argv), ""]
    return "\n".join(lines)
