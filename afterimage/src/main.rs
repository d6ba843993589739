//! The `afterimage` binary.

fn main() {}
