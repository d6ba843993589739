//! What a sequence of replies proves.
//!
//! Both guests count requests in RAM. If a reply was let out before the state that it came from was safe, the count
//! goes back after a takeover; if two copies of the VM served requests, or one served a request twice, numbers are
//! missing in between. A client that is alone with the counter sees either at once.

/// A kind of lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Something that was answered is forgotten, or an answer never came.
    Lost,
    /// Something was carried out, or answered, more than once.
    Duplicated,
    /// No reply at all, or the guest found wrong memory contents.
    Corrupt,
}

/// Something wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Of which kind.
    pub kind: Wrong,
    /// How many requests it concerns.
    pub count: u64,
    /// In words.
    pub what: String,
}

impl Finding {
    fn new(kind: Wrong, count: u64, what: String) -> Self {
        Self { kind, count, what }
    }
}

/// Books over the Linux guest's replies: `<seq> <n>`, in order on one connection, n growing by one.
#[derive(Clone, Debug, Default)]
pub struct StreamBooks {
    /// The last reply: its number and its count.
    last: Option<(u64, u64)>,
}

impl StreamBooks {
    /// Takes one line. Requests are numbered from 1. Gives (seq, n) if it is the reply to a request not answered yet.
    pub fn reply(&mut self, line: &str) -> (Option<(u64, u64)>, Vec<Finding>) {
        let Some((seq, n)) = parse(line) else {
            let shown: String = line.chars().take(80).collect();
            return (None, vec![Finding::new(Wrong::Corrupt, 1, format!("'{shown}' is no reply"))]);
        };
        let (last_seq, last_n) = self.last.unwrap_or((0, n.saturating_sub(seq)));
        if seq <= last_seq {
            let what = format!("request {seq} was answered again (n {n}), after {last_seq} was");
            return (None, vec![Finding::new(Wrong::Duplicated, 1, what)]);
        }
        self.last = Some((seq, n));
        let mut findings = Vec::new();
        let skipped = seq - last_seq - 1;
        if skipped > 0 {
            findings.push(Finding::new(
                Wrong::Lost,
                skipped,
                format!("after the reply to {last_seq} came that to {seq}"),
            ));
        }
        let expected = last_n.saturating_add(skipped).saturating_add(1);
        if n < expected {
            let what =
                format!("request {seq} counted as {n} and not as {expected}: the guest forgot what it had answered");
            findings.push(Finding::new(Wrong::Lost, expected - n, what));
        } else if n > expected {
            let what =
                format!("request {seq} counted as {n} and not as {expected}: requests were carried out more than once");
            findings.push(Finding::new(Wrong::Duplicated, n - expected, what));
        }
        (Some((seq, n)), findings)
    }
}

fn parse(line: &str) -> Option<(u64, u64)> {
    let (seq, n) = line.split_once(' ')?;
    Some((seq.parse().ok().filter(|s| *s > 0)?, n.parse().ok()?))
}

/// The tiny guest's message, request and reply (`testing/guests/README.md`): `AIQ1` and five little-endian u32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Number of the request.
    pub seq: u32,
    /// Requests accepted so far.
    pub count: u32,
    /// The guest's clock.
    pub tick: u32,
    /// Pages that it found with wrong contents.
    pub bad: u32,
    /// 1 done, 2 repeated, 3 refused.
    pub status: u32,
}

impl Message {
    /// Bytes of a message.
    pub const LEN: usize = 24;

    /// The bytes of it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = *b"AIQ1....................";
        let words = [self.seq, self.count, self.tick, self.bad, self.status];
        for (to, word) in bytes[4..].chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// None if these bytes are no message.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let words = bytes.strip_prefix(b"AIQ1")?;
        let word = |index: usize| Some(u32::from_le_bytes(*words.get(4 * index..)?.first_chunk()?));
        Some(Self { seq: word(0)?, count: word(1)?, tick: word(2)?, bad: word(3)?, status: word(4)? })
    }
}

/// Books over the tiny guest's replies: one request at a time, repeated until it is answered.
#[derive(Clone, Debug, Default)]
pub struct DatagramBooks {
    /// What the guest told when we came: its count belongs to whoever was there before.
    greeted: bool,
    answered: u32,
    tick: u32,
    bad: u32,
}

impl DatagramBooks {
    /// The number to ask next.
    #[must_use]
    pub fn next(&self) -> u32 {
        self.answered.wrapping_add(1)
    }

    /// Takes one message. The first part tells whether it answers the present request. Replies to earlier requests
    /// (each was sent more than once) prove nothing, and are passed over.
    pub fn reply(&mut self, reply: Message) -> (bool, Vec<Finding>) {
        if reply.seq != self.next() {
            return (false, Vec::new());
        }
        let mut findings = Vec::new();
        if self.greeted {
            self.check(reply, &mut findings);
        }
        self.greeted = true;
        // After a refusal we go on from where the guest says that it is: one lie is counted once.
        self.answered = reply.count;
        (self.tick, self.bad) = (reply.tick, reply.bad);
        (true, findings)
    }

