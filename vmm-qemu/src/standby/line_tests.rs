use super::*;
use crate::blocks::RamBlock;
use std::path::Path;

const QEMU: &str = "qemu-system-x86_64 -M pc-i440fx-7.2 -m 1G";

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn main_ram(name: &str) -> MainRam {
    MainRam::of(&RamBlock { name: name.into(), used_length: 1 << 30 })
}

fn prepared(argv: &str, block: &str) -> Line {
    Line::prepare(&words(argv), Some(&main_ram(block))).unwrap()
}

/// What is added to QEMU's name and options, what is left, and what is said.
#[test]
fn what_is_in_the_way_is_left_out_and_said() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("", "", &[]),
        ("-S", "", &["-S was left out: the VM has to run"]),
        ("--S -nodefaults", "-nodefaults", &["--S was left out"]),
        (
            "-daemonize -pidfile /run/web.pid",
            "-pidfile /run/web.pid",
            &["-daemonize was left out: this program looks after"],
        ),
        ("-incoming defer", "", &["-incoming defer was left out: the standby waits by itself"]),
        ("--incoming tcp:0:4444 -S", "", &["--incoming tcp:0:4444 was left out", "-S was left out"]),
        (
            "-mem-path /dev/hugepages -mem-prealloc",
            "",
            &["-mem-path /dev/hugepages was left out", "-mem-prealloc was left out"],
        ),
        // A name is no option.
        ("-name -S", "-name -S", &[]),
        ("-append -daemonize", "-append -daemonize", &[]),
        ("-name memory-backend=x", "-name memory-backend=x", &[]),
        ("-qmp unix:/q,server=on,wait=off", "-qmp unix:/q,server=on,wait=off", &[]),
        ("-qmp unix:/q,server,nowait", "-qmp unix:/q,server,nowait", &[]),
        ("-qmp unix:/q,server=on", "-qmp unix:/q,server=on,wait=off", &["-qmp unix:/q,server=on was given wait=off"]),
        (
            "-serial tcp::4444,server",
            "-serial tcp::4444,server,wait=off",
            &["QEMU would not start before a client comes"],
        ),
        (
            "-chardev socket,id=m,path=/m,server=on,wait=on -mon chardev=m",
            "-chardev socket,id=m,path=/m,server=on,wait=off -mon chardev=m",
            &["was given wait=off"],
        ),
        ("-chardev socket,id=m,path=/m", "-chardev socket,id=m,path=/m", &[]),
    ];
    for (given, left, notes) in cases {
        let line = prepared(&format!("{QEMU} {given}"), "pc.ram");
        assert_eq!(line.line.words(), words(&format!("{QEMU} {left}")), "{given}");
        assert_eq!(line.notes.len(), notes.len(), "{given}: {:?}", line.notes);
        for (said, note) in line.notes.iter().zip(*notes) {
            assert!(said.contains(note), "{given}: {said}");
        }
        assert!(!line.named && line.attach == Attach::Machine, "{given}");
    }
}

/// Every spelling of a memory backend makes room for the RAM image.
#[test]
fn memory_backends_are_replaced() {
    let json = r#"-object {"qom-type":"memory-backend-memfd","id":"pc.ram","size":1073741824,"share":true}"#;
    let cases: &[(&str, &str, &str)] = &[
        ("-machine memory-backend=m0 -object memory-backend-memfd,id=m0,size=1G,share=on", "m0", ""),
        ("-M pc,memory-backend=m0,usb=off -object memory-backend-ram,id=m0,size=1G", "m0", "-M pc,usb=off"),
        (
            "--machine type=pc,memory-backend=m0 --object memory-backend-ram,size=1G,id=m0",
            "/objects/m0",
            "--machine type=pc",
        ),
        ("-object qom-type=memory-backend-file,id=m0,size=1G,mem-path=/dev/shm/x -M memory-backend=m0", "m0", ""),
        (&format!("-machine pc,memory-backend=pc.ram {json}"), "pc.ram", "-machine pc"),
        // The primary has none, the standby has one.
        ("-machine memory-backend=mine -object memory-backend-ram,id=mine,size=1G", "pc.ram", ""),
    ];
    for (given, block, left) in cases {
        let line = prepared(&format!("{QEMU} {given}"), block);
        assert_eq!(line.line.words(), words(&format!("{QEMU} {left}")), "{given}");
        assert!(line.named && line.attach == Attach::Machine && line.notes.len() == 2, "{given}: {:?}", line.notes);
        let added = main_ram(block).over_file(&line, Path::new("/dev/shm/a,b"), true);
        let id = block.trim_start_matches("/objects/");
        let object = format!("-object memory-backend-file,id={id},size=1073741824,mem-path=/dev/shm/a,,b,share=on");
        assert_eq!(
            added.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [object, format!("-machine memory-backend={id}")]
        );
    }
}

