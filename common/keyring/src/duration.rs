//! Durations as people write them: `12h`, `3m`, `1h 30m`, `500ms`.

use std::{fmt, time::Duration};

use jiff::SignedDuration;

use crate::settings::MAX_DURATION;

/// For a flag's `value_parser`: units up to hours, not negative, at most ten years.
///
/// # Errors
/// A sentence for the user.
pub fn parse(text: &str) -> Result<Duration, String> {
    let signed: SignedDuration =
        text.parse().map_err(|_| "not a duration: write it like 12h, 3m, 1h30m or 500ms".to_owned())?;
    match Duration::try_from(signed) {
        Err(_) => Err("a duration can't be negative".to_owned()),
        // Clocks overflow by it.
        Ok(duration) if duration > MAX_DURATION => Err("longer than ten years".to_owned()),
        Ok(duration) => Ok(duration),
    }
}

/// [`parse`] for durations that make no sense when they are zero.
///
/// # Errors
/// A sentence for the user.
pub fn parse_positive(text: &str) -> Result<Duration, String> {
    match parse(text)? {
        Duration::ZERO => Err("must be greater than zero".to_owned()),
        duration => Ok(duration),
    }
}

/// Writes a duration the way that [`parse`] reads it.
#[derive(Clone, Copy, Debug)]
pub struct HumanDuration(pub Duration);

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", SignedDuration::try_from(self.0).unwrap_or(SignedDuration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_alike() {
        for (text, seconds) in [("12h", 43_200), ("3m", 180), ("1h30m", 5_400), ("1h 30m", 5_400), ("0s", 0)]
        {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(HumanDuration(Duration::from_secs(43_200)).to_string(), "12h");
        assert_eq!(HumanDuration(Duration::from_secs(180)).to_string(), "3m");
    }

    #[test]
    fn nonsense_is_explained() {
        for text in ["", "12", "soon", "-3m", "1y", "99999999999999999999h", "2562047788015215h", "87601h"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse_positive("0s").is_err() && parse_positive("1ms").is_ok());
    }
}
