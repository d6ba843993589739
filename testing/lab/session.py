"""One lab from boot to clean-up."""

from __future__ import annotations

import contextlib
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

from . import accel, console, host, initramfs, kernel
from .common import EXIT_KERNEL, EXIT_VM, cache_dir, locked, missing, say, tool, usage
from .lan import TAP_NAME, Tap
from .options import Options
from .qemu import Machine, Nic, Share
from .relay import Relay
from .server import Server
from .vm import Job, Vm

PAIR = {"a": "10.78.0.1", "b": "10.78.0.2"}
"""The VMs of `lab pair` and their addresses on the replication link"""

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
    with locked(cache):
        found = kernel.find(cache)
        image = initramfs.build(found, cache)
        probe = Machine(found, image, "kvm", name="probe", arguments="lab.probe=1").probe()
        return Machine(found, image, accel.choose(wanted_accel, cache, image, probe))


class Session:
    """The VMs, their results directory, and the lab's temporary directory."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.vms: dict[str, Vm] = {}
        self._relay: Relay | None = None
        self._tap: Tap | None = None
        self._start = time.monotonic()
        # Not below a long TMPDIR: a unix socket's path has 107 bytes.
        parent = tempfile.gettempdir()
        self.run = Path(tempfile.mkdtemp(prefix="lab.", dir=parent if len(parent) < 60 else "/tmp"))
        self.out = Path(options.out).absolute() if options.out else self.run / "out"
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._events = open(self.out / "events.log", "a", buffering=1)
        except OSError as error:
            shutil.rmtree(self.run, ignore_errors=True)
            raise usage(f"--out {self.out}: {error.strerror}") from error
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
        if self.options.verb == "pair":
            self._lay_wires()
            for name, ip in PAIR.items():
                self.vms[name] = self._make_vm(template, name, self._nics(name), f"lab.ip={ip}")
        else:
            self.vms["vm"] = self._make_vm(template, "vm", [], "")
        for vm in self.vms.values():
            vm.start()
        for vm in self.vms.values():
            vm.wait_ready()
        self.event("up", boot_s=round(time.monotonic() - self._start, 2))

    def _lay_wires(self) -> None:
        """Relay, LAN, and the socket for the verbs."""
        if self.options.lan:
            self._tap = Tap(self.options.lan_netns)
        self._relay = Relay(self.run, self.options.seed, self._tap.descriptor if self._tap else None)
        self._relay.start()
        Server(self, self._relay, self.run / "lab.sock").start()

    def _nics(self, name: str) -> list[Nic]:
        """eth0 is the replication link, eth1 the LAN port."""
        number = f"{list(PAIR).index(name) + 1:02x}"
        nics = [Nic("eth0", self.run / f"n.{name}", self.run / f"r.{name}", f"52:54:00:77:00:{number}")]
        if self.options.lan:
            nics.append(Nic("eth1", self.run / f"m.{name}", self.run / f"h.{name}", f"52:54:00:77:01:{number}"))
        return nics

    def _make_vm(self, template: Machine, name: str, nics: list[Nic], arguments: str) -> Vm:
        """A VM of this session, not started."""
        directory = self.out / name
        jobs = directory / "jobs"
        jobs.mkdir(parents=True, exist_ok=True)
        shares = [Share("root", Path("/"), read_only=True), Share("spool", directory)]
        writable = [Share(f"rw{at}", Path(path)) for at, path in enumerate(self.options.rw)]
        (jobs / "shares").write_text("".join(f"{share.tag} {share.path}\n" for share in writable))
        machine = Machine(
            template.kernel, template.initramfs, template.accel, name=name, cpus=self.options.cpus,
            memory_mib=self.options.mem, nics=nics, shares=shares + writable,
            arguments=f"lab.name={name} lab.mtu={self.options.mtu} lab.modules={template.kernel.modules} {arguments}")
        return Vm(machine, directory, self.run / name, self.event, float(os.environ.get("LAB_BOOT_TIMEOUT", "120")),
                  with_tty=self.options.verb == "shell")

    def run_inside(self) -> int:
        """`lab run`: the command in the VM."""
        vm = self.vms["vm"]
        job = vm.submit(self.options.command, self.options.env, os.getcwd())
        return vm.follow(job, sys.stdout.buffer, sys.stderr.buffer, self.options.timeout)

    def run_outside(self) -> int:
        """`lab pair`: the command on this machine, with `lab` in its PATH."""
        programs = self.run / "bin"
        programs.mkdir()
        (programs / "lab").symlink_to(Path(__file__).resolve().parents[2] / "scripts" / "lab")
        environment = {
            **os.environ, "LAB_SOCK": str(self.run / "lab.sock"), "LAB_OUT": str(self.out),
            "LAB_A": PAIR["a"], "LAB_B": PAIR["b"], "PATH": f"{programs}:{os.environ.get('PATH', '')}"}
        if self.options.lan:
            environment["LAB_LAN"] = TAP_NAME
            environment["LAB_LAN_NETNS"] = self.options.lan_netns or ""
        return host.call(self.options.command, {**environment, **self.options.env}, self.options.timeout)

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
        with contextlib.ExitStack() as steps:  # last in, first out, whatever fails
            steps.callback(shutil.rmtree, self.run, ignore_errors=True)
            steps.callback(self._close_events)
            if self._tap:
                steps.callback(self._tap.close)
            if self._relay:
                steps.callback(self._relay.stop)
            for vm in self.vms.values():
                steps.callback(vm.stop)

    def _close_events(self) -> None:
        with self._events_lock:
            self._events.close()


def run(options: Options) -> int:
    """Runs a lab: the verbs run, shell and pair."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        template = prepare(options.accel)
        session = Session(options)
        try:
            start = time.monotonic()
            session.boot(template)
            up = time.monotonic()
            verbs = {"run": session.run_inside, "shell": session.run_shell, "pair": session.run_outside}
            code = verbs[options.verb]()
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