#[test]
fn one_numa_node_may_have_a_memdev() {
    let given = "-object memory-backend-memfd,id=ram-node0,size=1G -numa node,nodeid=0,cpus=0-1,memdev=ram-node0";
    let line = prepared(&format!("{QEMU} {given}"), "ram-node0");
    assert_eq!(line.line.words(), words(&format!("{QEMU} -numa node,nodeid=0,cpus=0-1,memdev=ram-node0")));
    let added = main_ram("ram-node0").over_file(&line, Path::new("/x"), false);
    let object = "-object memory-backend-file,id=ram-node0,size=1073741824,mem-path=/x,share=off";
    assert_eq!(added.iter().map(ToString::to_string).collect::<Vec<_>>(), [object]);
    let ordinary = main_ram("ram-node0").ordinary(&line);
    assert_eq!(ordinary[0].to_string(), "-object memory-backend-ram,id=ram-node0,size=1073741824");

    let renamed = prepared(&format!("{QEMU} {given}"), "mem");
    assert_eq!(renamed.line.items.last().unwrap().to_string(), "-numa node,nodeid=0,cpus=0-1,memdev=mem");
    assert!(
        renamed.notes.iter().any(|note| note.contains("memdev=ram-node0 of -numa was made mem")),
        "{:?}",
        renamed.notes
    );

    let two = format!("{QEMU} {given} -numa node,nodeid=1,memdev=ram-node1");
    let error = Line::prepare(&words(&two), None).unwrap_err().to_string();
    assert!(error.contains("-numa node,nodeid=1,memdev=ram-node1") && error.contains("one node"), "{error}");
}

#[test]
fn memory_beside_the_main_memory_stays_private() {
    let dimm = |options: &str| format!("{QEMU},slots=2,maxmem=4G -object {options} -device pc-dimm,memdev=d0");
    let cases = [
        ("memory-backend-ram,id=d0,size=1G", "memory-backend-ram,id=d0,size=1G", 0),
        ("memory-backend-memfd,id=d0,size=1G", "memory-backend-memfd,id=d0,size=1G,share=off", 1),
        (
            "memory-backend-file,id=d0,size=1G,share=on,mem-path=/x",
            "memory-backend-file,id=d0,size=1G,mem-path=/x,share=off",
            1,
        ),
    ];
    for (given, left, notes) in cases {
        let line = prepared(&dimm(given), "pc.ram");
        assert_eq!(line.line.words(), words(&dimm(left)));
        assert_eq!(line.notes.len(), notes, "{:?}", line.notes);
    }
    let refused = Line::prepare(&words(&dimm("memory-backend-shm,id=d0,size=1G")), None).unwrap_err().to_string();
    assert!(refused.contains("memory-backend-shm") && refused.contains("memory-backend-ram"), "{refused}");
}

#[test]
fn what_cannot_be_rewritten_is_refused() {
    for (given, why) in [("--preconfig", "leave it out"), ("-loadvm snapshot1", "comes from the primary")] {
        let error = Line::prepare(&words(&format!("{QEMU} {given}")), None).unwrap_err();
        assert!(matches!(error, StandbyError::Argument { .. }), "{error}");
        assert!(error.to_string().contains(given) && error.to_string().contains(why), "{error}");
    }
    assert!(matches!(Line::prepare(&[], None), Err(StandbyError::NoCommand)));
}
