"""The LAN's port on this machine: a TAP device, in a network namespace if wanted."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import subprocess
import threading
from pathlib import Path

from .common import LabError, missing, tool

TAP_NAME = "lab-lan"
CLONE_NEWNET = 0x40000000
# include/uapi/linux/if_tun.h
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
NAMESPACES = Path("/run/netns")


class Tap:
    """The TAP device ``lab-lan``. It lives as long as its descriptor is open.

    A namespace that was not there is made, and removed by `close`.
    """

    def __init__(self, namespace: str | None) -> None:
        if os.geteuid() != 0:
            raise missing("--lan makes a TAP device, which takes root: run this as root")
        if not os.path.exists("/dev/net/tun"):
            raise missing("--lan needs /dev/net/tun: modprobe tun (in a container: pass the device in)")
        self._namespace = namespace
        self._made = False
        if namespace and not (NAMESPACES / namespace).exists():
            _ip("netns", "add", namespace)
            self._made = True
            _ip("-n", namespace, "link", "set", "lo", "up")
        try:
            self.descriptor = _open_in(namespace)
            _ip(*(["-n", namespace] if namespace else []), "link", "set", TAP_NAME, "up")
        except LabError:
            self.close()
            raise

    def close(self) -> None:
        """Removes the namespace, if it was made here. The descriptor is the relay's to close."""
        if self._made and self._namespace:
            self._made = False
            _ip("netns", "delete", self._namespace)


def _ip(*words: str) -> None:
    done = subprocess.run([tool("ip") or "ip", *words], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise missing(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _open_in(namespace: str | None) -> int:
    """Opens the device from a thread of its own: a namespace belongs to a thread, and ends with it."""
    result: list[int | OSError] = []

    def attempt() -> None:
        try:
            if namespace:
                _enter(namespace)
            result.append(_open_tap())
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    if isinstance(result[0], int):
        return result[0]
    if result[0].errno == errno.EBUSY:
        raise missing(f"the device {TAP_NAME} is taken here (another lab with --lan?): use --lan-netns NAME")
    raise missing(f"cannot make the TAP device {TAP_NAME}: {result[0]}")


def _enter(namespace: str) -> None:
    with open(NAMESPACES / namespace, "rb") as file:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns to {namespace}")


def _open_tap() -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", TAP_NAME.encode(), IFF_TAP | IFF_NO_PI))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
