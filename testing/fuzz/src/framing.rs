//! QEMU's frames, in pieces of every size: what is read is what was sent, a length over the limit is an error for good.

use vmm_qemu::gate::framing::{FrameReader, HEADER, MAX_FRAME};

/// Fails by a panic. The first byte says how long the pieces are.
pub fn run(bytes: &[u8]) {
    let Some((piece, stream)) = bytes.split_first() else { return };
    let mut reader = FrameReader::default();
    let mut read = 0;
    for piece in stream.chunks(1 + usize::from(*piece) * 37) {
        let space = reader.space();
        assert!(space.len() >= piece.len(), "every whole frame was taken, and there is no room");
        space[..piece.len()].copy_from_slice(piece);
        reader.filled(piece.len());
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => {
                    let length = u32::try_from(frame.len()).expect("bounded");
                    assert!(frame.len() <= MAX_FRAME);
                    assert_eq!(stream[read..read + HEADER], length.to_be_bytes());
                    assert_eq!(&stream[read + HEADER..read + HEADER + frame.len()], frame);
                    read += HEADER + frame.len();
                }
                Ok(None) => break,
                Err(oversized) => {
                    assert_eq!(reader.next_frame(), Err(oversized));
                    return;
                }
            }
        }
    }
    assert_eq!(read + reader.partial(), stream.len());
}
