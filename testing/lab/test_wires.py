"""Tests of the wires, which need no VM: (cd testing && python3 -m unittest lab.test_wires)"""

from __future__ import annotations

import contextlib
import socket
import struct
import tempfile
import time
import unittest
from pathlib import Path

from lab.faults import BACKLOG_S, Direction, parse_changes, ports_of
from lab.relay import QUEUE_FRAMES, Port, Relay

ROCE = 4791


def frame(port: int = ROCE, protocol: int = 17, size: int = 200, fragment: int = 0) -> bytes:
    """An Ethernet frame with IPv4."""
    ip = struct.pack("!BBHHHBBHII", 0x45, 0, size - 14, 0, fragment, 64, protocol, 0, 0x0A4D0001, 0x0A4D0002)
    head = bytes(12) + b"\x08\x00" + ip + struct.pack("!HH", 50000, port)
    return head + bytes(size - len(head))


def frame6(port: int) -> bytes:
    """An Ethernet frame with UDP over IPv6."""
    return bytes(12) + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, 100, 17, 64) + bytes(32) + struct.pack(
        "!HH", 50000, port) + bytes(96)


def direction(*words: str, seed: int = 1) -> Direction:
    """A direction with a rule as on the command line."""
    made = Direction(seed)
    port, changes = parse_changes(list(words))
    made.change(port, changes)
    return made


class Faults(unittest.TestCase):
    def test_a_perfect_wire_passes_everything_at_once(self) -> None:
        wire = Direction(1)
        sent = frame()
        self.assertEqual(wire.admit(sent, 5.0), [(5.0, sent)])

    def test_cut_takes_everything(self) -> None:
        wire = direction("cut=1")
        self.assertEqual([wire.admit(frame(), 0.0) for _ in range(20)], [[]] * 20)
        self.assertEqual(wire.counters, {"in": 20, "cut": 20})
        wire.change(*parse_changes(["cut=0"]))
        self.assertEqual(len(wire.admit(frame(), 0.0)), 1)

    def test_drop_takes_its_share(self) -> None:
        wire = direction("drop=20")
        arrived = sum(len(wire.admit(frame(), 0.0)) for _ in range(5000))
        self.assertTrue(3800 < arrived < 4200, arrived)
        self.assertEqual(wire.counters["dropped"], 5000 - arrived)

    def test_the_same_seed_has_the_same_fate(self) -> None:
        fates = [[len(wire.admit(frame(), 0.0)) for _ in range(100)]
                 for wire in (direction("drop=50", seed=7), direction("drop=50", seed=7))]
        self.assertEqual(*fates)

    def test_dup_makes_two(self) -> None:
        self.assertEqual(len(direction("dup=100").admit(frame(), 0.0)), 2)

    def test_delay_is_in_milliseconds(self) -> None:
        (due, _), = direction("delay=20").admit(frame(), 1.0)
        self.assertAlmostEqual(due, 1.02)

    def test_jitter_varies_within_its_bound_and_keeps_the_order(self) -> None:
        wire = direction("delay=10", "jitter=10")
        dues = [wire.admit(frame(), at / 1000)[0][0] for at in range(200)]
        self.assertEqual(dues, sorted(dues))
        waits = [due - at / 1000 for at, due in enumerate(dues)]
        self.assertTrue(all(0.0099 < wait <= 0.0201 for wait in waits))
        self.assertGreater(len(set(waits)), 20)

    def test_nothing_overtakes_when_a_delay_ends(self) -> None:
        wire = direction("delay=50")
        (slow, _), = wire.admit(frame(), 0.0)
        wire.clear()
        (next_due, _), = wire.admit(frame(), 0.001)
        self.assertGreaterEqual(next_due, slow)

    def test_rate_spaces_frames_and_bounds_the_backlog(self) -> None:
        wire = direction("rate=8")  # 1 byte a microsecond
        dues = [wire.admit(frame(size=1000), 0.0)[0][0] for _ in range(3)]
        for got, expected in zip(dues, (0.001, 0.002, 0.003)):
            self.assertAlmostEqual(got, expected)
        while wire.admit(frame(size=1000), 0.0):
            pass
        self.assertAlmostEqual(wire.counters["in"], BACKLOG_S * 1000, delta=3)
        self.assertEqual(wire.counters["overflowed"], 1)

    def test_corrupt_flips_one_bit_behind_the_headers(self) -> None:
        wire = direction("corrupt=100")
        for original, headers in ((frame(), 42), (frame6(ROCE), 62)):
            for _ in range(100):
                (_, damaged), = wire.admit(original, 0.0)
                different = [at for at, pair in enumerate(zip(original, damaged)) if pair[0] != pair[1]]
                self.assertEqual(len(different), 1)
                self.assertGreaterEqual(different[0], headers)
                self.assertEqual(bin(original[different[0]] ^ damaged[different[0]]).count("1"), 1)

    def test_corrupt_survives_short_frames(self) -> None:
        for size in (1, 14, 42):
            (_, damaged), = direction("corrupt=100").admit(bytes(size), 0.0)
            self.assertEqual(len(damaged), size)

    def test_a_port_has_its_own_rule(self) -> None:
        wire = direction("port=4791", "cut=1")
        for lost in (frame(), frame6(ROCE)):
            self.assertEqual(wire.admit(lost, 0.0), [])
        for passed in (frame(port=22, protocol=6), frame(protocol=1), frame(fragment=100), frame6(53), bytes(20)):
            self.assertEqual(len(wire.admit(passed, 0.0)), 1)
        wire.change(*parse_changes(["cut=1"]))
        wire.change(*parse_changes(["port=4791", "cut=0"]))
        self.assertEqual(len(wire.admit(frame(), 0.0)), 1)
        self.assertEqual(wire.admit(frame(port=22), 0.0), [])

    def test_ports_of(self) -> None:
        self.assertEqual(ports_of(frame(port=80, protocol=6)), (50000, 80))
        self.assertEqual(ports_of(frame6(80)), (50000, 80))
        for size in range(60):
            ports_of(frame()[:size])
            ports_of(frame6(80)[:size])

    def test_wrong_words_are_refused(self) -> None:
        for word in ("", "cut", "cut=2", "drop=101", "drop=x", "drop=nan", "delay=-1", "port=70000", "port=1.5",
                     "port=inf", "up=1", "port=4791"):
            with self.subTest(word), self.assertRaises(ValueError):
                parse_changes([word])


