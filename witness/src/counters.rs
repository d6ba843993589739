//! What a witness counts.

/// What a witness has counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Answers: read, won, lost, failed, refused.
    pub answers: [u64; 5],
    /// Registers that are not vacant.
    pub registers: u64,
    /// Connections that are open.
    pub connections: u64,
}
