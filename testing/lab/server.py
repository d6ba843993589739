"""The verbs that reach a running pair, over a unix socket (``LAB_SOCK``).

A request is one line of JSON, {"argv": [...], "cwd": "..."}. The reply is frames of
a kind (one byte: ``o`` stdout, ``e`` stderr, ``x`` exit code in decimal), a length
(four bytes, big endian) and so many bytes; ``x`` is the last.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from .common import EXIT_USAGE, LabError, usage
from .faults import parse_changes

if TYPE_CHECKING:
    from .relay import Relay
    from .session import Session
    from .vm import Vm

FRAME = struct.Struct("!cI")

VERBS = {
    "exec": "exec [--timeout S] HOST CMD...",
    "kill": "kill HOST",
    "freeze": "freeze HOST",
    "thaw": "thaw HOST",
    "start": "start HOST",
    "carrier": "carrier HOST up|down",
    "link": "link a>b|b>a|both clear | [port=N] cut=0|1 drop=% dup=% corrupt=% delay=MS jitter=MS rate=MBIT",
    "lan": "lan HOST cut=0|1",
    "stats": "stats",
}
"""The verbs of a running pair, and how each is written."""


class Stream:
    """A file that sends what is written as frames of one kind."""

    def __init__(self, connection: socket.socket, kind: bytes) -> None:
        self._connection, self._kind = connection, kind

    def write(self, data: bytes) -> None:
        """Sends one frame. A reader that is gone is found out by `hung_up`."""
        with contextlib.suppress(OSError):
            self._connection.sendall(FRAME.pack(self._kind, len(data)) + data)

    def flush(self) -> None:
        """Nothing is held back."""


class Server(threading.Thread):
    """Accepts requests; each has a thread of its own, as `exec` may take long."""

    def __init__(self, session: Session, relay: Relay, path: Path) -> None:
        super().__init__(daemon=True, name="server")
        self._session, self._relay = session, relay
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen(32)

    def run(self) -> None:
        """Thread: until the lab ends."""
        while True:
            connection, _ = self._socket.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                request = json.loads(connection.makefile("rb").readline())
                code = self._obey(list(request["argv"]), str(request["cwd"]), connection)
            except LabError as error:
                Stream(connection, b"e").write(f"lab: {error}\n".encode())
                code = error.code
            except (ValueError, KeyError) as error:
                Stream(connection, b"e").write(f"lab: bad request: {error!r}\n".encode())
                code = EXIT_USAGE
            Stream(connection, b"x").write(str(code).encode())

    def _obey(self, argv: list[str], cwd: str, connection: socket.socket) -> int:
        verb, words = argv[0], argv[1:]
        if verb == "exec":
            return self._exec(words, cwd, connection)
        if verb == "stats":
            _expect(verb, not words)
            Stream(connection, b"o").write(json.dumps(self._relay.stats(), indent=1).encode() + b"\n")
            return 0
        _expect(verb, bool(words))
        self._session.event(verb, words[0], arguments=words[1:])
        if verb == "link":
            self._link(words[0], words[1:])
        elif verb == "lan":
            self._lan(words[0], words[1:])
        else:
            self._power(verb, words)
        self._session.event("done", words[0], verb=verb)
        return 0

    def _vm(self, name: str) -> Vm:
        if name not in self._session.vms:
            raise usage(f"no VM {name!r}: there are {' and '.join(self._session.vms)}")
        return self._session.vms[name]

    def _power(self, verb: str, words: list[str]) -> None:
        _expect(verb, len(words) == (2 if verb == "carrier" else 1))
        vm = self._vm(words[0])
        if verb == "kill":
            vm.kill()
        elif verb == "freeze":
            vm.freeze()
        elif verb == "thaw":
            vm.thaw()
        elif verb == "start":
            vm.start()
            vm.wait_ready()
        elif verb == "carrier":
            _expect(verb, words[1] in ("up", "down"))
            vm.set_carrier(words[1] == "up")
        else:
            raise usage(f"no verb {verb!r}")

    def _link(self, which: str, words: list[str]) -> None:
        directions = self._relay.directions
        if which != "both" and which not in directions:
            raise usage(f"no link {which!r}: it is 'a>b', 'b>a' (in quotes, for the shell) or both")
        chosen = list(directions.values()) if which == "both" else [directions[which]]
        if words == ["clear"]:
            for direction in chosen:
                direction.clear()
            return
        try:
            port, changes = parse_changes(words)
        except ValueError as error:
            raise usage(f"link: {error}") from error
        for direction in chosen:
            direction.change(port, changes)

    def _lan(self, name: str, words: list[str]) -> None:
        self._vm(name)
        _expect("lan", words in (["cut=0"], ["cut=1"]))
        if not self._session.options.lan:
            raise usage("this pair has no LAN: start it with --lan")
        cut = self._relay.lan_cut
        self._relay.lan_cut = cut | {name} if words == ["cut=1"] else cut - {name}

    def _exec(self, words: list[str], cwd: str, connection: socket.socket) -> int:
        timeout = None
        if words[:1] == ["--timeout"]:
            try:
                timeout = float(words[1])
            except (ValueError, IndexError):
                raise usage("exec --timeout takes seconds") from None
            words = words[2:]
        if words[1:2] == ["--"]:
            words = [words[0], *words[2:]]
        _expect("exec", len(words) >= 2)
        vm = self._vm(words[0])
        job = vm.submit(words[1:], self._session.options.env, cwd)
        out, err = (cast(BinaryIO, Stream(connection, kind)) for kind in (b"o", b"e"))
        # A caller that is killed takes its command in the VM along.
        return vm.follow(job, out, err, timeout, lambda: hung_up(connection))


def hung_up(connection: socket.socket) -> bool:
    """Whether the other end is closed (it sends nothing after its request)."""
    readable, _, _ = select.select([connection], [], [], 0)
    if not readable:
        return False
    try:
        return not connection.recv(1)
    except OSError:
        return True


def _expect(verb: str, well_formed: bool) -> None:
    if not well_formed:
        raise usage(f"usage: lab {VERBS.get(verb, verb)}")