class Wires(unittest.TestCase):
    """The relay with sockets that stand for the VMs."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)

    def vm(self, name: str) -> socket.socket:
        """QEMU's end of a network card."""
        end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(end.close)
        end.bind(str(self.directory / name))
        end.settimeout(10)
        return end

    def relay(self, tap: int | None = None) -> Relay:
        relay = Relay(self.directory, 1, tap)
        relay.start()
        self.addCleanup(relay.stop)
        return relay

    def to(self, name: str) -> str:
        return str(self.directory / name)

    def test_frames_cross_both_ways_and_a_dead_end_loses_them(self) -> None:
        a, relay = self.vm("n.a"), self.relay()
        a.sendto(b"nobody there", self.to("r.a"))
        while not relay.stats()["to b"].get("nobody"):
            time.sleep(0.001)
        b = self.vm("n.b")
        a.sendto(b"ping", self.to("r.a"))
        self.assertEqual(b.recv(100), b"ping")
        b.sendto(b"pong", self.to("r.b"))
        self.assertEqual(a.recv(100), b"pong")

    def test_a_delayed_frame_arrives_after_one_of_another_port(self) -> None:
        a, b, relay = self.vm("n.a"), self.vm("n.b"), self.relay()
        relay.directions["a>b"].change(*parse_changes(["port=4791", "delay=100"]))
        a.sendto(frame(), self.to("r.a"))
        a.sendto(frame(port=22), self.to("r.a"))
        self.assertEqual([ports_of(b.recv(9000)) for _ in range(2)], [(50000, 22), (50000, ROCE)])

    def test_a_frozen_vm_keeps_its_queue_and_gets_it_in_order(self) -> None:
        port = Port(self.directory / "mine", self.directory / "theirs")
        self.addCleanup(port.socket.close)
        frozen = self.vm("theirs")
        for number in range(QUEUE_FRAMES * 2 + 2000):
            port.send(b"%d" % number, 0.0)
        self.assertIsNotNone(port.retry_at)
        self.assertGreater(port.counters["overflowed"], 0)
        received = []
        while port.retry_at is not None:
            received.append(int(frozen.recv(100)))
            port.flush(0.0)
        frozen.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                received.append(int(frozen.recv(100)))
        self.assertEqual(received, list(range(len(received))))
        self.assertGreaterEqual(len(received), QUEUE_FRAMES)

    def test_the_hub_floods_and_knows_nothing_of_link_faults(self) -> None:
        a, b = self.vm("m.a"), self.vm("m.b")
        tap, host = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(host.close)
        host.settimeout(10)
        relay = self.relay(tap.detach())
        for way in relay.directions.values():
            way.change(*parse_changes(["cut=1"]))
        a.sendto(b"from a", self.to("h.a"))
        self.assertEqual((b.recv(100), host.recv(100)), (b"from a", b"from a"))
        host.send(b"from host")
        self.assertEqual((a.recv(100), b.recv(100)), (b"from host", b"from host"))
        relay.lan_cut = frozenset("a")
        a.sendto(b"lost", self.to("h.a"))
        host.send(b"again")
        self.assertEqual(b.recv(100), b"again")
        b.sendto(b"from b", self.to("h.b"))
        self.assertEqual(host.recv(100), b"from b")
        a.setblocking(False)
        self.assertRaises(BlockingIOError, a.recv, 100)

    def test_the_hub_counts_senders_even_those_that_are_cut_off(self) -> None:
        a = self.vm("m.a")
        tap, host = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(host.close)
        relay = self.relay(tap.detach())
        relay.lan_cut = frozenset("a")
        for sender in (1, 2, 1):
            a.sendto(bytes(6) + bytes([2, 0, 0, 0, 0, sender]) + b"frame", self.to("h.a"))
        expected = {"02:00:00:00:00:01": 2, "02:00:00:00:00:02": 1}
        while relay.stats()["lan from a"] != expected:
            time.sleep(0.001)
        self.assertEqual(relay.stats()["lan from b"], {})
