use super::*;

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn isolated(argv: &[String]) -> Result<CommandLine, NotIsolated> {
    isolate(&Line::prepare(argv, None).unwrap(), Path::new("/d"))
}

/// What `given`, behind QEMU's name, becomes, without what is always added.
fn becomes(given: &str) -> String {
    let line = isolated(&words(&format!("qemu-system-x86_64 {given}"))).unwrap_or_else(|e| panic!("{given}: {e}"));
    let text = line.words()[1..].join(" ");
    let ends = "-display none -monitor none -S";
    text.strip_suffix(ends).unwrap_or_else(|| panic!("{text} does not end with {ends}")).trim_end().to_owned()
}

#[test]
fn network_back_ends_keep_their_kind_and_lose_their_connections() {
    let private = "server=on,addr.type=unix,addr.path=/d/n0";
    let tap = "ifname=afterimage%d,script=no,downscript=no";
    for (given, kept) in [
        (
            "-netdev stream,id=n0,server=on,addr.type=unix,addr.path=/run/web.net",
            format!("-netdev stream,id=n0,{private}"),
        ),
        (
            "-netdev stream,id=n0,server=off,addr.type=inet,addr.host=h,addr.port=1",
            format!("-netdev stream,id=n0,{private}"),
        ),
        ("-netdev socket,id=n0,connect=10.0.0.1:1234", format!("-netdev stream,id=n0,{private}")),
        ("-netdev socket,id=n0,mcast=230.0.0.1:1234", format!("-netdev stream,id=n0,{private}")),
        (
            "-netdev dgram,id=n0,local.type=unix,local.path=/a,remote.type=unix,remote.path=/b",
            format!("-netdev stream,id=n0,{private}"),
        ),
        ("-netdev hubport,id=n0,hubid=0", format!("-netdev stream,id=n0,{private}")),
        ("-netdev vde,id=n0,sock=/run/vde", format!("-netdev stream,id=n0,{private}")),
        ("-netdev tap,id=n0,ifname=tap0,script=no,downscript=no", format!("-netdev tap,id=n0,{tap}")),
        (
            "-netdev tap,id=n0,script=/etc/qemu-ifup,vhost=on,queues=2",
            format!("-netdev tap,id=n0,queues=2,vhost=on,{tap}"),
        ),
        ("-netdev tap,fd=30,id=n0,vhost=on,vhostfd=31", format!("-netdev tap,id=n0,vhost=on,{tap}")),
        (
            "-netdev tap,fds=30:31:32,id=n0,vhost=on,vhostfds=1:2:3",
            format!("-netdev tap,id=n0,vhost=on,{tap},queues=3"),
        ),
        ("-netdev tap,id=n0,vnet_hdr=off,br=br0,helper=/h", format!("-netdev tap,id=n0,vnet_hdr=off,{tap}")),
        ("-netdev bridge,id=n0,br=br0", format!("-netdev tap,id=n0,{tap}")),
        ("-netdev user,id=n0", "-netdev user,id=n0,restrict=on".into()),
        (
            "-netdev user,id=n0,net=10.1.0.0/24,hostfwd=tcp::2222-:22,hostfwd=udp::5-:5,tftp=/srv,smb=/home",
            "-netdev user,id=n0,net=10.1.0.0/24,restrict=on".into(),
        ),
        (
            "-netdev user,id=n0,guestfwd=tcp:10.0.2.100:80-tcp:10.0.0.1:80",
            "-netdev user,id=n0,guestfwd=tcp:10.0.2.100:80-cmd:true,restrict=on".into(),
        ),
        ("-nic none", "-nic none".into()),
        (
            "-nic user,model=virtio-net-pci,mac=52:54:00:00:00:01,hostfwd=tcp::1-:1",
            "-nic user,model=virtio-net-pci,mac=52:54:00:00:00:01,restrict=on".into(),
        ),
        ("-nic tap,model=e1000,ifname=tap1", format!("-nic tap,model=e1000,{tap}")),
        ("-net nic,model=e1000 -net user", "-net nic,model=e1000 -net user,restrict=on".into()),
        ("-net nic -net tap,ifname=tap0", format!("-net nic -net tap,{tap}")),
        (
            r#"-netdev {"type":"tap","fd":"30","vhost":true,"vhostfd":"31","id":"hostnet0"}"#,
            format!("-netdev tap,id=hostnet0,vhost=on,{tap}"),
        ),
        (
            r#"-netdev {"type":"user","id":"n0","hostfwd":[{"str":"tcp::1-:1"}]}"#,
            r#"-netdev {"id":"n0","restrict":true,"type":"user"}"#.into(),
        ),
    ] {
        assert_eq!(becomes(given), kept, "{given}");
    }
    let two = becomes("-netdev stream,id=a,server=on -device e1000,netdev=a -netdev stream,id=b,server=on");
    assert!(two.contains("id=a,server=on,addr.type=unix,addr.path=/d/n0") && two.contains("addr.path=/d/n1"), "{two}");
}

