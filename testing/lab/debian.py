"""Fetches and unpacks a Debian kernel package, without root and without installing it.

The metapackage ``linux-image-amd64`` is resolved anew each time the cache is
empty: Debian deletes a kernel's file when a security update replaces it, so no
URL stays good.

Two ways: where apt knows the metapackage (Debian), apt with lists of its own in
the cache, so that the machine's mirrors and keys count and its apt state stays
alone. Elsewhere Debian's archive over HTTPS (``LAB_MIRROR``, ``LAB_RELEASE``):
there the index is trusted as the server sends it, and the package is checked
against the index's SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import re
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from .common import missing, say, tool

METAPACKAGE = "linux-image-amd64"
AR_MAGIC = b"!<arch>\n"


def fetch(cache: Path) -> Path:
    """Downloads the kernel package and returns the path of the .deb."""
    wanted = os.environ.get("LAB_KERNEL_PKG", METAPACKAGE)
    if tool("apt-get") and (package := _fetch_by_apt(cache, wanted)):
        return package
    return _fetch_by_https(cache, wanted)


def _apt_options(cache: Path) -> list[str]:
    """Options that keep apt's state inside the cache."""
    state = cache / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    options = ["-o", f"Dir::State::lists={state}/lists", "-o", f"Dir::Cache={state}/cache"]
    options += ["-o", "Debug::NoLocking=1", "-qq"]
    if os.getuid() == 0:
        # apt would otherwise drop to the user _apt, who cannot write the cache.
        options += ["-o", "APT::Sandbox::User=root"]
    return options


def _fetch_by_apt(cache: Path, wanted: str) -> Path | None:
    """None where apt does not know the package (Ubuntu, a mirror without it)."""
    options = _apt_options(cache)
    say(f"asking apt for {wanted}")
    if subprocess.run(["apt-get", *options, "update"], stdout=2).returncode:
        say("apt-get update failed; trying Debian's archive over HTTPS")
        return None
    shown = subprocess.run(
        ["apt-cache", *options, "show", "--no-all-versions", wanted],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if shown.returncode:
        return None
    package = kernel_dependency(shown.stdout) or wanted
    target = cache / "deb"
    target.mkdir(exist_ok=True)
    if subprocess.run(["apt-get", *options, "download", package], cwd=target, stdout=2).returncode:
        return None
    found = sorted(target.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def kernel_dependency(paragraph: str) -> str | None:
    """The kernel image that a metapackage's control paragraph depends on."""
    match = re.search(r"^Depends:.*?(linux-image-[0-9][^\s,]*)", paragraph, re.MULTILINE)
    return match[1] if match else None


def _open_url(url: str) -> BinaryIO:
    try:
        reply: BinaryIO = urllib.request.urlopen(url, timeout=60)
        return reply
    except (urllib.error.URLError, OSError) as error:
        raise missing(f"cannot fetch {url}: {error}. Set LAB_KERNEL to a Debian kernel .deb or to an "
                      "unpacked one, or LAB_MIRROR to a Debian mirror") from error


def _paragraph(index: str, package: str) -> str | None:
    match = re.search(rf"^Package: {re.escape(package)}\n(?:.+\n)*", index, re.MULTILINE)
    return match[0] if match else None


def _field(paragraph: str, name: str) -> str:
    match = re.search(rf"^{name}: (.*)$", paragraph, re.MULTILINE)
    return match[1] if match else ""


def _fetch_by_https(cache: Path, wanted: str) -> Path:
    mirror = os.environ.get("LAB_MIRROR", "https://deb.debian.org/debian").rstrip("/")
    release = os.environ.get("LAB_RELEASE", "bookworm")
    say(f"asking {mirror} ({release}) for {wanted}")
    with _open_url(f"{mirror}/dists/{release}/main/binary-amd64/Packages.xz") as reply:
        index = lzma.decompress(reply.read()).decode()
    meta = _paragraph(index, wanted)
    package = meta and (_paragraph(index, kernel_dependency(meta) or wanted))
    if not package:
        raise missing(f"no package {wanted} in {mirror} {release}. Set LAB_KERNEL (docs/LAB.md)")
    path = cache / "deb" / os.path.basename(_field(package, "Filename"))
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    with _open_url(f"{mirror}/{_field(package, 'Filename')}") as reply, open(partial, "wb") as out:
        shutil.copyfileobj(reply, out)
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    if digest != _field(package, "SHA256"):
        partial.unlink()
        raise missing(f"{path.name} from {mirror} does not have the SHA-256 its index promises; try again")
    partial.rename(path)
    return path


def unpack(package: Path, target: Path) -> None:
    """Unpacks a .deb into a directory that appears only when it is whole."""
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with open(package, "rb") as file:
        _unpack_data(file, package, partial)
    try:
        partial.rename(target)
    except OSError:
        # Another lab was faster; its copy is as good.
        shutil.rmtree(partial, ignore_errors=True)


def _unpack_data(file: BinaryIO, package: Path, target: Path) -> None:
    """A .deb is an ar archive (deb(5)); the files are in its member data.tar.*."""
    if file.read(len(AR_MAGIC)) != AR_MAGIC:
        raise missing(f"{package} is no .deb")
    while header := file.read(60):
        name = header[:16].decode().strip().rstrip("/")
        size = int(header[48:58])
        if not name.startswith("data.tar"):
            file.seek(size + size % 2, os.SEEK_CUR)
            continue
        data = file.read(size)
        if name.endswith(".zst"):
            data = unzstd(data)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            # Newer Pythons refuse by default what a kernel package may hold: absolute links
            archive.extraction_filter = getattr(tarfile, "tar_filter", None)
            archive.extractall(target)
        return
    raise missing(f"{package} has no data.tar")


def unzstd(data: bytes) -> bytes:
    """Unpacks zstd data; what follows the first frame is ignored."""
    program = tool("zstd")
    if not program:
        raise missing("this kernel is packed with zstd: install the package zstd")
    done = subprocess.run([program, "-dcq"], input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout
