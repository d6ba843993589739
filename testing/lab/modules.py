"""Which kernel modules a VM loads, and in which order."""

from __future__ import annotations

import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path

from .common import missing
from .debian import unzstd

WANTED = (
    # the VM's own devices and the root over 9p
    "virtio_pci", "virtio_net", "virtio_console", "9pnet_virtio", "9p", "overlay",
    # checksums: rxe's ICRC needs crc32
    "crc32_generic", "crc32_pclmul", "crc32c_generic",
    # RDMA
    "rdma_rxe", "ib_uverbs",
    # wires inside a VM: a guest's TAP device in a bridge, namespaces, netem
    "veth", "tun", "bridge", "sch_netem",
)
"""Loaded at boot, after what they depend on. Anything else: modprobe in the VM."""

FOLDED = re.compile(r"crc32")
"""Modules that newer kernels have in their core under other names: absence is fine."""


def canonical(name: str) -> str:
    """The kernel takes ``-`` and ``_`` in module names as the same."""
    return name.replace("-", "_")


def load_order(wanted: tuple[str, ...], depends: Callable[[str], list[str] | None]) -> list[str]:
    """All wanted modules and what they need, each after its dependencies.

    ``depends`` gives a module's direct dependencies, or None where there is
    nothing to load (built in, or folded into the kernel's core).
    """
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        name = canonical(name)
        if name in seen:
            return
        seen.add(name)
        needs = depends(name)
        if needs is None:
            return
        for need in needs:
            visit(need)
        order.append(name)

    for name in wanted:
        visit(name)
    return order


def modinfo_depends(image: bytes) -> list[str]:
    """The ``depends=`` entry of a module's .modinfo section (include/linux/module.h)."""
    needs: list[str] = []
    for match in re.finditer(rb"\0depends=([^\0]*)\0", image):
        needs += [name for name in match[1].decode().split(",") if name]
    return needs


class ModuleTree:
    """The modules below one lib/modules/VERSION."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, Path] = {}
        for path in directory.rglob("*.ko*"):
            if match := re.fullmatch(r"(.+)\.ko(\.xz|\.zst|\.gz)?", path.name):
                self._files[canonical(match[1])] = path
        builtin = directory / "modules.builtin"
        lines = builtin.read_text().split() if builtin.exists() else []
        self._builtin = {canonical(Path(line).stem) for line in lines}
        self._images: dict[str, bytes] = {}

    def image(self, name: str) -> bytes:
        """A module's ELF image, unpacked."""
        if name not in self._images:
            self._images[name] = _unpacked(self._files[name])
        return self._images[name]

    def depends(self, name: str) -> list[str] | None:
        """See `load_order`."""
        if name in self._files:
            return modinfo_depends(self.image(name))
        if name in self._builtin or FOLDED.match(name):
            return None
        raise missing(f"the kernel in {self._directory} has no module {name} (Debian's cloud kernels lack "
                      "rdma_rxe and 9p). Set LAB_KERNEL to a full kernel")


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        return unzstd(data)
    if path.suffix == ".gz":
        return zlib.decompress(data, wbits=31)
    return data
