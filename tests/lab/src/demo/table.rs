//! The table at the end of the demo.

use std::fmt;

/// One step of the story.
#[derive(Clone, Debug)]
pub struct Row {
    /// What happened.
    pub step: String,
    /// Probes sent.
    pub sent: u64,
    /// Probes lost.
    pub lost: u64,
    /// Packets between pods that anyone could read on the wire.
    pub clear: u64,
    /// ESP packets on the wire.
    pub esp: u64,
}

/// All steps.
#[derive(Clone, Debug, Default)]
pub struct Table(pub Vec<Row>);

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|row| row.step.chars().count()).max().unwrap_or_default().max(4);
        let line = |f: &mut fmt::Formatter<'_>, cells: [&str; 5]| {
            let [step, sent, lost, clear, esp] = cells;
            writeln!(f, "  {step:width$}  {sent:>8}  {lost:>6}  {clear:>12}  {esp:>9}")
        };
        line(f, ["step", "sent", "lost", "in the clear", "encrypted"])?;
        for row in &self.0 {
            let numbers = [row.sent, row.lost, row.clear, row.esp].map(|number| number.to_string());
            line(f, [&row.step, &numbers[0], &numbers[1], &numbers[2], &numbers[3]])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |step: &str, sent| Row { step: step.into(), sent, lost: 0, clear: 3, esp: 4 };
        let text = Table(vec![row("plain", 7), row("rotation of keys", 123_456)]).to_string();
        let ends: Vec<usize> = text.lines().map(str::len).collect();
        assert_eq!(ends.len(), 3);
        assert!(ends.iter().all(|end| *end == ends[0]), "{text}");
    }
}
