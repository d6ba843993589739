//! Checkpoints over TCP, beats over UDP.