    fn check(&self, reply: Message, findings: &mut Vec<Finding>) {
        let Message { seq, count, tick, bad, status } = reply;
        if count < self.answered {
            let what =
                format!("request {seq} was refused, the count is {count}: the guest forgot what it had answered");
            findings.push(Finding::new(Wrong::Lost, u64::from(self.answered - count), what));
        } else if count > seq {
            let what = format!("request {seq} found the count at {count}: requests were carried out more than once");
            findings.push(Finding::new(Wrong::Duplicated, u64::from(count - seq), what));
        } else if count != seq || !matches!(status, 1 | 2) {
            let what = format!("request {seq} was answered with status {status} and count {count}, which cannot be");
            findings.push(Finding::new(Wrong::Corrupt, 1, what));
        }
        if tick < self.tick {
            let what = format!("the guest's clock went back from {} to {tick}, both seen outside", self.tick);
            findings.push(Finding::new(Wrong::Lost, 1, what));
        }
        if bad != self.bad {
            let what = format!("the guest found wrong memory contents: {} pages, now {bad}", self.bad);
            findings.push(Finding::new(Wrong::Corrupt, u64::from(bad.abs_diff(self.bad)), what));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(lines: &[&str]) -> (u64, u64, u64) {
        let mut books = StreamBooks::default();
        sum(lines.iter().flat_map(|line| books.reply(line).1))
    }

    fn sum(findings: impl Iterator<Item = Finding>) -> (u64, u64, u64) {
        let findings: Vec<Finding> = findings.collect();
        let of = |kind| findings.iter().filter(|f| f.kind == kind).map(|f| f.count).sum();
        (of(Wrong::Lost), of(Wrong::Duplicated), of(Wrong::Corrupt))
    }

    #[test]
    fn an_honest_stream_balances() {
        assert_eq!(totals(&["1 1", "2 2", "3 3"]), (0, 0, 0));
        // Somebody was there before us.
        assert_eq!(totals(&["1 501", "2 502"]), (0, 0, 0));
    }

    #[test]
    fn each_lie_of_a_stream_is_counted_once() {
        assert_eq!(totals(&["1 1", "2 2", "3 3", "4 2", "5 3"]), (2, 0, 0), "forgot two requests");
        assert_eq!(totals(&["1 1", "2 3", "3 4"]), (0, 1, 0), "did one twice");
        assert_eq!(totals(&["1 1", "3 3"]), (1, 0, 0), "a reply did not come");
        assert_eq!(totals(&["1 1", "2 2", "2 2", "3 3"]), (0, 1, 0), "a reply came twice");
        assert_eq!(totals(&["1 1", "", "x y", "0 7", "2", "2 2"]), (0, 0, 4), "no replies");
        assert_eq!(totals(&["18446744073709551615 18446744073709551615", "1 1"]).1, 1, "no overflow");
    }

    fn done(seq: u32, tick: u32) -> Message {
        Message { seq, count: seq, tick, bad: 0, status: 1 }
    }

    fn datagrams(replies: &[Message]) -> (u64, u64, u64) {
        let mut books = DatagramBooks::default();
        sum(replies.iter().flat_map(|r| books.reply(*r).1))
    }

    #[test]
    fn messages_round_trip() {
        let message = Message { seq: 1, count: 2, tick: 3, bad: 4, status: 0x0102_0304 };
        assert_eq!(Message::decode(&message.encode()), Some(message));
        assert_eq!(Message::decode(&message.encode()[..23]), None);
        assert_eq!(Message::decode(b"AIQ2....................").or(Message::decode(b"")), None);
    }

    #[test]
    fn honest_datagrams_balance() {
        let repeated = Message { status: 2, ..done(2, 6) };
        assert_eq!(datagrams(&[done(1, 5), repeated, repeated, done(3, 6)]), (0, 0, 0));
        // The count belongs to whoever was there before; the first reply tells.
        let refused = Message { seq: 1, count: 70, tick: 5, bad: 0, status: 3 };
        assert_eq!(datagrams(&[refused, done(71, 6), done(72, 6)]), (0, 0, 0));
    }

    #[test]
    fn each_lie_of_datagrams_is_counted_once() {
        let forgot = Message { seq: 4, count: 1, tick: 9, bad: 0, status: 3 };
        assert_eq!(datagrams(&[done(1, 5), done(2, 6), done(3, 7), forgot, done(2, 9)]), (2, 0, 0));
        let twice = Message { seq: 2, count: 3, tick: 9, bad: 0, status: 3 };
        assert_eq!(datagrams(&[done(1, 5), twice, done(4, 9)]), (0, 1, 0));
        let odd = Message { seq: 2, count: 1, tick: 9, bad: 0, status: 3 };
        assert_eq!(datagrams(&[done(1, 5), odd, done(2, 9)]), (0, 0, 1), "refused for no reason");
        assert_eq!(datagrams(&[done(1, 5), done(2, 4)]), (1, 0, 0), "time went back");
        let bad = Message { bad: 2, ..done(2, 6) };
        assert_eq!(datagrams(&[done(1, 5), bad, Message { seq: 3, count: 3, ..bad }]), (0, 0, 2));
    }
}