#[test]
fn ports_and_channels_lead_nowhere() {
    for (given, kept) in [
        ("-serial stdio -parallel /dev/parport0", "-serial null -parallel null"),
        ("-serial none -serial mon:stdio -serial tcp::1,server=on,wait=off", "-serial none -serial null -serial null"),
        ("-chardev pty,id=c0 -serial chardev:c0", "-chardev null,id=c0 -serial chardev:c0"),
        (
            "-chardev stdio,mux=on,id=c0 -mon chardev=c0 -serial chardev:c0",
            "-chardev null,id=c0,mux=on -serial chardev:c0",
        ),
        ("-chardev socket,id=m,path=/m,server=on,wait=off -mon chardev=m,mode=control", "-chardev null,id=m"),
        ("-qmp unix:/q,server=on,wait=off -monitor stdio -pidfile /p -daemonize -S", ""),
        ("-vnc :1 -spice port=5900 -display gtk -k de", "-k de"),
        ("-display vnc=unix:/v -vga qxl", "-vga qxl"),
        ("-nographic", "-machine graphics=off"),
        ("-gdb tcp::1 -s -d int -D /log -trace x -runas nobody -chroot /c -sandbox on", ""),
        (
            "-audiodev pa,id=a0,server=/p -device hda-duplex,audiodev=a0",
            "-audiodev driver=none,id=a0 -device hda-duplex,audiodev=a0",
        ),
        ("-audio pa,model=hda", "-audio driver=none,model=hda"),
        ("-overcommit mem-lock=on", "-overcommit mem-lock=off"),
        ("-object filter-dump,id=f,netdev=n0,file=/x -object iothread,id=i", "-object iothread,id=i"),
        ("-set device.net0.x=1 -usbdevice tablet", "-set device.net0.x=1 -usbdevice tablet"),
    ] {
        assert_eq!(becomes(given), kept, "{given}");
    }
}

/// Unknown to us is not harmless.
#[test]
fn what_cannot_be_cut_off_is_refused_by_name() {
    for (given, named) in [
        ("-device vfio-pci,host=01:00.0", "vfio-pci"),
        ("-device vhost-vsock-pci,guest-cid=3", "vhost-vsock-pci"),
        ("-device vhost-user-fs-pci,chardev=c,tag=t", "vhost-user-fs-pci"),
        ("-device usb-host,hostbus=1", "usb-host"),
        ("-device ivshmem-plain,memdev=m", "ivshmem-plain"),
        (r#"-device {"driver":"vfio-pci","host":"0000:01:00.0"}"#, "vfio-pci"),
        ("-netdev vhost-user,id=n0,chardev=c", "vhost-user"),
        ("-netdev vhost-vdpa,id=n0,vhostdev=/dev/vhost-vdpa-0", "vhost-vdpa"),
        ("-netdev passt,id=n0", "passt"),
        ("-netdev tomorrows,id=n0", "tomorrows"),
        ("-object tomorrows-object,id=o", "tomorrows-object"),
        ("-object dbus-vmstate,id=o", "dbus-vmstate"),
        ("-blockdev driver=nvme,node-name=n,device=0000:01:00.0,namespace=1", "nvme"),
        ("-drive file.driver=vhost-user,if=none", "vhost-user"),
        (
            r#"-blockdev {"driver":"raw","file":{"driver":"virtio-blk-vhost-vdpa","path":"/dev/vhost-vdpa-0"},"node-name":"n"}"#,
            "vdpa",
        ),
        ("-tpmdev emulator,id=t,chardev=c", "-tpmdev"),
        ("-fsdev proxy,id=f,socket=/s", "proxy"),
        ("-readconfig /etc/vm.cfg", "-readconfig /etc/vm.cfg"),
        ("-set netdev.n0.ifname=tap0", "-set netdev.n0.ifname"),
        ("-usbdevice braille", "braille"),
        ("-add-fd fd=3,set=1", "-add-fd"),
        ("-no-such-option", "-no-such-option"),
        ("-xen-attach", "-xen-attach"),
    ] {
        let error = isolated(&words(&format!("qemu-system-x86_64 {given}"))).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("--no-rehearsal"), "{given}: {error}");
    }
}

