//! What is to be reached.

use serde::{Deserialize, Serialize};

/// What is to be reached, by the median.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// What the limit is of.
    pub of: BoundOf,
    /// At least or at most?
    pub side: BoundSide,
    /// The limit.
    pub limit: f64,
}

/// What a bound is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BoundOf {
    /// Ours by the yardstick's.
    Ratio,
    /// Ours.
    Value,
    /// Ours in every run: the worst one counts rather than the median.
    EveryRun,
}

/// Which side of the limit is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BoundSide {
    /// The limit or more.
    AtLeast,
    /// The limit or less.
    AtMost,
}

impl Bound {
    /// Ours by the yardstick's must not be less.
    #[must_use]
    pub fn ratio_at_least(limit: f64) -> Self {
        Self { of: BoundOf::Ratio, side: BoundSide::AtLeast, limit }
    }

    /// Ours by the yardstick's must not be more.
    #[must_use]
    pub fn ratio_at_most(limit: f64) -> Self {
        Self { of: BoundOf::Ratio, side: BoundSide::AtMost, limit }
    }

    /// Ours must not be less.
    #[must_use]
    pub fn at_least(limit: f64) -> Self {
        Self { of: BoundOf::Value, side: BoundSide::AtLeast, limit }
    }

    /// Ours must not be more.
    #[must_use]
    pub fn at_most(limit: f64) -> Self {
        Self { of: BoundOf::Value, side: BoundSide::AtMost, limit }
    }

    /// Ours must not be more in any run: one loss in one of five runs is a loss.
    #[must_use]
    pub fn every_run_at_most(limit: f64) -> Self {
        Self { of: BoundOf::EveryRun, side: BoundSide::AtMost, limit }
    }

    /// For people: ">= 0.95 x", "<= 3", "<= 0 in every run".
    #[must_use]
    pub fn words(&self) -> String {
        let sign = match self.side {
            BoundSide::AtLeast => ">=",
            BoundSide::AtMost => "<=",
        };
        let of = match self.of {
            BoundOf::Ratio => " x",
            BoundOf::Value => "",
            BoundOf::EveryRun => " in every run",
        };
        format!("{sign} {}{of}", self.limit)
    }

    pub(super) fn is_met_by(&self, value: f64) -> bool {
        match self.side {
            BoundSide::AtLeast => value >= self.limit,
            BoundSide::AtMost => value <= self.limit,
        }
    }
}
