"""Builds the initramfs: a static busybox, the modules in order, init.sh and net.sh."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from .common import missing, tool
from .kernel import Kernel
from .modules import WANTED, ModuleTree, load_order

SCRIPTS = Path(__file__).parent


class Cpio:
    """A cpio archive in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def add(self, name: str, mode: int, body: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        """Appends one entry; ``mode`` has the file's type, ``device`` is for device nodes."""
        self._inode += 1
        path = name.encode() + b"\0"
        #         ino          mode  uid gid nlink mtime size      device's home  rdev     namesize  check
        fields = (self._inode, mode, 0, 0, 1, 0, len(body), 0, 0, *device, len(path), 0)
        self._append(b"070701" + b"".join(b"%08x" % field for field in fields) + path)
        self._append(body)

    def directory(self, name: str) -> None:
        """Appends a directory."""
        self.add(name, stat.S_IFDIR | 0o755)

    def file(self, name: str, body: bytes, mode: int = 0o644) -> None:
        """Appends a regular file."""
        self.add(name, stat.S_IFREG | mode, body)

    def finish(self) -> bytes:
        """The whole archive."""
        self.add("TRAILER!!!", 0)
        return bytes(self._data)

    def _append(self, data: bytes) -> None:
        self._data += data
        self._data += b"\0" * (-len(self._data) % 4)


def busybox() -> Path:
    """A busybox that needs no shared libraries; ``LAB_BUSYBOX`` overrides."""
    override = os.environ.get("LAB_BUSYBOX")
    candidates = [override] if override else [tool("busybox"), tool("busybox.static"), tool("busybox-static")]
    for path in filter(None, candidates):
        if os.path.exists(path) and is_static(Path(path)):
            return Path(path).resolve()
    what = f"LAB_BUSYBOX={override} is no static program" if override else "no static busybox here"
    raise missing(f"{what}: install busybox-static (Debian, Ubuntu) or busybox (Fedora, Arch, Alpine: "
                  "busybox-static), or set LAB_BUSYBOX to one")


def is_static(program: Path) -> bool:
    """A dynamic ELF names its loader near its start."""
    with open(program, "rb") as file:
        head = file.read(4096)
    return head.startswith(b"\x7fELF") and b"/ld-" not in head


def build(kernel: Kernel, cache: Path) -> Path:
    """The initramfs for this kernel, from the cache if nothing it is made of has changed."""
    shell = busybox()
    scripts = {name: (SCRIPTS / name).read_bytes() for name in ("init.sh", "net.sh")}
    made_of = (scripts, WANTED, kernel.version, str(kernel.modules), shell.stat().st_size, shell.stat().st_mtime)
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]
    out = cache / f"initramfs-{key}.img"
    if not out.exists():
        partial = cache / f"{out.name}.{os.getpid()}"
        partial.write_bytes(_archive(kernel, shell, scripts))
        partial.rename(out)
    return out


def _archive(kernel: Kernel, shell: Path, scripts: dict[str, bytes]) -> bytes:
    tree = ModuleTree(kernel.modules)
    archive = Cpio()
    modules = f"lib/modules/{kernel.version}"
    for name in ("bin", "sbin", "dev", "proc", "sys", "root", "lib", "lib/modules", modules):
        archive.directory(name)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.file("bin/busybox", shell.read_bytes(), 0o755)
    archive.file("init", scripts["init.sh"], 0o755)
    archive.file("net.sh", scripts["net.sh"])
    order = load_order(WANTED, tree.depends)
    for name in order:
        archive.file(f"{modules}/{name}.ko", tree.image(name))
    # One modprobe that loads all costs one process; an insmod for each would
    # cost about 0.1 s each under TCG. It wants a modules.dep.
    dependencies = [f"{name}.ko:" + "".join(f" {need}.ko" for need in _all_needs(tree, name)) for name in order]
    archive.file(f"{modules}/modules.dep", ("\n".join(dependencies) + "\n").encode())
    archive.file("modules", ("\n".join(order) + "\n").encode())
    return archive.finish()


def _all_needs(tree: ModuleTree, name: str) -> list[str]:
    """What a line of modules.dep lists: all dependencies, the last to be loaded first."""
    return load_order((name,), tree.depends)[-2::-1]
