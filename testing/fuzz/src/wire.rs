//! Every fixed-size record: whatever decodes must encode to the bytes that it came from, but for ignored fields.

use mc_core::wire::{arbiter, control, rdma, session};

/// Fails by a panic.
pub fn run(bytes: &[u8]) {
    if let Ok(record) = control::Control::decode(bytes) {
        assert_eq!(control::Control::decode(&record.encode()), Ok(record));
    }
    if let Ok(request) = arbiter::Request::decode(bytes) {
        assert_eq!(arbiter::Request::decode(&request.encode()), Ok(request));
    }
    if let Ok(answer) = arbiter::Answer::decode(bytes) {
        assert_eq!(arbiter::Answer::decode(&answer.encode()), Ok(answer));
    }
    if let Ok(stored) = arbiter::Stored::decode(bytes) {
        assert_eq!(arbiter::Stored::decode(&stored.encode()), Ok(stored));
    }
    if let Ok(hello) = session::Hello::decode(bytes) {
        assert_eq!(session::Hello::decode(&hello.encode()), Ok(hello));
    }
    if let Ok(endpoint) = rdma::Endpoint::decode(bytes) {
        assert_eq!(rdma::Endpoint::decode(&endpoint.encode()), Ok(endpoint));
    }
    if let Ok(message) = rdma::Message::decode(bytes) {
        assert_eq!(rdma::Message::decode(&message.encode()), Ok(message));
    }
    if let Ok(header) = session::FrameHeader::decode(bytes) {
        assert!(header.len <= session::MAX_PROFILE);
        let _ = header.check(&bytes[session::FRAME_LEN..]);
    }
}
