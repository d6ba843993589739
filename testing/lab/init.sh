#!/bin/busybox sh
# First process of a lab VM: loads the modules, builds the root (this machine's
# "/" over 9p, read-only, under a tmpfs overlay), brings up the network, then
# obeys the lab over a virtio-serial port. Processes are dear under TCG: few here.
#
# Lines from the lab: run JOB | stop JOB | tty ROWS COLUMNS | time SECONDS | now | off
# Lines to the lab:   ready UPTIME | done JOB CODE | set | timed SECONDS
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

# sysrq b: at once, and with QEMU's -no-reboot it ends the VM
bye() {
    for proc in /new/proc /proc; do
        [ -e $proc/sysrq-trigger ] && echo b >$proc/sysrq-trigger
    done
    sleep 9
}

lab_probe='' lab_name=vm lab_ip='' lab_mtu=4200 lab_modules=''
for word in $(cat /proc/cmdline); do
    case $word in
    lab.probe=*) lab_probe=${word#*=} ;;
    lab.name=*) lab_name=${word#*=} ;;
    lab.ip=*) lab_ip=${word#*=} ;;
    lab.mtu=*) lab_mtu=${word#*=} ;;
    lab.modules=*) lab_modules=${word#*=} ;;
    esac
done
if [ -n "$lab_probe" ]; then
    echo LAB-PROBE-OK
    bye
fi

modprobe -a $(cat /modules) || echo "lab: not all modules are loaded"

N=/new
P=trans=virtio,version=9p2000.L,msize=262144
mkdir -p /over $N
mount -t 9p -o $P,cache=loose,ro root /root || { echo "lab: cannot mount the root share"; bye; }
mount -t tmpfs over /over
mkdir /over/upper /over/work
mount -t overlay -o lowerdir=/root,upperdir=/over/upper,workdir=/over/work over $N

release=$(uname -r)
mkdir -p $N/lib/modules/$release
mount --bind /root$lab_modules $N/lib/modules/$release
for d in proc sys dev; do mount --move /$d $N/$d; done
# The shell opens /dev/null for whatever it starts in the background.
mount --bind $N/dev /dev
# /tmp stays part of the overlay: a checkout may live there
mount -t tmpfs run $N/run
mkdir -p $N/dev/shm $N/dev/pts $N/run/lab/spool $N/run/netns $N/run/lock
mount -t tmpfs shm $N/dev/shm
mount -t devpts pts $N/dev/pts
mount -t debugfs debug $N/sys/kernel/debug
mount -t 9p -o $P,cache=none spool $N/run/lab/spool || { echo "lab: cannot mount the spool share"; bye; }
while read -r tag dir; do
    mkdir -p "$N$dir"
    mount -t 9p -o $P,cache=mmap "$tag" "$N$dir"
done <$N/run/lab/spool/jobs/shares

hostname "$lab_name"
printf '127.0.0.1 localhost\n::1 localhost\n10.78.0.1 a\n10.78.0.2 b\n' >$N/etc/hosts
# A kernel thread that needs a module (tc, nft, ...) runs /sbin/modprobe in this root.
printf '#!/bin/busybox sh\nexec /bin/busybox chroot /new /sbin/modprobe "$@"\n' >/sbin/modprobe
chmod 755 /sbin/modprobe
cat /net.sh >$N/run/lab/net.sh
chroot $N /bin/sh /run/lab/net.sh "$lab_mtu" "$lab_ip" || { echo "lab: the network is not up"; bye; }

for port in $N/sys/class/virtio-ports/*; do
    read -r name <$port/name
    [ "$name" = lab.ctl ] && control=/dev/${port##*/}
done
exec 3<>"$control"
read -r uptime _ <$N/proc/uptime
echo "ready $uptime" >&3

jobs=/run/lab/spool/jobs
while read -r verb id columns <&3; do
    case $verb in
    run) (
        setsid chroot $N /bin/sh $jobs/$id.sh </dev/null >$N$jobs/$id.out 2>$N$jobs/$id.err 3>&-
        echo "done $id $?" >&3
    ) & ;;
    stop) (
        # The job's script wrote its own id, which is its process group's too.
        read -r group <$N/run/lab/$id.pid && kill -TERM "-$group" && sleep 2 && kill -KILL "-$group"
    ) 2>/dev/null & ;;
    tty) (
        setsid -c chroot $N /bin/sh -c "stty sane rows $id cols $columns; bash -l || sh -l" \
            <>/dev/ttyS1 >&0 2>&1 3>&-
        echo "done tty $?" >&3
    ) & ;;
    time)
        chroot $N /bin/date -s "@$id" >/dev/null
        echo set >&3
        ;;
    now) echo "timed $EPOCHREALTIME" >&3 ;;
    off)
        sync
        bye
        ;;
    esac
done
# End of file: the lab is gone, however it ended. So is this VM.
bye
