"""The wires outside the VMs: the replication link between a and b, and the LAN hub.

Every network card of a VM is a pair of datagram sockets (QEMU's ``-netdev dgram``),
one frame a datagram. One thread moves all frames:

    eth0 of a <-- Direction a>b, b>a (faults) --> eth0 of b
    eth1 of a, eth1 of b, TAP device here  <-- every frame to the two others

A VM that is dead, frozen or slow takes nothing from the others: each port has a
queue of its own, whose tail is lost.
"""

from __future__ import annotations

import heapq
import os
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .faults import Direction

QUEUE_FRAMES = 2000
BATCH = 64
"""Frames taken from one port before the others get their turn"""
FRAME_MAX = 65536
RETRY_MIN_S, RETRY_MAX_S = 0.0005, 0.02


class Port:
    """Our end of a VM's network card: ``mine`` and ``theirs`` are the two sockets' paths."""

    def __init__(self, mine: Path, theirs: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(mine))
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._theirs = str(theirs)
        self._queue: deque[bytes] = deque()
        self._pause = RETRY_MIN_S
        self.counters: Counter[str] = Counter()
        self.retry_at: float | None = None
        """When to try again, while the VM does not take what is queued"""

    def receive(self) -> list[bytes]:
        """Up to a batch of frames that wait."""
        frames: list[bytes] = []
        try:
            while len(frames) < BATCH:
                frames.append(self.socket.recv(FRAME_MAX))
        except OSError:
            pass  # no more for now
        return frames

    def send(self, frame: bytes, now: float) -> None:
        """Sends or queues a frame."""
        if len(self._queue) >= QUEUE_FRAMES:
            self.counters["overflowed"] += 1
            return
        self._queue.append(frame)
        if self.retry_at is None:
            self.flush(now)

    def flush(self, now: float) -> None:
        """Sends what is queued, as far as the VM takes it.

        A full unix datagram socket cannot be polled for room at its far end, so
        it is tried again: soon at first, then, for a frozen VM, at leisure.
        """
        while self._queue:
            try:
                self.socket.sendto(self._queue[0], self._theirs)
                self.counters["out"] += 1
                self._pause = RETRY_MIN_S
            except BlockingIOError:
                self.retry_at = now + self._pause
                self._pause = min(self._pause * 2, RETRY_MAX_S)
                return
            except OSError:
                self.counters["nobody"] += 1  # no VM there
            self._queue.popleft()
        self.retry_at = None


class Relay(threading.Thread):
    """The thread that moves all frames.

    Sockets in ``directory``: ``n.a`` is QEMU's and ``r.a`` ours for eth0, ``m.a``
    and ``h.a`` for eth1. ``tap`` is the descriptor of the LAN's TAP device; without
    one there is no LAN.
    """

    def __init__(self, directory: Path, seed: int, tap: int | None = None) -> None:
        super().__init__(daemon=True, name="relay")
        self.directions = {"a>b": Direction(seed), "b>a": Direction(seed + 1)}
        self._link = {host: Port(directory / f"r.{host}", directory / f"n.{host}") for host in "ab"}
        self._lan: dict[str, Port] = {}
        self.lan_cut: frozenset[str] = frozenset()
        """Hosts whose LAN port is cut"""
        self._tap = tap
        self._tap_counters: Counter[str] = Counter()
        self._senders: dict[str, Counter[str]] = {host: Counter() for host in "ab"}
        """Frames that came from each host's LAN port, by their source address"""
        if tap is not None:
            os.set_blocking(tap, False)
            self._lan = {host: Port(directory / f"h.{host}", directory / f"m.{host}") for host in "ab"}
        self._late: list[tuple[float, int, str, bytes]] = []
        self._sequence = 0
        self._ending, self._wake = os.pipe()

    def stats(self) -> dict[str, dict[str, int]]:
        """Counters of everything, by name."""
        counters = {name: dict(direction.counters) for name, direction in self.directions.items()}
        counters.update({f"to {host}": dict(port.counters) for host, port in self._link.items()})
        counters.update({f"lan to {host}": dict(port.counters) for host, port in self._lan.items()})
        if self._tap is not None:
            counters["lan to tap"] = dict(self._tap_counters)
            counters.update({f"lan from {host}": dict(senders) for host, senders in self._senders.items()})
        return counters

    def stop(self) -> None:
        """Ends the thread and closes everything."""
        os.write(self._wake, b"x")
        self.join()
        for port in [*self._link.values(), *self._lan.values()]:
            port.socket.close()
        for descriptor in (self._ending, self._wake, self._tap):
            if descriptor is not None:
                os.close(descriptor)

    def run(self) -> None:
        """Thread: until `stop`."""
        selector = selectors.DefaultSelector()
        handlers: list[tuple[socket.socket | int, Callable[[], None]]] = []
        for host in "ab":
            handlers.append((self._link[host].socket, partial(self._from_link, host)))
            if self._lan:
                handlers.append((self._lan[host].socket, partial(self._from_lan, host)))
        if self._tap is not None:
            handlers.append((self._tap, self._from_tap))
        for source, handler in handlers:
            selector.register(source, selectors.EVENT_READ, handler)
        selector.register(self._ending, selectors.EVENT_READ, None)
        while True:
            for key, _ in selector.select(self._patience()):
                if key.data is None:
                    return
                key.data()
            self._send_late()

    def _patience(self) -> float | None:
        """Seconds until something is due."""
        times = [port.retry_at for port in (*self._link.values(), *self._lan.values()) if port.retry_at is not None]
        if self._late:
            times.append(self._late[0][0])
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _send_late(self) -> None:
        now = time.monotonic()
        while self._late and self._late[0][0] <= now:
            _, _, host, frame = heapq.heappop(self._late)
            self._link[host].send(frame, now)
        for port in (*self._link.values(), *self._lan.values()):
            if port.retry_at is not None and port.retry_at <= now:
                port.flush(now)

    def _from_link(self, host: str) -> None:
        peer = "b" if host == "a" else "a"
        direction = self.directions[f"{host}>{peer}"]
        for frame in self._link[host].receive():
            now = time.monotonic()
            for due, admitted in direction.admit(frame, now):
                if due <= now:
                    self._link[peer].send(admitted, now)
                else:
                    self._sequence += 1
                    heapq.heappush(self._late, (due, self._sequence, peer, admitted))

    def _from_lan(self, host: str) -> None:
        for frame in self._lan[host].receive():
            self._senders[host][frame[6:12].hex(":")] += 1
            if host not in self.lan_cut:
                self._flood(frame, host)

    def _from_tap(self) -> None:
        assert self._tap is not None
        for _ in range(BATCH):
            try:
                frame = os.read(self._tap, FRAME_MAX)
            except OSError:
                return  # no more for now, or its interface is down
            self._flood(frame, "tap")

    def _flood(self, frame: bytes, source: str) -> None:
        now = time.monotonic()
        for host, port in self._lan.items():
            if host != source and host not in self.lan_cut:
                port.send(frame, now)
        if source != "tap" and self._tap is not None:
            try:
                os.write(self._tap, frame)
                self._tap_counters["out"] += 1
            except OSError:
                self._tap_counters["lost"] += 1  # its interface is down
