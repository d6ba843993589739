//! What the register says before `protect` starts.

use crate::world::{VM, World, free_addr};
use afterimage::arbiter::file;
use mc_core::{
    id::{Generation, Name},
    register::{Mode, Owner, Register},
};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

#[test]
fn a_vm_that_belongs_to_somebody_else() {
    let solo = Register { generation: Generation(7), owner: Owner { node: name("c"), instance: 1 }, mode: Mode::Solo };
    let mine = Owner { node: name("a"), instance: 1 };
    let cases: [(Register, &[&str]); 3] = [
        (solo, &["web belongs to node c since", "what to do", "protect the VM on that node"]),
        (Register { mode: Mode::Protected { standby: name("a") }, ..solo }, &["web belongs to node c since"]),
        // An earlier QEMU of this node: its standby may take over any moment.
        (
            Register { owner: mine, mode: Mode::Protected { standby: name("b") }, ..solo },
            &["another QEMU process of this node", "node b holds its last commit", "what to do"],
        ),
    ];
    for (register, words) in cases {
        let Some(mut world) = World::new() else { return };
        std::fs::create_dir(world.path("witness")).unwrap();
        file::store(&world.path("witness"), VM, name(VM), register).unwrap();
        let _witness = world.witness();
        let vm = world.vm("vm", &[]);
        world.protect("a", "protect", &vm.qmp, free_addr(), "").expect_end(4, words);
        vm.serial.goes_on();
        let held = file::load(&world.path("witness").join("web.reg"), name(VM)).unwrap();
        assert_eq!(held, Some(register), "nothing was changed");
    }
}
