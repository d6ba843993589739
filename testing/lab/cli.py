"""The command line of scripts/lab."""

from __future__ import annotations

import argparse
import os
import sys

from . import client, host, session
from .common import EXIT_USAGE, LabError, cache_dir, say
from .options import Options
from .server import VERBS

HELP = """\
SoftRoCE lab: RDMA without RDMA hardware, in QEMU virtual machines (docs/LAB.md).

  lab setup                  fetch the kernel, build the initramfs, probe KVM
  lab run [opts] -- CMD      CMD in one VM: rxe0 (10.77.1.1) and rxe1 (10.77.1.2) on a wire
  lab run --host -- CMD      CMD on this machine, which has RDMA devices itself
  lab shell [opts]           a shell in such a VM
  lab pair [opts] -- CMD     two VMs, a (10.78.0.1) and b (10.78.0.2), rxe0 each, on a wire
                             with faults; CMD runs on this machine, with `lab` in its PATH

Verbs for CMD of a pair:

""" + "".join(f"  lab {form}\n" for form in VERBS.values())

EXIT_CODES = """\
Exit code: CMD's own; 2 wrong arguments; 6 something is missing here; 124 timeout;
125 a VM died or never came up; 126 a VM's kernel complained (WARN, oops).
The VMs see this machine's files read-only; what they write elsewhere than in
$LAB_OUT and the --rw directories is gone at the end. CMD's stdin is empty.
"""

def parser() -> argparse.ArgumentParser:
    """The parser for the verbs that start a lab; what follows ``--`` is cut off before."""
    root = argparse.ArgumentParser(prog="lab", description=HELP, epilog=EXIT_CODES, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = root.add_subparsers(dest="verb", required=True, metavar="VERB")
    accel = argparse.ArgumentParser(add_help=False)
    accel.add_argument("--accel", choices=("auto", "kvm", "tcg"), default=os.environ.get("LAB_ACCEL", "auto"))
    verbs.add_parser("setup", parents=[accel], help="fetch, build, probe")
    machine = argparse.ArgumentParser(add_help=False, parents=[accel], allow_abbrev=False)
    machine.add_argument("--cpus", type=positive, default=2, metavar="N", help="of each VM (2)")
    machine.add_argument("--mem", type=positive, default=1024, metavar="MIB", help="memory of each VM (1024)")
    machine.add_argument("--mtu", type=positive, default=4200, metavar="BYTES", help="of the wire (4200)")
    machine.add_argument("--out", metavar="DIR", help="keep consoles, events.log and $LAB_OUT here")
    machine.add_argument("--rw", action="append", default=[], type=directory, metavar="DIR",
                         help="a directory that the VMs may write")
    machine.add_argument("--env", action="append", default=[], type=assignment, metavar="NAME[=VALUE]",
                         help="set for CMD; without a value, the one here")
    machine.add_argument("--timeout", type=seconds, metavar="S", help="for CMD")
    machine.add_argument("--allow-warnings", action="store_true", help="a kernel's complaint is no failure")
    machine.add_argument("--quiet", action="store_true", help="no line about times at the end")
    run = verbs.add_parser("run", parents=[machine], help="CMD in one VM")
    run.add_argument("--host", action="store_true", help="no VM: this machine has RDMA devices")
    verbs.add_parser("shell", parents=[machine], help="a shell in one VM")
    pair = verbs.add_parser("pair", parents=[machine], help="CMD here, beside two VMs")
    pair.add_argument("--seed", type=int, default=1, metavar="N", help="of the link's chance (1)")
    pair.add_argument("--lan", action="store_true", help="eth1 in both VMs on a hub with a TAP device here (root)")
    pair.add_argument("--lan-netns", metavar="NAME", help="the TAP device in this network namespace")
    return root


def positive(text: str) -> int:
    """A whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def seconds(text: str) -> float:
    """A time above 0."""
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is no time in seconds")
    return value


def directory(text: str) -> str:
    """A directory that exists, as an absolute path."""
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text} is no directory")
    return os.path.abspath(text)


def assignment(text: str) -> tuple[str, str]:
    """NAME=VALUE, or NAME for the value it has here."""
    name, equals, value = text.partition("=")
    if not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    if not equals and name not in os.environ:
        raise argparse.ArgumentTypeError(f"{name} is not set here")
    return name, value if equals else os.environ[name]


def parse(argv: list[str]) -> Options:
    """Options from the command line; exits with 2 and a message when they are wrong."""
    command: list[str] = []
    if "--" in argv:
        at = argv.index("--")
        argv, command = argv[:at], argv[at + 1:]
    arguments = parser()
    given = vars(arguments.parse_args(argv))
    options = Options(**{**given, "env": dict(given.get("env", [])), "command": command})
    if options.verb in ("run", "pair") and not command:
        arguments.error(f"nothing to run: lab {options.verb} [opts] -- CMD")
    if options.verb in ("setup", "shell") and command:
        arguments.error(f"lab {options.verb} takes no command")
    if options.lan_netns is not None and not options.lan:
        arguments.error("--lan-netns is for --lan")
    return options


def main(argv: list[str]) -> int:
    """Runs the lab; returns the exit code."""
    try:
        if argv and argv[0] in VERBS:
            return client.call(argv)
        options = parse(argv)
        if options.verb == "setup":
            machine = session.prepare(options.accel)
            say(f"ready: kernel {machine.kernel.version}, {machine.accel}, in {cache_dir()}")
            return 0
        return host.run(options) if options.host else session.run(options)
    except LabError as error:
        say(str(error))
        return error.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output is gone; Python's own flush at exit would say so too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_USAGE
