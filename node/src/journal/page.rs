//! What is new in a journal: so many records at a time, from a cursor on. For whoever follows a journal that others write.

use super::{FULL, LONGEST, older};
use crate::events::Record;
use std::{
    fmt,
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    str::FromStr,
};

/// A place in a journal. The text is `INODE-OFFSET`; it means nothing on another host, and nothing once both files that a
/// journal has were turned over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    file: u64,
    offset: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.file, self.offset)
    }
}

/// A text is no [`Cursor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid cursor: take the one that came with the last page")]
pub struct CursorError;

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let (file, offset) = text.split_once('-').ok_or(CursorError)?;
        let number = |text: &str| u64::from_str_radix(text, 16).map_err(|_| CursorError);
        Ok(Self { file: number(file)?, offset: number(offset)? })
    }
}

/// Some records of a journal, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// As many as were asked for at most.
    pub records: Vec<Record>,
    /// Lines among them that are no events.
    pub skipped: usize,
    /// Where the next page begins; `None` while there is no journal.
    pub next: Option<Cursor>,
    /// What the cursor pointed at is gone: records between are lost.
    pub gap: bool,
}

/// Up to `limit` records from `after` on; without it from the beginning of what there is. Reads a file of at most some MiB: not
/// for a loop that must not wait.
///
/// # Errors
/// A journal that is there and cannot be read.
pub fn page(path: &Path, after: Option<Cursor>, limit: usize) -> io::Result<Page> {
    let mut files = Vec::new();
    for path in [older(path), path.to_owned()] {
        match File::open(&path) {
            Ok(file) => files.push((file.metadata()?.ino(), file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let known = after.and_then(|cursor| files.iter().position(|(inode, _)| *inode == cursor.file));
    let mut page = Page { gap: after.is_some() && known.is_none(), next: after, ..Page::default() };
    for (index, (inode, file)) in files.iter().enumerate().skip(known.unwrap_or(0)) {
        let offset = after.filter(|_| known == Some(index)).map_or(0, |cursor| cursor.offset);
        let offset = page.take(file, offset, limit)?;
        page.next = Some(Cursor { file: *inode, offset });
        if page.records.len() == limit {
            break;
        }
    }
    Ok(page)
}

impl Page {
    /// Takes whole lines from `offset` on. Returns where it stopped.
    fn take(&mut self, file: &File, mut offset: u64, limit: usize) -> io::Result<u64> {
        let mut bytes = vec![0; usize::try_from(FULL).map_err(io::Error::other)? + LONGEST];
        let read = file.read_at(&mut bytes, offset)?;
        if read == bytes.len() && !bytes.contains(&b'\n') {
            self.skipped += 1; // no line of ours is so long
            return Ok(offset + read as u64);
        }
        for line in bytes[..read].split_inclusive(|byte| *byte == b'\n') {
            // (The last one may be half written.)
            if self.records.len() == limit || line.last() != Some(&b'\n') {
                break;
            }
            offset += line.len() as u64;
            match std::str::from_utf8(&line[..line.len() - 1]).map(Record::parse) {
                Ok(Ok(record)) => self.records.push(record),
                _ if line.len() == 1 => {}
                _ => self.skipped += 1,
            }
        }
        Ok(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, io::Write};

    fn line(n: u32) -> String {
        format!("{{\"schema\":1,\"event\":\"nic-lost\",\"at_ms\":{n},\"why\":\"x\"}}\n")
    }

    fn times(page: &Page) -> Vec<f64> {
        page.records.iter().map(|record| record.at_ms).collect()
    }

    #[test]
    fn pages_go_on_where_the_last_one_ended_across_a_turn_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.primary.journal");
        let none = page(&path, None, 10).unwrap();
        assert_eq!((times(&none), none.next, none.gap), (vec![], None, false));
        fs::write(&path, format!("{}{}no event\n{}", line(1), line(2), line(3))).unwrap();
        let first = page(&path, None, 2).unwrap();
        assert_eq!((times(&first), first.skipped), (vec![1.0, 2.0], 0));
        let cursor: Cursor = first.next.unwrap().to_string().parse().unwrap();
        fs::rename(&path, older(&path)).unwrap();
        fs::write(&path, format!("{}{{\"torn", line(4))).unwrap();
        let second = page(&path, Some(cursor), 10).unwrap();
        assert_eq!((times(&second), second.skipped, second.gap), (vec![3.0, 4.0], 1, false));
        let third = page(&path, second.next, 10).unwrap();
        assert_eq!((times(&third), third.next), (vec![], second.next), "half a line is none");
        let end = ",\"schema\":1,\"event\":\"left\",\"at_ms\":5}\n";
        fs::write(&path, format!("{}{{\"torn\":1{end}", line(4))).unwrap();
        assert_eq!(times(&page(&path, third.next, 10).unwrap()), [5.0]);
    }

    #[test]
    fn a_cursor_into_what_is_gone_is_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.primary.journal");
        fs::write(&path, line(1)).unwrap();
        let gone = Cursor { file: u64::MAX, offset: 7 };
        let found = page(&path, Some(gone), 10).unwrap();
        assert_eq!((times(&found), found.gap), (vec![1.0], true));
        // Of a file that is shorter than it was.
        let cursor = Cursor { offset: 1 << 40, ..found.next.unwrap() };
        fs::File::options().append(true).open(&path).unwrap().write_all(line(2).as_bytes()).unwrap();
        assert_eq!(times(&page(&path, Some(cursor), 10).unwrap()), [0.0; 0]);
        for text in ["", "7", "x-1", "1-2-3", "-"] {
            assert_eq!(text.parse::<Cursor>(), Err(CursorError), "{text}");
        }
    }
}
