"""What the command line says, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Options:
    """Arguments of the verbs that start a lab."""

    verb: str
    command: list[str] = field(default_factory=list)
    accel: str = "auto"
    cpus: int = 2
    mem: int = 1024
    """MiB per VM"""
    mtu: int = 4200
    """Of the wire: 4200 lets RDMA use its MTU of 4096."""
    timeout: float | None = None
    """Seconds for the command"""
    out: str | None = None
    rw: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    allow_warnings: bool = False
    quiet: bool = False
    host: bool = False
    seed: int = 1
    lan: bool = False
    lan_netns: str | None = None
