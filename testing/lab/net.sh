# Network of a lab VM, run by init.sh inside the VM's root: net.sh MTU [IP]
#
# With an IP, eth0 is the wire to the other VM, and eth1, if there, the LAN port.
# Without, two ends of a veth pair are the wire, and both live in this kernel.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mtu=$1
ip=$2
echo 5000 >/proc/sys/kernel/hung_task_timeout_secs 2>/dev/null

if [ -n "$ip" ]; then
    {
        echo "link set lo up"
        echo "link set eth0 mtu $mtu up"
        echo "address add $ip/24 dev eth0"
        [ -e /sys/class/net/eth1 ] && echo "link set eth1 up"
    } | ip -batch - || exit
    exec rdma link add rxe0 type rxe netdev eth0
fi

ip -batch - <<END || exit
link set lo up
link add w0 type veth peer name w1
END
# Both addresses are local, and yet the traffic between them is to cross the wire:
# each end answers ARP for its own address only and takes packets from a local one ...
for end in w0 w1; do
    conf=/proc/sys/net/ipv4/conf/$end
    echo 1 >$conf/accept_local
    echo 0 >$conf/rp_filter
    echo 1 >$conf/arp_ignore
    echo 2 >$conf/arp_announce
done
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
# ... and the table of local addresses counts at first for what came in over the
# wire only. What goes out finds table 77 before it.
ip -batch - <<END || exit
address add 10.77.1.1/32 dev w0
address add 10.77.1.2/32 dev w1
link set w0 mtu $mtu up
link set w1 mtu $mtu up
route add table 77 10.77.1.2 dev w0 src 10.77.1.1
route add table 77 10.77.1.1 dev w1 src 10.77.1.2
rule add pref 10 iif w0 lookup local
rule add pref 11 iif w1 lookup local
rule add pref 20 lookup 77
rule add pref 30 lookup local
rule del pref 0
END
rdma link add rxe0 type rxe netdev w0 && rdma link add rxe1 type rxe netdev w1
