"""The kernel that the VMs boot: found, fetched, and unpacked for a quick start."""

from __future__ import annotations

import hashlib
import lzma
import os
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import debian
from .common import missing, say, tool

PACKED: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\xfd7zXZ\0", lambda data: lzma.LZMADecompressor().decompress(data)),
    (b"\x28\xb5\x2f\xfd", debian.unzstd),
    (b"\x1f\x8b\x08", lambda data: zlib.decompressobj(wbits=31).decompress(data)),
)
"""Magic numbers of the compressions a bzImage may use, and how to undo each."""


@dataclass(frozen=True)
class Kernel:
    """A kernel and its modules on disk."""

    version: str
    image: Path
    """What QEMU boots: an ELF vmlinux where the bzImage could be unpacked."""
    modules: Path
    """lib/modules/VERSION"""


def find(cache: Path) -> Kernel:
    """The kernel to boot, fetched into the cache at first use.

    ``LAB_KERNEL`` overrides: a Debian linux-image .deb, or a directory that
    holds boot/vmlinuz-VERSION and lib/modules/VERSION (``/`` is one).
    """
    root = _root(cache)
    version = _version(root)
    modules = root / "lib/modules" / version
    _depmod(root, version, modules)
    packed = _packed_image(root, version, modules)
    return Kernel(version, _vmlinux(packed, cache, version), modules)


def _root(cache: Path) -> Path:
    override = os.environ.get("LAB_KERNEL")
    if override and os.path.isdir(override):
        return Path(override).absolute()
    if override and not os.path.isfile(override):
        raise missing(f"LAB_KERNEL={override} is neither a directory nor a .deb")
    target = cache / "kernel"
    if override:
        target = cache / f"kernel-{hashlib.sha256(os.path.abspath(override).encode()).hexdigest()[:8]}"
    if not target.is_dir():
        package = Path(override) if override else debian.fetch(cache)
        say(f"unpacking {package.name}")
        debian.unpack(package, target)
        if not override:
            package.unlink(missing_ok=True)
    return target


def _version(root: Path) -> str:
    running = os.uname().release
    if root == Path("/") and (root / "lib/modules" / running).is_dir():
        return running
    try:
        versions = sorted(path.name for path in (root / "lib/modules").iterdir())
    except OSError:
        versions = []
    if not versions:
        raise missing(f"{root} holds no lib/modules/VERSION. Set LAB_KERNEL to an unpacked kernel or to a .deb")
    return versions[-1]


def _depmod(root: Path, version: str, modules: Path) -> None:
    """Debian packages carry no modules.dep; modprobe inside a VM wants one."""
    program = tool("depmod")
    if (modules / "modules.dep").exists() or not os.access(modules, os.W_OK):
        return
    if not program:
        raise missing("depmod is missing: install the package kmod")
    subprocess.run([program, "-b", str(root), version], check=True)


def _packed_image(root: Path, version: str, modules: Path) -> Path:
    for path in (root / f"boot/vmlinuz-{version}", modules / "vmlinuz"):
        if os.access(path, os.R_OK):
            return path
    raise missing(f"cannot read a kernel image for {version} below {root} (Ubuntu keeps /boot/vmlinuz-* "
                  "to root). Set LAB_KERNEL, or unset it to fetch one")


def _vmlinux(packed: Path, cache: Path, version: str) -> Path:
    """Unpacks a bzImage, which under TCG takes the VM 2-5 s; QEMU boots the ELF by its PVH note."""
    stat = packed.stat()
    out = cache / f"vmlinux-{version}-{stat.st_size:x}-{int(stat.st_mtime):x}"
    if out.exists():
        return out
    elf = _unpack_image(packed.read_bytes())
    if elf is None:
        return packed
    partial = cache / f"{out.name}.{os.getpid()}"
    partial.write_bytes(elf)
    partial.rename(out)
    return out


def _unpack_image(image: bytes) -> bytes | None:
    """Tries each place where a compression's magic number stands; None if nothing is an ELF."""
    for magic, unpack in PACKED:
        at = image.find(magic)
        while at >= 0:
            try:
                elf = unpack(image[at:])
            except (lzma.LZMAError, zlib.error):
                elf = b""
            if elf.startswith(b"\x7fELF"):
                return elf
            at = image.find(magic, at + 1)
    return None
