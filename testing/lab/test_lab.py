"""Tests of the command line, the verbs and what is booted; no VM: (cd testing && python3 -m unittest lab.test_lab)"""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from lab import cli, client, console, debian, initramfs, qemu, server
from lab.common import EXIT_MISSING, EXIT_USAGE, LabError
from lab.kernel import Kernel
from lab.modules import load_order, modinfo_depends
from lab.options import Options
from lab.relay import Relay
from lab.vm import job_script

FRAME = bytes(60)
ENTRY = Path(__file__).resolve().parents[2] / "scripts" / "lab"


class CommandLine(unittest.TestCase):
    def refused(self, *argv: str) -> str:
        with contextlib.redirect_stderr(io.StringIO()) as said, self.assertRaises(SystemExit) as ended:
            cli.parse(list(argv))
        self.assertEqual(ended.exception.code, EXIT_USAGE)
        return said.getvalue()

    def test_a_command_is_taken_as_it_is(self) -> None:
        options = cli.parse(["run", "--mem", "2048", "--env", "A=b=c", "--", "x", "--mem", "--", "y z"])
        self.assertEqual((options.mem, options.env, options.command),
                         (2048, {"A": "b=c"}, ["x", "--mem", "--", "y z"]))

    def test_env_takes_the_value_from_here(self) -> None:
        with mock.patch.dict(os.environ, {"THERE": "1"}):
            self.assertEqual(cli.parse(["run", "--env", "THERE", "--", "x"]).env, {"THERE": "1"})
        self.assertIn("is not set here", self.refused("run", "--env", "SURELY_NOT_SET_HERE", "--", "x"))

    def test_wrong_arguments(self) -> None:
        self.assertIn("nothing to run", self.refused("run"))
        self.assertIn("nothing to run", self.refused("pair", "--lan"))
        self.assertIn("no directory", self.refused("run", "--rw", "/no/such", "--", "x"))
        self.assertIn("--lan-netns is for --lan", self.refused("pair", "--lan-netns", "n", "--", "x"))
        for argv in (["shell", "--", "x"], ["run", "--mem", "0", "--", "x"], ["run", "--timeout", "-1", "--", "x"],
                     ["fly"], [], ["run", "--env", "1=2", "--", "x"], ["run", "--lan", "--", "x"]):
            with self.subTest(argv):
                self.refused(*argv)

    def test_a_verb_without_a_lab_is_told_so(self) -> None:
        with mock.patch.dict(os.environ), self.assertRaises(LabError) as refused:
            os.environ.pop("LAB_SOCK", None)
            client.call(["kill", "a"])
        self.assertEqual(refused.exception.code, EXIT_USAGE)

    def test_the_entry_point(self) -> None:
        done = subprocess.run([sys.executable, str(ENTRY), "run"], stderr=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, EXIT_USAGE)
        self.assertIn("nothing to run", done.stderr)


class FakeVm:
    """Notes what is done to it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def kill(self) -> None:
        self.done.append("kill")

    def set_carrier(self, up: bool) -> None:
        self.done.append(f"carrier {up}")


class Verbs(unittest.TestCase):
    """Requests over the real socket, to VMs that are none."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "lab.sock"
        self.session = mock.Mock(vms={"a": FakeVm(), "b": FakeVm()}, options=Options("pair"))
        self.relay = Relay(Path(directory.name), 1)
        self.relay.start()
        self.addCleanup(self.relay.stop)
        server.Server(self.session, self.relay, self.path).start()

    def call(self, *argv: str) -> tuple[int, str, str]:
        done = subprocess.run([sys.executable, str(ENTRY), *argv], capture_output=True, text=True,
                              env={**os.environ, "LAB_SOCK": str(self.path)})
        return done.returncode, done.stdout, done.stderr

    def test_verbs_reach_the_vm_and_the_wire(self) -> None:
        self.assertEqual(self.call("kill", "a")[0], 0)
        self.assertEqual(self.call("carrier", "b", "down")[0], 0)
        self.assertEqual((self.session.vms["a"].done, self.session.vms["b"].done), (["kill"], ["carrier False"]))
        self.assertEqual(self.call("link", "a>b", "cut=1")[0], 0)
        self.assertEqual(self.relay.directions["a>b"].admit(FRAME, 0.0), [])
        self.assertEqual(len(self.relay.directions["b>a"].admit(FRAME, 0.0)), 1)
        self.assertEqual(self.call("link", "both", "clear")[0], 0)
        self.assertEqual(len(self.relay.directions["a>b"].admit(FRAME, 0.0)), 1)
        code, out, _ = self.call("stats")
        self.assertEqual((code, json.loads(out)["a>b"]["cut"]), (0, 1))

    def test_wrong_verbs_are_refused_with_words(self) -> None:
        for argv, words in ((("kill",), "usage: lab kill HOST"), (("kill", "c"), "no VM 'c'"),
                            (("carrier", "a", "sideways"), "up|down"), (("link", "up", "cut=1"), "no link 'up'"),
                            (("link", "both", "drop=200"), "drop is 0 to 100"), (("lan", "a", "cut=1"), "--lan"),
                            (("exec", "a"), "usage: lab exec"), (("stats", "x"), "usage: lab stats")):
            with self.subTest(argv):
                code, _, err = self.call(*argv)
                self.assertEqual(code, EXIT_USAGE)
                self.assertIn(words, err)


