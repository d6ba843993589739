//! The test rig.

fn main() {}
