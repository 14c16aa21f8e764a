//! What a check says.

use std::fmt;

pub use secureoverlay_keyring::inspection::CheckVerdict as Verdict;
use secureoverlay_keyring::inspection::{CheckItem, CheckReport, WireCounts};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// How it is.
    pub verdict: Verdict,
    /// What was looked at, in a word.
    pub what: &'static str,
    /// What there is to say, and to do.
    pub text: String,
}

impl Item {
    /// A line; what other programs have said into `text` stays one.
    pub fn new(verdict: Verdict, what: &'static str, text: impl fmt::Display) -> Self {
        let text = text.to_string();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let text = lines.join("; ").chars().filter(|c| !c.is_control()).collect();
        Self { verdict, what, text }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {:<9} {}", self.verdict.name(), self.what, self.text)
    }
}

/// All lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    items: Vec<Item>,
    blind: bool,
    capture: Option<WireCounts>,
}

impl Report {
    /// Adds a line.
    pub fn push(&mut self, item: Item) {
        self.items.push(item);
    }

    /// Adds lines.
    pub fn extend(&mut self, items: impl IntoIterator<Item = Item>) {
        self.items.extend(items);
    }

    /// Adds a line that says why the kernel can't be asked.
    pub fn blind(&mut self, item: Item) {
        self.blind = true;
        self.items.push(item);
    }

    /// Adds what passed on the wire.
    pub fn captured(&mut self, item: Item, counts: Option<WireCounts>) {
        self.items.push(item);
        self.capture = counts;
    }

    /// The same for other programs.
    #[must_use]
    pub fn to_document(&self) -> CheckReport {
        let item = |Item { verdict, what, text }: &Item| CheckItem {
            verdict: *verdict,
            what: (*what).to_owned(),
            text: text.clone(),
        };
        CheckReport {
            items: self.items.iter().map(item).collect(),
            blind: self.blind,
            capture: self.capture.clone(),
        }
    }

    /// 0: nothing failed. 1: something did. 2: nothing is known to, but the kernel could not be asked.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.items.iter().any(|item| item.verdict == Verdict::Fail) {
            true => 1,
            false if self.blind => 2,
            false => 0,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.items.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(verdicts: &[Verdict]) -> Report {
        let mut report = Report::default();
        report
            .extend(verdicts.iter().map(|verdict| Item::new(*verdict, "mtu", "said\n and  done\u{1b}[1m\n")));
        report
    }

    #[test]
    fn one_line_each_whatever_others_say() {
        let text = of(&[Verdict::Ok, Verdict::Warn, Verdict::Fail, Verdict::Unknown]).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0], "ok       mtu       said; and  done[1m");
        assert_eq!(lines[3], "unknown  mtu       said; and  done[1m");
    }

    #[test]
    fn scripts_are_told_by_the_exit_code() {
        use Verdict::{Fail, Ok, Unknown, Warn};
        assert_eq!(of(&[Ok, Warn, Unknown]).exit_code(), 0);
        assert_eq!(of(&[Ok, Fail, Warn]).exit_code(), 1);
        let mut blind = of(&[Ok]);
        blind.blind(Item::new(Unknown, "kernel", "no"));
        assert_eq!(blind.exit_code(), 2);
        blind.push(Item::new(Fail, "kernel", "no"));
        assert_eq!(blind.exit_code(), 1);
    }
}
