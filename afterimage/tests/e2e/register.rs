//! What the register says before `protect` starts.

use crate::world::{VM, World, free_addr};
use mc_core::{
    id::{Generation, Name, Node, NodeId},
    register::{Mode, Owner, Register},
};
use node::{arbiter::file, identity};

/// Stands for the identity of the node that the test runs.
const THIS: u8 = 0;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

#[test]
fn a_vm_that_belongs_to_somebody_else() {
    let copy = |node, id| Owner { node: Node { name: name(node), id: NodeId([id; 16]) }, instance: 1 };
    let solo = Register { generation: Generation(7), owner: copy("c", 3), mode: Mode::Solo };
    let cases: [(Register, &[&str]); 4] = [
        (solo, &["web belongs to node c since", "what to do", "protect the VM on that node"]),
        (Register { mode: Mode::Protected { standby: copy("a", 1) }, ..solo }, &["web belongs to node c since"]),
        // A host of the same name.
        (Register { owner: copy("a", 4), ..solo }, &["web belongs to node a since"]),
        // An earlier QEMU of this node: its standby may take over any moment.
        (
            Register { owner: copy("a", THIS), mode: Mode::Protected { standby: copy("b", 2) }, ..solo },
            &["another QEMU process of this node", "node b holds its last commit", "what to do"],
        ),
    ];
    for (mut register, words) in cases {
        let Some(mut world) = World::new() else { return };
        let this = identity::node(&world.path("state-a"), name("a")).unwrap();
        if register.owner.node.id == NodeId([THIS; 16]) {
            register.owner.node = this;
        }
        std::fs::create_dir(world.path("witness")).unwrap();
        file::store(&world.path("witness"), VM, name(VM), register).unwrap();
        let _witness = world.witness();
        let vm = world.vm("vm", &[]);
        world.protect("a", "protect", &vm.qmp, free_addr(), "--once").expect_end(4, words);
        vm.serial.goes_on();
        let held = file::load(&world.path("witness").join("web.reg"), name(VM)).unwrap();
        assert_eq!(held, Some(register), "nothing was changed");
    }
}
