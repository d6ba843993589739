//! One connection's requests, byte by byte: how long each is waited for, and when the connection ends. A value: whoever has the socket tells
//! what was read, and when.

use mc_core::{
    id::Time,
    wire::arbiter::{REQUEST_LEN, Request},
};
use std::{io, time::Duration};

/// A connection without a request for this long is closed, though nobody needs its place. Nodes ask once a second.
const IDLE: Duration = Duration::from_secs(3600);
/// Between a request's first and last byte, and for its answer to be taken.
pub(crate) const MESSAGE: Duration = Duration::from_secs(5);

/// Waits for a request.
#[derive(Debug)]
pub(crate) struct Conversation {
    bytes: [u8; REQUEST_LEN],
    have: usize,
    until: Time,
}

/// What came of some bytes.
#[expect(clippy::large_enum_variant, reason = "moved once per request; a box would be allocated for each")]
#[derive(Debug)]
pub(crate) enum Step {
    /// They are not a whole request yet.
    More,
    /// They are one.
    Asks(Request),
    /// There are none, and none are missing.
    Closed,
}

impl Conversation {
    /// From now on.
    pub(crate) fn new(now: Time) -> Self {
        Self { bytes: [0; REQUEST_LEN], have: 0, until: now.after(IDLE) }
    }

    /// Where the next bytes go.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.have..]
    }

    /// Until when to wait for them; then [`Conversation::expired`].
    pub(crate) fn deadline(&self) -> Time {
        self.until
    }

    /// So many bytes were read, 0 at the end.
    ///
    /// # Errors
    /// The connection ends, for this reason.
    pub(crate) fn read(&mut self, now: Time, read: io::Result<usize>) -> io::Result<Step> {
        let first = self.have == 0;
        match read {
            Ok(0) if first => return Ok(Step::Closed),
            Ok(0) => {
                let what = format!("{} of {REQUEST_LEN} bytes", self.have);
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
            }
            Ok(n) => self.have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(Step::More),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset && first => return Ok(Step::Closed),
            Err(e) => return Err(e),
        }
        if first {
            self.until = now.after(MESSAGE);
        }
        if self.have < REQUEST_LEN {
            return Ok(Step::More);
        }
        Request::decode(&self.bytes).map(Step::Asks).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    /// Its deadline has passed.
    ///
    /// # Errors
    /// In the middle of a request.
    pub(crate) fn expired(&self) -> io::Result<()> {
        if self.have == 0 {
            return Ok(());
        }
        let what = format!("{} of {REQUEST_LEN} bytes in {} s", self.have, MESSAGE.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::{
        id::{Name, NodeId},
        wire::arbiter::{Ask, Asker},
    };

    fn request() -> Request {
        let asker = Asker { node: NodeId([1; 16]), seen: None, boot: 0 };
        Request { id: 7, vm: Name::new("web").unwrap(), asker, ask: Ask::Read }
    }

    fn feed(conversation: &mut Conversation, now: Time, bytes: &[u8]) -> io::Result<Step> {
        conversation.room()[..bytes.len()].copy_from_slice(bytes);
        conversation.read(now, Ok(bytes.len()))
    }

    #[test]
    fn a_request_may_come_byte_by_byte_but_not_for_longer_than_five_seconds_from_its_first() {
        let mut conversation = Conversation::new(Time(0));
        assert_eq!(conversation.deadline(), Time(0).after(IDLE));
        let (bytes, first) = (request().encode(), Time(0).after(Duration::from_secs(100)));
        let (last, before) = bytes.split_last().unwrap();
        for (byte, later) in before.iter().zip(0..) {
            let now = first.after(Duration::from_millis(later));
            assert!(matches!(feed(&mut conversation, now, &[*byte]), Ok(Step::More)));
            assert_eq!(conversation.deadline(), first.after(MESSAGE));
        }
        assert_eq!(conversation.expired().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(matches!(feed(&mut conversation, first, &[*last]), Ok(Step::Asks(asked)) if asked == request()));
    }

    #[test]
    fn silence_between_two_requests_is_an_end_and_within_one_an_error() {
        let mut conversation = Conversation::new(Time(0));
        assert!(conversation.expired().is_ok());
        assert!(matches!(conversation.read(Time(1), Ok(0)), Ok(Step::Closed)));
        let reset = || Err(io::ErrorKind::ConnectionReset.into());
        assert!(matches!(conversation.read(Time(1), reset()), Ok(Step::Closed)));
        assert!(matches!(feed(&mut conversation, Time(1), b"G"), Ok(Step::More)));
        assert_eq!(conversation.read(Time(2), Ok(0)).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(conversation.read(Time(2), reset()).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut garbage = Conversation::new(Time(0));
        let refused = feed(&mut garbage, Time(1), &[b'G'; REQUEST_LEN]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }
}
