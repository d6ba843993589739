//! Beats: with a wrong code nothing decodes; with the right one, what decodes encodes to itself.

use mc_core::wire::beat::{Beat, BeatKey, LEN};

/// Fails by a panic.
pub fn run(bytes: &[u8]) {
    let key = BeatKey([42; 32]);
    if let Ok(beat) = Beat::decode(bytes, &key) {
        assert_eq!(bytes.len(), LEN);
        assert_eq!(Beat::decode(&beat.encode(&key), &key), Ok(beat));
        assert!(Beat::decode(bytes, &BeatKey([8; 32])).is_err());
    }
}