/// What virsh makes of a VM (libvirt 9, shortened), without the descriptors that nobody could pass to a standby.
#[test]
fn a_line_of_libvirts() {
    let given = r#"env LC_ALL=C /usr/bin/qemu-system-x86_64 -name guest=web,debug-threads=on -S
        -object {"qom-type":"secret","id":"masterKey0","format":"raw","file":"/var/lib/libvirt/master-key.aes"}
        -machine pc-q35-7.2,usb=off,vmport=off,dump-guest-core=off,memory-backend=pc.ram -accel kvm -cpu host,migratable=on -m 2048
        -object {"qom-type":"memory-backend-ram","id":"pc.ram","size":2147483648} -overcommit mem-lock=off
        -smp 2,sockets=2,cores=1,threads=1 -uuid 6c1c1c1c-0000-0000-0000-000000000001 -no-user-config -nodefaults
        -chardev socket,id=charmonitor,path=/var/lib/libvirt/qemu/monitor.sock,server=on,wait=off
        -mon chardev=charmonitor,id=monitor,mode=control -rtc base=utc,driftfix=slew -global kvm-pit.lost_tick_policy=delay
        -no-hpet -no-shutdown -global ICH9-LPC.disable_s3=1 -boot strict=on
        -device {"driver":"pcie-root-port","port":16,"chassis":1,"id":"pci.1","bus":"pcie.0","multifunction":true,"addr":"0x2"}
        -blockdev {"driver":"file","filename":"/var/lib/libvirt/images/web.qcow2","node-name":"libvirt-1-storage","auto-read-only":true}
        -blockdev {"node-name":"libvirt-1-format","read-only":true,"driver":"qcow2","file":"libvirt-1-storage"}
        -device {"driver":"virtio-blk-pci","bus":"pci.1","drive":"libvirt-1-format","id":"virtio-disk0","bootindex":1}
        -netdev {"type":"stream","server":true,"addr":{"type":"unix","path":"/run/web.net"},"id":"hostnet0"}
        -device {"driver":"virtio-net-pci","netdev":"hostnet0","id":"net0","mac":"52:54:00:11:22:33","bus":"pci.1"}
        -chardev pty,id=charserial0 -device {"driver":"isa-serial","chardev":"charserial0","id":"serial0","index":0}
        -chardev socket,id=charchannel0,path=/run/ga.sock,server=on,wait=off
        -device {"driver":"virtserialport","bus":"virtio-serial0.0","nr":1,"chardev":"charchannel0","id":"channel0","name":"org.qemu.guest_agent.0"}
        -audiodev {"id":"audio1","driver":"none"} -vnc 127.0.0.1:0,audiodev=audio1
        -device {"driver":"VGA","id":"video0","vgamem_mb":16,"bus":"pcie.0","addr":"0x1"}
        -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny -msg timestamp=on"#;
    let argv = words(given);
    let line = isolated(&argv).unwrap();
    let text = line.words().join(" ");
    for gone in ["memory-backend", "monitor.sock", "ga.sock", "/run/web.net", "pty", "-vnc", "-sandbox", "-mon "] {
        assert!(!text.contains(gone), "{gone} is left in {text}");
    }
    for kept in [
        "env LC_ALL=C /usr/bin/qemu-system-x86_64",
        "-machine pc-q35-7.2,usb=off,vmport=off,dump-guest-core=off ",
        "-netdev stream,id=hostnet0,server=on,addr.type=unix,addr.path=/d/n0",
        r#""driver":"virtio-net-pci","netdev":"hostnet0""#,
        "-chardev null,id=charserial0",
        "-chardev null,id=charchannel0",
        r#""driver":"VGA""#,
        "web.qcow2",
        "-display none -monitor none -S",
    ] {
        assert!(text.contains(kept), "{kept} is not in {text}");
    }
}
