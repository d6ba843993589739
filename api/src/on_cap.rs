//! The policy for full staging: `throttle`, `grow:SIZE`, `unprotect`.

use mc_core::primary::OnCap;
use node::serde_as_text;
use node::units::{parse_size, size_text};
use std::{fmt, str::FromStr};

/// As flags, files and `afterimage set` write it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnCapWish(pub OnCap);

impl OnCapWish {
    /// Bytes that staging may outgrow its cap by.
    #[must_use]
    pub fn extra_bytes(self) -> u64 {
        match self.0 {
            OnCap::Grow { bytes } => bytes,
            OnCap::Throttle | OnCap::Unprotect => 0,
        }
    }
}

impl FromStr for OnCapWish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wish = match text.split_once(':') {
            None if text == "throttle" => OnCap::Throttle,
            None if text == "unprotect" => OnCap::Unprotect,
            Some(("grow", size)) => OnCap::Grow { bytes: parse_size(size)? },
            _ => {
                let allowed = "throttle (pause the VM), grow:SIZE such as grow:64MiB (take up to SIZE more memory, \
                     then pause the VM) or unprotect (end protection)";
                return Err(format!("invalid policy for full staging {text:?}: expected {allowed}"));
            }
        };
        Ok(Self(wish))
    }
}

impl fmt::Display for OnCapWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            OnCap::Throttle => f.write_str("throttle"),
            OnCap::Grow { bytes } => write!(f, "grow:{}", size_text(bytes)),
            OnCap::Unprotect => f.write_str("unprotect"),
        }
    }
}
serde_as_text!(OnCapWish);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in ["throttle", "unprotect", "grow:64MiB", "grow:1GiB", "grow:1536KiB", "grow:1.5KiB"] {
            let wish: OnCapWish = text.parse().unwrap();
            assert_eq!(wish.to_string().parse::<OnCapWish>().unwrap(), wish, "{text}");
        }
        assert_eq!("grow:64MiB".parse::<OnCapWish>().unwrap().to_string(), "grow:64MiB");
        for text in ["", "grow", "grow:", "grow:0MiB", "grow:64", "hold", "throttle:1MiB", "Throttle"] {
            let error = text.parse::<OnCapWish>().unwrap_err();
            assert!(error.contains("expected"), "{text}: {error}");
        }
    }
}
