"""The other end of `server`: a verb from the command line to the running pair."""

from __future__ import annotations

import json
import os
import socket
import sys

from .common import EXIT_VM, LabError, usage
from .server import FRAME


def call(argv: list[str]) -> int:
    """Sends a verb, copies its output, returns its exit code."""
    path = os.environ.get("LAB_SOCK")
    if not path:
        raise usage(f"`lab {argv[0]}` works inside `lab pair -- CMD` (or with LAB_SOCK set to such a lab's socket)")
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except OSError as error:
            raise LabError(f"no lab listens at {path}: {error}") from error
        connection.sendall(json.dumps({"argv": argv, "cwd": os.getcwd()}).encode() + b"\n")
        return _copy(connection)


def _copy(connection: socket.socket) -> int:
    reply = connection.makefile("rb")
    while header := reply.read(FRAME.size):
        kind, size = FRAME.unpack(header)
        data = reply.read(size)
        if kind == b"x":
            return int(data)
        sink = sys.stdout.buffer if kind == b"o" else sys.stderr.buffer
        sink.write(data)
        sink.flush()
    raise LabError("the lab ended", EXIT_VM)
