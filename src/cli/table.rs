//! A table for the terminal: columns aligned, numbers to the right, no lines.
//!
//! Cells are plain text; what could move the cursor is replaced, because names and reasons may come
//! from someone else. Widths are counted in characters.

use std::fmt;

/// Columns between two cells.
const GAP: &str = "  ";

/// How a column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a head.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns and no rows.
    pub fn new(columns: impl Into<Vec<(&'static str, Align)>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    /// Adds a row; a cell that is missing is empty, one too many is left out.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let plain = |cell: String| cell.replace(char::is_control, " ");
        self.rows.push(cells.into_iter().map(plain).collect());
    }

    /// The text of one line, its cells as wide as their columns.
    fn line<'t>(&self, cells: impl Iterator<Item = &'t str>, widths: &[usize]) -> String {
        let mut cells = cells.fuse();
        let mut line = String::new();
        for (index, ((_, align), width)) in self.columns.iter().zip(widths).enumerate() {
            let cell = cells.next().unwrap_or_default();
            if index > 0 {
                line.push_str(GAP);
            }
            line.push_str(&match align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            });
        }
        line.truncate(line.trim_end().len());
        line
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads: Vec<String> = self.columns.iter().map(|(head, _)| in_capitals(head)).collect();
        let mut widths: Vec<usize> = heads.iter().map(|head| head.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        writeln!(f, "{}", self.line(heads.iter().map(String::as_str), &widths))?;
        for row in &self.rows {
            writeln!(f, "{}", self.line(row.iter().map(String::as_str), &widths))?;
        }
        Ok(())
    }
}

/// The words of a head in capitals; a unit that has some already stays as it is.
fn in_capitals(head: &str) -> String {
    let capital = |word: &str| {
        if word.chars().any(char::is_uppercase) { word.to_owned() } else { word.to_uppercase() }
    };
    head.split(' ').map(capital).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_left_and_numbers_right() {
        let mut table = Table::new([("app", Align::Left), ("wakes", Align::Right)]);
        table.row(["shop".into(), "7".into()]);
        table.row(["a-longer-one".into(), "1000000".into()]);
        let expected = "APP             WAKES\n\
                        shop                7\n\
                        a-longer-one  1000000\n";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn a_unit_keeps_its_letters() {
        assert_eq!(in_capitals("memory GiB·h"), "MEMORY GiB·h");
        assert_eq!(in_capitals("from (utc)"), "FROM (UTC)");
    }

    #[test]
    fn odd_rows_and_cells_do_not_break_it() {
        let mut table = Table::new([("a", Align::Left), ("b", Align::Left)]);
        table.row([]);
        table.row(["ä\u{1b}[31m".into(), "x\ny".into(), "too many".into()]);
        assert_eq!(table.to_string(), "A       B\n\nä [31m  x y\n");
    }
}
