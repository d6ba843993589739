//! QMP's lines: never a panic, and the same messages however the bytes arrive.

use vmm_qemu::qmp::{LineError, Lines, Message};

/// Fails by a panic. The first byte says how long the pieces are.
pub fn run(bytes: &[u8]) {
    let Some((piece, stream)) = bytes.split_first() else { return };
    let at_once = read(std::iter::once(stream));
    assert_eq!(read(stream.chunks(1 + usize::from(*piece))), at_once);
}

/// All messages, and the beginning of what is left.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Result<Message, LineError>>, String) {
    let mut lines = Lines::default();
    let mut messages = Vec::new();
    for piece in pieces {
        lines.push(piece);
        while let Some(message) = lines.next_message().transpose() {
            messages.push(message);
        }
    }
    (messages, lines.unfinished())
}
