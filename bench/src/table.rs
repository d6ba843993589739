//! Tables for people: right-aligned columns under their headings.

/// A table.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these headings.
    #[must_use]
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|&h| h.to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Its lines; the first column is aligned left.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let wide = |row: &Vec<String>, column: usize| row.get(column).map_or(0, |cell| cell.chars().count());
        let width = |column| self.rows.iter().map(|row| wide(row, column)).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cell = |(at, (text, width)): (usize, (&String, &usize))| {
                if at == 0 { format!("{text:<width$}") } else { format!("{text:>width$}") }
            };
            let cells: Vec<String> = row.iter().zip(&widths).enumerate().map(cell).collect();
            format!(" {}", cells.join("  ")).trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

/// "0.97 (0.91..1.02)".
#[must_use]
pub fn spread(spread: Option<crate::stats::Spread>, digits: usize) -> String {
    spread.map_or_else(|| "-".to_owned(), |s| format!("{:.digits$} ({:.digits$}..{:.digits$})", s.median, s.min, s.max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Spread;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["what", "MB/sec"]);
        table.row(vec!["a long name".to_owned(), "1.00".to_owned()]);
        assert_eq!(table.lines(), [" what         MB/sec", " a long name    1.00"]);
    }

    #[test]
    fn a_spread_shows_its_ends() {
        assert_eq!(spread(Spread::of(&[1.0, 2.0, 3.5]), 2), "2.00 (1.00..3.50)");
        assert_eq!(spread(None, 2), "-");
    }
}
