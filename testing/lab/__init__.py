"""SoftRoCE lab: RDMA without RDMA hardware, in QEMU virtual machines.

A VM of the lab boots a Debian kernel with an initramfs of our own, sees this
machine's root file system read-only over 9p under a tmpfs overlay, and has
rdma_rxe devices. Only the Python standard library is used.

Where to find what, from the outside in:

- ``cli``: the command line; ``common``: exit codes and messages
- ``session``: one lab from boot to clean-up; ``server`` and ``client``: the
  verbs (exec, kill, link, ...) that reach a running lab; ``host``: no VM at all
- ``vm``: one virtual machine and the jobs in it; ``qemu``: its command line;
  ``accel``: KVM or TCG, and the clock; ``console``: what the kernel complains of
- ``relay``: the wire between two VMs; ``faults``: what it does to frames;
  ``lan``: the hub's TAP device on this machine
- ``kernel``, ``debian``, ``modules``, ``initramfs``: what is booted;
  ``init.sh`` and ``net.sh``: what runs first inside
"""
