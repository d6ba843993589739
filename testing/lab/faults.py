"""What a wire does to the frames of one direction: pure, with time and chance handed in.

A direction has rules by port: one for all frames (port 0) and any number for
frames whose UDP or TCP source or destination port is theirs, which then are
subject to that rule alone. A frame goes through its rule in this order:

    cut, drop -> lost
    corrupt   -> one bit flipped behind the headers
    dup       -> it and a copy
    rate      -> waits for its turn on a line of that speed
    delay, jitter -> is due later

Frames under one rule keep their order: jitter never lets one overtake another.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from dataclasses import dataclass, replace

BACKLOG_S = 1.0
"""A slow line holds so much; what comes then is lost, as at a switch."""

ETHERTYPE_IPV4 = b"\x08\x00"
ETHERTYPE_IPV6 = b"\x86\xdd"
TCP, UDP = 6, 17


@dataclass(frozen=True)
class Rule:
    """Faults of one direction; nothing set is a perfect wire."""

    cut: bool = False
    drop: float = 0.0
    """Per cent of the frames"""
    dup: float = 0.0
    """Per cent"""
    corrupt: float = 0.0
    """Per cent"""
    delay: float = 0.0
    """Milliseconds"""
    jitter: float = 0.0
    """Up to so many milliseconds more, evenly spread"""
    rate: float = 0.0
    """Mbit/s; 0 is as fast as it goes"""


PERCENT = ("drop", "dup", "corrupt")


def parse_changes(words: list[str]) -> tuple[int, dict[str, float | bool]]:
    """Reads ``key=value`` words: the port (0: all) and what changes. Raises ValueError with words."""
    port = 0
    changes: dict[str, float | bool] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in ("port", *Rule.__dataclass_fields__):
            raise ValueError(f"{word!r} is not one of cut= drop= delay= jitter= dup= corrupt= rate= port=")
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{word}: {text!r} is no number") from None
        if key == "port":
            if not value.is_integer() or not 0 <= value <= 65535:
                raise ValueError(f"{word}: a port is 0 (all) to 65535")
            port = int(value)
        elif key == "cut":
            if value not in (0, 1):
                raise ValueError(f"{word}: cut is 0 or 1")
            changes[key] = bool(value)
        else:
            limit = 100.0 if key in PERCENT else 1e6
            if not 0 <= value <= limit:
                raise ValueError(f"{word}: {key} is 0 to {limit:g}")
            changes[key] = value
    if not changes:
        raise ValueError("nothing to change: give cut= drop= delay= jitter= dup= corrupt= or rate=")
    return port, changes


def ports_of(frame: bytes) -> tuple[int, int] | None:
    """UDP or TCP ports of an Ethernet frame with IPv4 (first fragment) or IPv6 (no extension header)."""
    kind = frame[12:14]
    if kind == ETHERTYPE_IPV4 and len(frame) >= 34:
        at = 14 + (frame[14] & 15) * 4
        first = struct.unpack_from("!H", frame, 20)[0] & 0x1FFF == 0
        if frame[23] not in (TCP, UDP) or not first:
            return None
    elif kind == ETHERTYPE_IPV6 and len(frame) >= 54:
        at = 54
        if frame[20] not in (TCP, UDP):
            return None
    else:
        return None
    if len(frame) < at + 4:
        return None
    source, destination = struct.unpack_from("!HH", frame, at)
    return source, destination


class Line:
    """What a rule remembers: when its line is free, and when its last frame is due."""

    def __init__(self) -> None:
        self.free = 0.0
        self.last_due = 0.0


class Direction:
    """One way of a wire: its rules, its chance, its counters."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._rules: dict[int, Rule] = {}
        self._lines: dict[int, Line] = {}
        self.counters: Counter[str] = Counter()

    def change(self, port: int, changes: dict[str, float | bool]) -> None:
        """Changes the rule of a port; what is not named stays. Safe while another thread admits."""
        rule = replace(self._rules.get(port, Rule()), **changes)  # type: ignore[arg-type]
        self._rules = {**self._rules, port: rule}

    def clear(self) -> None:
        """A perfect wire again."""
        self._rules = {}

    def admit(self, frame: bytes, now: float) -> list[tuple[float, bytes]]:
        """What becomes of a frame: pairs of the time it is due (seconds, as ``now``) and its bytes."""
        self.counters["in"] += 1
        port, rule = self._rule_for(frame)
        if rule.cut:
            self.counters["cut"] += 1
            return []
        if self._happens(rule.drop):
            self.counters["dropped"] += 1
            return []
        if self._happens(rule.corrupt):
            self.counters["corrupted"] += 1
            frame = self._corrupt(frame)
        copies = 1
        if self._happens(rule.dup):
            self.counters["duplicated"] += 1
            copies = 2
        line = self._lines.setdefault(port, Line())
        due = (self._due(line, rule, len(frame), now) for _ in range(copies))
        return [(at, frame) for at in due if at is not None]

    def _rule_for(self, frame: bytes) -> tuple[int, Rule]:
        rules = self._rules
        if any(rules.keys() - {0}):
            for port in ports_of(frame) or ():
                if port and port in rules:
                    return port, rules[port]
        return 0, rules.get(0, Rule())

    def _happens(self, percent: float) -> bool:
        return percent > 0 and self._random.random() * 100 < percent

    def _corrupt(self, frame: bytes) -> bytes:
        """Flips a bit behind the IP and UDP headers, so that the frame still arrives."""
        headers = 62 if frame[12:14] == ETHERTYPE_IPV6 else 42
        at = self._random.randrange(min(headers, len(frame) - 1), len(frame))
        damaged = bytearray(frame)
        damaged[at] ^= 1 << self._random.randrange(8)
        return bytes(damaged)

    def _due(self, line: Line, rule: Rule, size: int, now: float) -> float | None:
        due = now
        if rule.rate:
            start = max(now, line.free)
            if start - now > BACKLOG_S:
                self.counters["overflowed"] += 1
                return None
            due = line.free = start + size * 8 / (rule.rate * 1e6)
        due += (rule.delay + rule.jitter * self._random.random()) / 1e3
        # A frame admitted after a slower one does not overtake it.
        line.last_due = due = max(due, line.last_due)
        return due
