//! An unknown key or section of a file: which one was meant.

/// The message of a TOML reader, with the nearest of the words that it expected.
pub(super) fn with_guess(message: &str) -> String {
    let guess = message.split_once("unknown field `").and_then(|(_, rest)| {
        let (unknown, expected) = rest.split_once('`')?;
        nearest(unknown, expected.split('`').skip(1).step_by(2))
    });
    match guess {
        Some(guess) => format!("{}; did you mean `{guess}`?", message.trim_end()),
        None => message.trim_end().to_owned(),
    }
}

/// The word that `unknown` is a flag's spelling of ("epoch", "beat-interval", "nic"), else the one that it differs least from.
fn nearest<'a>(unknown: &str, words: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let spelt = unknown.trim_start_matches('-').replace('-', "_").to_lowercase();
    let is_flag = |word: &str| {
        let stem = ["_ms", "_mib", "_kib", "s"].into_iter().find_map(|unit| word.strip_suffix(unit)).unwrap_or(word);
        spelt == word || spelt == stem
    };
    let far = |word: &str| (distance(&spelt, word), word.len());
    words
        .clone()
        .find(|word| is_flag(word))
        .or_else(|| words.min_by_key(|word| far(word)).filter(|word| far(word).0 * 3 <= word.len()))
}

/// How many letters have to be put in, left out or changed.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_slips_are_understood_and_nonsense_is_not() {
        let words = ["epoch_ms", "nics", "beat_interval_ms", "staging_mib", "slab_kib", "once", "qmp", "to", "vm"];
        for (unknown, guess) in [
            ("epoch", Some("epoch_ms")),
            ("epok_ms", Some("epoch_ms")),
            ("nic", Some("nics")),
            ("beat-interval", Some("beat_interval_ms")),
            ("staging", Some("staging_mib")),
            ("slab_mib", Some("slab_kib")),
            ("nonsense", None),
            ("x", None),
        ] {
            assert_eq!(nearest(unknown, words.into_iter()), guess, "{unknown}");
        }
        assert_eq!(with_guess("unknown field `vn`, expected `vm`\n"), "unknown field `vn`, expected `vm`");
        let said = with_guess("unknown field `protekt`, expected one of `witness`, `protect`, `standby`");
        assert!(said.ends_with("; did you mean `protect`?"), "{said}");
    }
}
