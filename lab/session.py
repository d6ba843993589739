"""One lab from boot to clean-up."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import termios
import threading
import time
import tty
from pathlib import Path
from types import FrameType
from typing import Any

from . import accel, console, initramfs, kernel
from .common import EXIT_KERNEL, EXIT_VM, LabError, cache_dir, missing, say, tool
from .options import Options
from .qemu import Machine, Share
from .vm import Job, Vm

DETACH = b"\x1d"
"""ctrl-]: leaves `lab shell`."""


class Interrupted(Exception):
    """SIGINT, SIGTERM or SIGHUP; the number is the argument."""


def interrupt(number: int, _frame: FrameType | None) -> None:
    """Signal handler: turns the first signal into an exception, so that everything is cleaned up."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise Interrupted(number)


def prepare(wanted_accel: str) -> Machine:
    """What all VMs share: kernel, initramfs, accelerator. Fetches and builds what the cache lacks."""
    if os.uname().sysname != "Linux" or os.uname().machine != "x86_64":
        raise missing("the lab runs on Linux on x86_64 only")
    for name in ("ip", "rdma"):
        if not tool(name):
            raise missing(f"{name} is missing, which the VMs use from here: install iproute2")
    cache = cache_dir()
    found = kernel.find(cache)
    image = initramfs.build(found, cache)
    probe = Machine(found, image, "kvm", name="probe", arguments="lab.probe=1").probe()
    return Machine(found, image, accel.choose(wanted_accel, cache, image, probe))


class Session:
    """The VMs, their results directory, and the lab's temporary directory."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.vms: dict[str, Vm] = {}
        self._start = time.monotonic()
        # Not below a long TMPDIR: a unix socket's path has 107 bytes.
        parent = tempfile.gettempdir()
        self.run = Path(tempfile.mkdtemp(prefix="lab.", dir=parent if len(parent) < 60 else "/tmp"))
        self.out = Path(options.out).absolute() if options.out else self.run / "out"
        self.out.mkdir(parents=True, exist_ok=True)
        self._events = open(self.out / "events.log", "a", buffering=1)
        self._events_lock = threading.Lock()
        self._closed = False

    def event(self, what: str, host: str = "", **details: Any) -> None:
        """Appends a line to events.log: JSON, with seconds since the epoch."""
        line = json.dumps({"t": round(time.time(), 6), "event": what, "host": host, **details})
        with self._events_lock:
            if not self._events.closed:
                self._events.write(line + "\n")
        if what == "exit" and not details["asked"] and not self._closed:
            say(f"VM {host} died")

    def boot(self, template: Machine) -> None:
        """Starts the VMs and waits for them."""
        self._start = time.monotonic()
        self.vms["vm"] = self.make_vm(template, "vm", "")
        for vm in self.vms.values():
            vm.start()
        for vm in self.vms.values():
            vm.wait_ready()
        self.event("up", boot_s=round(time.monotonic() - self._start, 2))

    def make_vm(self, template: Machine, name: str, arguments: str) -> Vm:
        """A VM of this session, not started."""
        directory = self.out / name
        jobs = directory / "jobs"
        jobs.mkdir(parents=True, exist_ok=True)
        shares = [Share("root", Path("/"), read_only=True), Share("spool", directory)]
        writable = [Share(f"rw{at}", Path(path)) for at, path in enumerate(self.options.rw)]
        (jobs / "shares").write_text("".join(f"{share.tag} {share.path}\n" for share in writable))
        machine = Machine(
            template.kernel, template.initramfs, template.accel, name=name, cpus=self.options.cpus,
            memory_mib=self.options.mem, shares=shares + writable,
            arguments=f"lab.name={name} lab.mtu={self.options.mtu} lab.modules={template.kernel.modules} {arguments}")
        return Vm(machine, directory, self.run / name, self.event, float(os.environ.get("LAB_BOOT_TIMEOUT", "120")),
                  with_tty=self.options.verb == "shell")

    def run_inside(self) -> int:
        """`lab run`: the command in the VM."""
        vm = self.vms["vm"]
        job = vm.submit(self.options.command, self.options.env, os.getcwd())
        return vm.follow(job, sys.stdout.buffer, sys.stderr.buffer, self.options.timeout)

    def run_shell(self) -> int:
        """`lab shell`: this terminal on the VM's serial line."""
        size = shutil.get_terminal_size()
        say("a shell in the VM; leave it with `exit` or ctrl-]")
        connect_terminal(self.run / "vm" / "tty", self.vms["vm"].terminal(size.lines, size.columns))
        return 0

    def verdict(self, code: int) -> int:
        """The lab's exit code for the command's: complaints of a kernel and unasked deaths count."""
        for vm in self.vms.values():
            complaints = [lines for log in vm.consoles if (lines := console.complaint(log))]
            if complaints and not self.options.allow_warnings:
                say(f"the kernel of VM {vm.name} complained (--allow-warnings to let it pass):")
                print("\n".join(complaints[0]), file=sys.stderr)
                code = EXIT_KERNEL
            elif not vm.running and not vm.asked_to_die and code in (0, EXIT_VM):
                say(f"VM {vm.name} died unasked; the end of its console:\n{console.tail(vm.console)}")
                code = EXIT_VM
        return code

    def close(self) -> None:
        """Ends the VMs and removes what is temporary."""
        self._closed = True
        for vm in self.vms.values():
            vm.stop()
        with self._events_lock:
            self._events.close()
        shutil.rmtree(self.run, ignore_errors=True)


def run(options: Options) -> int:
    """Runs a lab: the verbs run and shell."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        template = prepare(options.accel)
        session = Session(options)
        try:
            start = time.monotonic()
            session.boot(template)
            up = time.monotonic()
            code = session.run_shell() if options.verb == "shell" else session.run_inside()
            if not options.quiet:
                say(f"kernel {template.kernel.version}, {template.accel}; boot {up - start:.1f} s, "
                    f"command {time.monotonic() - up:.1f} s, exit {code}")
            return session.verdict(code)
        finally:
            session.close()
    except Interrupted as interrupted:
        return 128 + int(interrupted.args[0])


def connect_terminal(path: Path, job: Job) -> None:
    """Joins stdin and stdout to a serial line until its job ends or ctrl-] comes."""
    line = socket.socket(socket.AF_UNIX)
    line.connect(str(path))
    keyboard = sys.stdin.fileno()
    saved = termios.tcgetattr(keyboard) if os.isatty(keyboard) else None
    try:
        if saved:
            tty.setraw(keyboard)
        _shuttle(line, keyboard, job)
    finally:
        if saved:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, saved)


def _shuttle(line: socket.socket, keyboard: int, job: Job) -> None:
    selector = selectors.SelectSelector()
    selector.register(line, selectors.EVENT_READ)
    listening = False
    while True:
        ready = selector.select(0.2)
        if not ready and job.over.is_set():
            return
        for key, _ in ready:
            if key.fileobj is line:
                data = line.recv(4096)
                if not data:
                    return
                os.write(sys.stdout.fileno(), data)
                if not listening:
                    # Not before its prompt: setting up the line throws away what came early
                    selector.register(keyboard, selectors.EVENT_READ)
                    listening = True
            else:
                data = os.read(keyboard, 4096)
                if DETACH in data:
                    return
                if data:
                    line.sendall(data)
                else:
                    # The end of a piped stdin: the shell's own end of file
                    selector.unregister(keyboard)
                    line.sendall(b"\x04")
