//! How to embed the engine: `embed.rs`, which `cargo run --example embed` runs.