class Building(unittest.TestCase):
    def test_modules_come_after_what_they_need(self) -> None:
        needs = {"rdma_rxe": ["ib_core", "udp_tunnel"], "ib_core": [], "udp_tunnel": [], "bridge": ["stp", "llc"],
                 "stp": ["llc"], "llc": [], "ext4": None}
        order = load_order(("rdma-rxe", "bridge", "ext4", "ib_core"), lambda name: needs[name])
        self.assertEqual(order, ["ib_core", "udp_tunnel", "rdma_rxe", "llc", "stp", "bridge"])

    def test_modinfo(self) -> None:
        image = b"\x7fELF..\0license=GPL\0depends=ib_core,udp_tunnel\0retpoline=Y\0"
        self.assertEqual(modinfo_depends(image), ["ib_core", "udp_tunnel"])
        self.assertEqual(modinfo_depends(b"\0depends=\0"), [])

    def test_cpio_bytes(self) -> None:
        archive = initramfs.Cpio()
        archive.directory("bin")
        archive.file("bin/x", b"hello", 0o755)
        archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
        data = archive.finish()
        self.assertEqual(data[:6 + 8 * 2], b"070701" + b"00000001" + b"000041ed")
        self.assertEqual(len(data) % 4, 0)
        entries = dict(read_cpio(data))
        self.assertEqual(list(entries), ["bin", "bin/x", "dev/console", "TRAILER!!!"])
        self.assertEqual(entries["bin/x"], (0o100755, b"hello", (0, 0)))
        self.assertEqual(entries["dev/console"][2], (5, 1))

    def test_a_package_is_unpacked_without_dpkg(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            package = Path(directory) / "x.deb"
            package.write_bytes(deb({"./boot/vmlinuz-6.1": b"kernel"}))
            debian.unpack(package, Path(directory) / "out")
            self.assertEqual((Path(directory) / "out/boot/vmlinuz-6.1").read_bytes(), b"kernel")
            package.write_bytes(b"no package at all")
            with self.assertRaises(LabError) as refused:
                debian.unpack(package, Path(directory) / "other")
            self.assertEqual(refused.exception.code, EXIT_MISSING)

    def test_the_metapackage_names_the_kernel(self) -> None:
        paragraph = "Package: linux-image-amd64\nDepends: linux-image-6.1.0-56-amd64 (= 6.1.192-2)\n"
        self.assertEqual(debian.kernel_dependency(paragraph), "linux-image-6.1.0-56-amd64")
        self.assertIsNone(debian.kernel_dependency("Package: linux-image-6.1.0-56-amd64\nDepends: kmod\n"))

    def test_a_dynamic_program_is_no_busybox(self) -> None:
        self.assertFalse(initramfs.is_static(Path("/bin/sh").resolve()))


class Machines(unittest.TestCase):
    def test_the_root_is_read_only_and_commas_are_doubled(self) -> None:
        kernel = Kernel("6.1", Path("/k"), Path("/m"))
        machine = qemu.Machine(kernel, Path("/i"), "tcg", shares=[
            qemu.Share("root", Path("/"), read_only=True), qemu.Share("rw0", Path("/a,b"))])
        with mock.patch.object(qemu, "program", return_value="qemu"), \
                mock.patch.object(qemu, "clock_arguments", return_value=""):
            command = " ".join(machine.command(Path("/c"), Path("/s"), with_tty=False))
        self.assertIn("path=/,security_model=none,multidevs=remap,readonly=on", command)
        self.assertIn("path=/a,,b,security_model=none,multidevs=remap,readonly=off", command)

    def test_a_refusal_of_qemu_has_a_remedy(self) -> None:
        said = "qemu: -fsdev local,id=x: There is no option group 'fsdev'"
        self.assertIn("virtfs", qemu.remedy(said) or "")
        self.assertIsNone(qemu.remedy("something else"))

    def test_a_job_is_quoted(self) -> None:
        script = job_script("j1", ["sh", "-c", "echo $0 'x'"], {"A": "b c"}, "/tmp/it's")
        lines = script.replace("/run/lab/j1.pid", "/dev/null").replace("/tmp/it'\"'\"'s", "/")
        self.assertIn("exec sh -c 'echo $0 '\"'\"'x'\"'\"''", lines)
        self.assertIn("export A='b c'", lines)

    def test_complaints_of_a_kernel(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            log = Path(directory) / "console.log"
            log.write_text("[ 1.0] ok\n[ 2.0] ------------[ cut here ]------------\n[ 2.1] WARNING: CPU: 0\n")
            self.assertEqual(len(console.complaint(log)), 2)
            log.write_text("[ 1.0] ok\n[ 9.0] watchdog: BUG: soft lockup - CPU#1 stuck for 22s!\n")
            self.assertEqual(console.complaint(log), [])


def read_cpio(data: bytes):  # type: ignore[no-untyped-def]
    """Entries of a newc archive: name, (mode, body, device)."""
    at = 0
    while at < len(data):
        fields = [int(data[at + 6 + 8 * field:at + 14 + 8 * field], 16) for field in range(13)]
        name_end = at + 110 + fields[11]
        body_at = (name_end + 3) // 4 * 4
        yield data[at + 110:name_end - 1].decode(), (
            fields[1], data[body_at:body_at + fields[6]], (fields[9], fields[10]))
        at = (body_at + fields[6] + 3) // 4 * 4


def deb(files: dict[str, bytes]) -> bytes:
    """A .deb with these files and an odd-sized member before them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    members = (("debian-binary", b"2.0"), ("data.tar.xz", buffer.getvalue()))
    return b"!<arch>\n" + b"".join(
        f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
        for name, body in members)


if __name__ == "__main__":
    unittest.main()
