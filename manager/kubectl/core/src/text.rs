//! Text for people: without control characters, and short.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::Value;

/// Most characters of a message that are shown.
const MESSAGE: usize = 400;

/// Takes everything out of a text that could change what a terminal shows of other text: control characters, escape
/// sequences with them, and characters that reorder or hide text.
#[must_use]
pub fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' | '\r' => cleaned.push(' '),
            _ if character.is_control() || is_format(character) => cleaned.push('\u{fffd}'),
            _ => cleaned.push(character),
        }
    }
    cleaned
}

/// Characters that are not seen themselves, and reorder or hide what is.
const fn is_format(character: char) -> bool {
    matches!(
        character,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    )
}

/// [`clean`] for each text of an object, names of fields as well.
pub fn clean_object(object: &mut Value) {
    match object {
        Value::String(text) => *text = clean(text),
        Value::Array(items) => items.iter_mut().for_each(clean_object),
        Value::Object(fields) => {
            fields.values_mut().for_each(clean_object);
            if fields.keys().any(|name| clean(name) != *name) {
                *fields =
                    std::mem::take(fields).into_iter().map(|(name, value)| (clean(&name), value)).collect();
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The beginning of a message.
#[must_use]
pub fn short(message: &str) -> String {
    if message.chars().count() <= MESSAGE {
        return message.to_owned();
    }
    let mut text: String = message.chars().take(MESSAGE).collect();
    text.push('…');
    text
}

/// A number with a comma for each thousand.
#[must_use]
pub fn number(number: impl Into<u64>) -> String {
    let digits = number.into().to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// [`number`] for a length.
#[must_use]
pub fn count(count: usize) -> String {
    number(u64::try_from(count).unwrap_or(u64::MAX))
}

/// The first names, and how many more there are.
#[must_use]
pub fn names<N: AsRef<str>>(names: &[N], most: usize) -> String {
    let mut text = String::new();
    for name in names.iter().take(most) {
        let separator = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{separator}{}", name.as_ref());
    }
    if names.len() > most {
        let _ = write!(text, " and {} more", count(names.len() - most));
    }
    text
}

/// A noun with its number.
#[must_use]
pub fn plural(amount: usize, noun: &str) -> String {
    format!("{} {noun}{}", count(amount), if amount == 1 { "" } else { "s" })
}

/// How long something took, in two units at most, as kubectl shows ages.
#[must_use]
pub fn span(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.as_second().saturating_sub(from.as_second()).max(0);
    let two = |(large, unit), (small, part)| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{part}"),
    };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => two((seconds / 60, "m"), (seconds % 60, "s")),
        3600..86_400 => two((seconds / 3600, "h"), (seconds % 3600 / 60, "m")),
        _ => two((seconds / 86_400, "d"), (seconds % 86_400 / 3600, "h")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hostile_text_shows_as_itself_and_nothing_else() {
        for (text, expected) in [
            ("plain – ünïcode ✓", "plain – ünïcode ✓"),
            ("\u{1b}[2Jgone", "\u{fffd}[2Jgone"),
            ("a\r\nENCRYPTED", "a  ENCRYPTED"),
            ("\u{9b}31m", "\u{fffd}31m"),
            ("\u{202e}detpyrcne", "\u{fffd}detpyrcne"),
            ("no\u{200b}de", "no\u{fffd}de"),
            ("\u{7}\u{8}\u{7f}", "\u{fffd}\u{fffd}\u{fffd}"),
        ] {
            assert_eq!(clean(text), expected);
        }
        let mut object = json!({"a\u{1b}": ["\u{1b}]0;title\u{7}", {"b": "\u{1b}c"}], "n": 5});
        clean_object(&mut object);
        assert_eq!(object, json!({"a\u{fffd}": ["\u{fffd}]0;title\u{fffd}", {"b": "\u{fffd}c"}], "n": 5}));
    }

    #[test]
    fn numbers_names_and_spans_are_short() {
        for (value, expected) in [(0_u64, "0"), (999, "999"), (4981, "4,981"), (1_234_567, "1,234,567")] {
            assert_eq!(number(value), expected);
        }
        let all = ["a", "b", "c"];
        assert_eq!((names(&all, 3), names(&all, 2)), ("a, b, c".to_owned(), "a, b and 1 more".to_owned()));
        let at = |second| Timestamp::from_second(second).unwrap();
        for (seconds, expected) in
            [(-5, "0s"), (59, "59s"), (60, "1m"), (90, "1m30s"), (3660, "1h1m"), (90_000, "1d1h")]
        {
            assert_eq!(span(at(0), at(seconds)), expected);
        }
        assert_eq!(short(&"x".repeat(500)).chars().count(), MESSAGE + 1);
    }
}
