//! Fields that many events have.

use super::Standing;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// An event that only has a reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// In words.
    pub why: String,
}

impl<T: Into<String>> From<T> for Why {
    fn from(why: T) -> Self {
        Self { why: why.into() }
    }
}

/// An event whose reason may not be known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unexplained {
    /// In words, if it is known.
    pub why: Option<String>,
}

/// A reason, and how things stood.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhyNow {
    /// In words.
    pub why: String,
    /// How things stood.
    #[serde(flatten)]
    pub standing: Option<Standing>,
}

/// An event of another version, as it was written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Other {
    /// Its name.
    pub event: String,
    /// Everything else.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}
