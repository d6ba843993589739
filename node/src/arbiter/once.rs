//! One question and its answer, for tests: a program never waits for an arbiter.

use super::{Answer, ArbiterClient, ArbiterConfig, ArbiterError, Ask};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    io,
    time::{Duration, Instant},
};

impl ArbiterClient {
    /// Waits for the answer to a question like `ask`, at most until `deadline`.
    fn wait_answer(&self, ask: &Ask, deadline: Instant) -> io::Result<Option<Answer>> {
        loop {
            match (self.take_answer(), ask) {
                (Some(answer @ Answer::Read(_)), Ask::Read) | (Some(answer @ Answer::Cas(_)), Ask::Cas(_)) => {
                    return Ok(Some(answer));
                }
                (Some(_), _) => continue, // a check, or a fault, which may pass
                (None, _) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(self, PollFlags::IN)], Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Asks one question and waits: retries until `timeout`.
pub fn ask_once(config: &ArbiterConfig, ask: Ask, timeout: Duration) -> Result<Answer, ArbiterError> {
    let client = ArbiterClient::spawn(config)?;
    client.ask(ask);
    let answer = client.wait_answer(&ask, Instant::now() + timeout);
    answer.map_err(|source| ArbiterError::System { doing: "waiting for an answer", source })?.ok_or_else(|| {
        let why = client.health().last_error.unwrap_or_else(|| "the first try is still under way".to_owned());
        ArbiterError::Unanswered { spec: config.spec.clone(), timeout, why }
    })
}
