//! A word that nobody knows: which one was meant.

/// Letters of a strange word that are shown.
const SHOWN: usize = 40;

/// A word that may be anything, for a terminal: shortened, and without control characters.
pub(super) fn shown(word: &str) -> String {
    let more = if word.chars().nth(SHOWN).is_some() { "…" } else { "" };
    let plain = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    word.chars().take(SHOWN).map(plain).chain([more.to_owned()]).collect()
}

/// What is said of a key, or a section, that there is not.
pub(super) fn unknown(what: &str, word: &str, words: impl Iterator<Item = &'static str> + Clone) -> String {
    let (guess, word) = (nearest(word, words.clone()), shown(word));
    match guess {
        Some(guess) => format!("unknown {what} `{word}`; did you mean `{guess}`?"),
        None => format!("unknown {what} `{word}`; there are `{}`", words.collect::<Vec<_>>().join("`, `")),
    }
}

/// The word that `unknown` is a flag's spelling of ("beat-interval", "nic"), or that with a unit that its key had ("slab_mib"),
/// else the one that it differs least from.
pub(crate) fn nearest<'a>(unknown: &str, words: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let spelt = unknown.trim_start_matches('-').replace('-', "_").to_lowercase();
    let stem = ["_ms", "_mib", "_kib"].into_iter().find_map(|unit| spelt.strip_suffix(unit)).unwrap_or(&spelt);
    let is_flag = |word: &str| spelt == word || stem == word || Some(stem) == word.strip_suffix('s');
    let far = |word: &str| (distance(stem, word), word.len());
    words
        .clone()
        .find(|word| is_flag(word))
        .or_else(|| words.min_by_key(|word| far(word)).filter(|word| far(word).0 * 2 < word.len()))
}

/// How many letters have to be put in, left out, changed, or change places with their neighbours.
fn distance(a: &str, b: &str) -> usize {
    let [a, b] = [a, b].map(|word| word.chars().collect::<Vec<_>>());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let above = &rows[i - 1];
            let changed = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            let swapped = if swapped { rows[i - 2][j - 2] + 1 } else { usize::MAX };
            row.push(changed.min(above[j] + 1).min(row[j - 1] + 1).min(swapped));
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_slips_are_understood_and_nonsense_is_not() {
        let words = ["epoch", "nics", "beat_interval", "staging", "slab", "once", "qmp", "to", "vm"];
        for (unknown, guess) in [
            ("epok", Some("epoch")),
            ("epcoh", Some("epoch")),
            ("nic", Some("nics")),
            ("beat-interval", Some("beat_interval")),
            ("slab_mib", Some("slab")),
            ("qpm", Some("qmp")),
            ("nonsense", None),
            ("vn", None),
            ("x", None),
        ] {
            assert_eq!(nearest(unknown, words.into_iter()), guess, "{unknown}");
        }
        assert_eq!(unknown("key", "vn", ["vm"].into_iter()), "unknown key `vn`; there are `vm`");
        let said = unknown("section", "protekt", ["witness", "protect", "standby"].into_iter());
        assert!(said.ends_with("; did you mean `protect`?"), "{said}");
        let strange = format!("\u{1b}[31m{}", "x".repeat(10_000));
        let said = unknown("key", &strange, ["vm"].into_iter());
        assert!(
            said.starts_with("unknown key `\\u{1b}[31mxxx") && said.contains("x…`; there") && said.len() < 100,
            "{said}"
        );
    }
}
