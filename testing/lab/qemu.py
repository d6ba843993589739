"""QEMU's command line, and what its refusals mean."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from .accel import clock_arguments
from .common import missing, tool
from .kernel import Kernel

KERNEL_ARGUMENTS = (
    # loglevel 5 shows warnings on the console, where the lab looks for them
    "console=ttyS0 loglevel=5 panic=-1 oops=panic "
    # start quickly, and the same each time
    "random.trust_cpu=on cryptomgr.notests mitigations=off nokaslr no_timer_check selinux=0 apparmor=0 audit=0"
)

REFUSALS = (
    ("fsdev", "this QEMU has no 9p (virtfs): install Debian's, Fedora's or Arch's QEMU, or build it with "
              "--enable-virtfs; RHEL's has none"),
    ("virtio-9p", "this QEMU has no 9p (virtfs): install Debian's, Fedora's or Arch's QEMU, or build it with "
                  "--enable-virtfs; RHEL's has none"),
    ("netdev backend", "`lab pair` needs `-netdev dgram`: QEMU 7.2 or newer"),
    ("type=dgram", "`lab pair` needs `-netdev dgram`: QEMU 7.2 or newer"),
    ("Cannot allocate memory", "not enough memory for the VM: give less with --mem"),
    ("Could not access KVM", "KVM is not usable: --accel tcg"),
    ("failed to initialize kvm", "KVM is not usable: --accel tcg"),
)
"""Parts of QEMU's messages, with remedies."""


def program() -> str:
    """Path of QEMU; ``LAB_QEMU`` overrides."""
    name = os.environ.get("LAB_QEMU", "qemu-system-x86_64")
    path = tool(name)
    if not path:
        raise missing(f"{name} is missing: run scripts/setup, or install qemu-system-x86 (Debian, Ubuntu, Arch) "
                      "or qemu-system-x86-core (Fedora), or set LAB_QEMU")
    return path


def remedy(log: str) -> str | None:
    """What to do about the message that QEMU left, where it is a known one."""
    return next((advice for part, advice in REFUSALS if part in log), None)


@dataclass(frozen=True)
class Nic:
    """A virtio network card whose frames travel in datagrams between two unix sockets."""

    name: str
    local: Path
    remote: Path
    mac: str


@dataclass(frozen=True)
class Share:
    """A directory of this machine, seen in the VM over 9p."""

    tag: str
    path: Path
    read_only: bool = False


@dataclass
class Machine:
    """What a VM is made of."""

    kernel: Kernel
    initramfs: Path
    accel: str
    name: str = "vm"
    arguments: str = ""
    cpus: int = 1
    memory_mib: int = 512
    nics: list[Nic] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)

    def base(self) -> list[str]:
        """The part that a probe boots too: no devices.

        -machine pc: microvm hung in four of six boots under TCG.
        """
        clock = "" if self.accel == "kvm" else clock_arguments()
        return [
            program(), "-machine", f"pc,accel={self.accel}", "-cpu", "host" if self.accel == "kvm" else "max",
            "-name", f"lab-{self.name}", "-smp", str(self.cpus), "-m", str(self.memory_mib),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", str(self.kernel.image), "-initrd", str(self.initramfs),
            "-append", f"{KERNEL_ARGUMENTS} {clock} {self.arguments}",
        ]

    def probe(self) -> list[str]:
        """Boots, says LAB-PROBE-OK on stdout, ends."""
        return [*self.base(), "-serial", "stdio"]

    def command(self, console: Path, sockets: Path, with_tty: bool) -> list[str]:
        """The whole command line. ``sockets`` is the directory for control, QMP and terminal."""
        command = self.base()
        command += ["-serial", f"file:{console}", "-qmp", f"unix:{sockets}/qmp,server=on,wait=off"]
        command += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=ctl,path={sockets}/ctl,server=on,wait=off",
                    "-device", "virtserialport,chardev=ctl,name=lab.ctl"]
        if with_tty:
            command += ["-serial", f"unix:{sockets}/tty,server=on,wait=off"]
        for share in self.shares:
            mode = "on" if share.read_only else "off"
            path = str(share.path).replace(",", ",,")
            command += ["-fsdev", f"local,id=fs-{share.tag},path={path},security_model=none,multidevs=remap,"
                                  f"readonly={mode}",
                        "-device", f"virtio-9p-pci,fsdev=fs-{share.tag},mount_tag={share.tag}"]
        for nic in self.nics:
            command += ["-netdev", f"dgram,id={nic.name},local.type=unix,local.path={nic.local},"
                                   f"remote.type=unix,remote.path={nic.remote}",
                        "-device", f"virtio-net-pci,netdev={nic.name},id=dev-{nic.name},romfile=,mac={nic.mac}"]
        return command
