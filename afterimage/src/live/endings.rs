//! Keeps a file's byte order mark and line endings when it is rewritten; TOML libraries drop both.

/// What some editors of other systems put first.
const MARK: char = '\u{feff}';

/// The text with neither.
pub(super) fn plain(text: &str) -> String {
    text.strip_prefix(MARK).unwrap_or(text).replace("\r\n", "\n")
}

/// The edited text as `before` was: every line that it had ends as it did, and a new one as its first.
pub(super) fn like(before: &str, after: &str) -> String {
    let (mark, before) = if before.starts_with(MARK) { before.split_at(MARK.len_utf8()) } else { ("", before) };
    let mut old = before.split_inclusive('\n');
    let usual = end(before.split_inclusive('\n').next().unwrap_or("\n"));
    let mut out = mark.to_owned();
    for line in after.split_inclusive('\n') {
        let Some(words) = line.strip_suffix('\n') else {
            out.push_str(line);
            continue;
        };
        let mut ahead = old.clone();
        let same = ahead.find(|old| old.trim_end_matches(['\r', '\n']) == words);
        if same.is_some() {
            old = ahead;
        }
        out.push_str(words);
        out.push_str(same.map_or(usual, end));
    }
    out
}

fn end(line: &str) -> &'static str {
    if line.ends_with("\r\n") { "\r\n" } else { "\n" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_ends_as_it_did() {
        let mixed = "\u{feff}a = 1\r\nb = 2\n\nc = 3\r\n";
        assert_eq!(plain(mixed), "a = 1\nb = 2\n\nc = 3\n");
        assert_eq!(like(mixed, &plain(mixed)), mixed);
        assert_eq!(like(mixed, "a = 1\nb = 7\n\nc = 3\nd = 4\n"), "\u{feff}a = 1\r\nb = 7\r\n\nc = 3\r\nd = 4\r\n");
        assert_eq!((like("", "a = 1\n"), like("x", "x\ny\n")), ("a = 1\n".into(), "x\ny\n".into()));
    }
}
