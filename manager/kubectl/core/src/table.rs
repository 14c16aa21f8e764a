//! Columns and colours.

use crate::text::clean;

/// Whether colours are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Escape sequences for colours may be printed.
    pub colour: bool,
}

/// What a text says of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Not as it should be.
    Bad,
    /// Not known, or worth a look.
    Warn,
    /// A heading.
    Bold,
}

impl Style {
    /// The text in the colour of its tone.
    #[must_use]
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "1;32",
            Tone::Bad => "1;31",
            Tone::Warn => "1;33",
            Tone::Bold => "1",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Rows below a line of headings, each column as wide as its widest cell. An empty cell shows as `-`.
#[must_use]
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |text: &str| if text.is_empty() { "-".to_owned() } else { clean(text) };
    let heading = headings.iter().map(|heading| (*heading).to_owned()).collect();
    let all: Vec<Vec<String>> = std::iter::once(heading)
        .chain(rows.iter().map(|row| row.iter().map(|text| cell(text)).collect()))
        .collect();
    let width = |column: usize| {
        all.iter().filter_map(|row| row.get(column)).map(|text| text.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut text = String::new();
    for row in &all {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}   "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_empty_cells_are_seen() {
        let rows = [vec!["node1".to_owned(), String::new()], vec!["n".to_owned(), "x\u{1b}[2J".to_owned()]];
        assert_eq!(table(&["NODE", "KEY"], &rows), "NODE    KEY\nnode1   -\nn       x\u{fffd}[2J\n");
        assert_eq!(Style { colour: true }.paint(Tone::Good, "x"), "\x1b[1;32mx\x1b[0m");
        assert_eq!(Style::default().paint(Tone::Bad, "x"), "x");
    }
}
