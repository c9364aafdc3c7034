//! Tables: aligned columns, two spaces apart, as wide as what they hold.

/// How a cell looks on a terminal with colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// It runs, it is ready.
    Good,
    /// It ended well, or is of no interest any more.
    Dim,
    /// It failed.
    Bad,
}

/// One cell.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell with a tone.
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: super::plain(&text.into()), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// A table under construction.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    header: Vec<Cell>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(columns: &[&str]) -> Self {
        Self { header: columns.iter().map(|name| Cell::from(*name)).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    /// The table as text, a line each row, the header first.
    pub(crate) fn render(&self, colours: bool) -> String {
        let lines = || std::iter::once(&self.header).chain(&self.rows);
        let mut widths = vec![0; self.header.len()];
        for line in lines() {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let mut text = String::new();
        for (number, line) in lines().enumerate() {
            let last = line.len().saturating_sub(1);
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                let code = if number == 0 { "\x1b[1m" } else { escape(cell.tone) };
                if colours && !code.is_empty() {
                    text.push_str(code);
                    text.push_str(&cell.text);
                    text.push_str("\x1b[0m");
                } else {
                    text.push_str(&cell.text);
                }
                if column < last {
                    let padding = width - cell.text.chars().count() + 2;
                    text.extend(std::iter::repeat_n(' ', padding));
                }
            }
            text.push('\n');
        }
        text
    }
}

fn escape(tone: Tone) -> &'static str {
    match tone {
        Tone::Plain => "",
        Tone::Good => "\x1b[32m",
        Tone::Dim => "\x1b[2m",
        Tone::Bad => "\x1b[31m",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&["ID", "NAME", "STATE"]);
        table.row(["1".into(), "a-long-name".into(), Cell::toned("Running", Tone::Good)]);
        table.row(["22".into(), "ü".into(), Cell::toned("bad\nname\x1b[2J", Tone::Bad)]);
        table
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        assert_eq!(
            sample().render(false),
            "ID  NAME         STATE\n1   a-long-name  Running\n22  ü            bad?name?[2J\n"
        );
    }

    #[test]
    fn colours_do_not_move_columns() {
        let coloured = sample().render(true);
        assert!(coloured.contains("\x1b[32mRunning\x1b[0m"));
        let mut bare = coloured;
        for code in ["\x1b[1m", "\x1b[0m", "\x1b[31m", "\x1b[32m"] {
            bare = bare.replace(code, "");
        }
        assert_eq!(bare, sample().render(false));
    }

    #[test]
    fn an_empty_table_is_its_header() {
        assert_eq!(Table::new(&["A", "B"]).render(false), "A  B\n");
    }
}
