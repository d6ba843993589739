//! What is said over and over is said once, and then counted.

use mc_core::id::Time;
use std::time::Duration;

/// Between two lines of one kind.
const EVERY: Duration = Duration::from_secs(1);

/// One kind of line: the first is said at once, then one a second, with how many were not.
#[derive(Debug, Default)]
pub struct Quiet {
    said: Option<Time>,
    unsaid: u64,
}

impl Quiet {
    /// It happened. `Some(n)`: say so, and that it happened `n` times more since it was last said. `None`: it is counted.
    pub fn again(&mut self, now: Time) -> Option<u64> {
        if self.said.is_some_and(|said| now.since(said) < EVERY) {
            self.unsaid += 1;
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_one_line_a_second_and_a_count() {
        let mut quiet = Quiet::default();
        let said: Vec<u64> = (0..10_000_u64).filter_map(|n| quiet.again(Time(1 + n * 1_000_000))).collect();
        assert_eq!(said, [0, 999, 999, 999, 999, 999, 999, 999, 999, 999]);
        assert_eq!(quiet.again(Time(60_000_000_000)), Some(999), "what was counted is not forgotten");
    }
}
