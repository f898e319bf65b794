//! Durations as Go writes them: `90s`, `1h30m`, `1.5h`, `300ms`.
//!
//! They are whole nanoseconds, never a float. A text that Go's `time.ParseDuration` accepts has the
//! same value here, up to Go's longest duration (about 292 years). Bounds are in the table.

use std::time::Duration;

/// A duration as it was given. It may be negative, which no setting allows and error messages
/// mention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoDuration {
    pub negative: bool,
    pub size: Duration,
}

/// Why a text is not a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    #[error("not a duration such as 90s, 20m or 1h30m")]
    Form,
    #[error("longer than 292 years")]
    TooLong,
    #[error("a number without a unit; write for example 90s, 20m or 1h30m")]
    Unit,
}

const MOST: u128 = i64::MAX as u128;

/// Longest first, so that `ms` is not read as `m`.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a Go duration.
pub fn parse(text: &str) -> Result<GoDuration, DurationError> {
    let (negative, mut rest) = sign(text);
    if rest == "0" {
        return Ok(GoDuration {
            negative: false,
            size: Duration::ZERO,
        });
    }
    if rest.is_empty() {
        return Err(DurationError::Form);
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(DurationError::Form);
        }
        let unit_length = after
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after.len());
        let (name, after) = after.split_at(unit_length);
        if name.is_empty() {
            return Err(DurationError::Unit);
        }
        let unit = UNITS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, unit)| *unit)
            .ok_or(DurationError::Form)?;
        total += amount(whole, fraction, unit)?;
        if total > MOST {
            return Err(DurationError::TooLong);
        }
        rest = after;
    }
    Ok(GoDuration {
        negative: negative && total > 0,
        size: nanoseconds(total),
    })
}

/// Reads a number without a unit as nanoseconds, as the Go program does in variables and files.
/// `None`: the text is not such a number.
pub fn parse_bare(text: &str) -> Option<Result<GoDuration, DurationError>> {
    let (_, rest) = sign(text);
    let (whole, after) = digits(rest);
    let after = after
        .strip_prefix('.')
        .map_or(after, |fraction| digits(fraction).1);
    if whole.is_empty() || !after.is_empty() {
        return None;
    }
    Some(parse(&format!("{text}ns")))
}

/// The shortest text that [`parse`] reads back as this duration: `1h30m`, not `1h30m0s`.
pub fn format(duration: Duration) -> String {
    let mut rest = duration.as_nanos();
    if rest == 0 {
        return "0s".into();
    }
    let mut text = String::new();
    for (name, unit) in [
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
        ("ns", 1),
    ] {
        if rest >= unit {
            text += &format!("{}{name}", rest / unit);
            rest %= unit;
        }
    }
    text
}

fn sign(text: &str) -> (bool, &str) {
    if let Some(rest) = text.strip_prefix('-') {
        (true, rest)
    } else {
        (false, text.strip_prefix('+').unwrap_or(text))
    }
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    )
}

/// Digits of a fraction after the eighteenth are less than a nanosecond even in hours. They are
/// dropped, as Go drops them.
fn amount(whole: &str, fraction: &str, unit: u128) -> Result<u128, DurationError> {
    let whole = whole.trim_start_matches('0');
    if whole.len() > 19 {
        return Err(DurationError::TooLong);
    }
    let whole: u128 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| DurationError::Form)?
    };
    let fraction = &fraction[..fraction.len().min(18)];
    let part: u128 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().map_err(|_| DurationError::Form)?
    };
    let mut scale: u128 = 1;
    for _ in 0..fraction.len() {
        scale *= 10;
    }
    Ok(whole * unit + part * unit / scale)
}

fn nanoseconds(total: u128) -> Duration {
    let seconds = u64::try_from(total / 1_000_000_000).unwrap_or(u64::MAX);
    let rest = u32::try_from(total % 1_000_000_000).unwrap_or(0);
    Duration::new(seconds, rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ns(text: &str) -> i128 {
        let read = parse(text).expect(text);
        let size = i128::try_from(read.size.as_nanos()).expect("fits");
        if read.negative { -size } else { size }
    }

    #[test]
    fn reads_what_go_reads() {
        // Cases that Go's documentation of ParseDuration promises.
        for (text, nanoseconds) in [
            ("0", 0),
            ("5s", 5_000_000_000),
            ("+5s", 5_000_000_000),
            ("-5s", -5_000_000_000),
            ("-0", 0),
            ("1478s", 1_478_000_000_000),
            ("5.s", 5_000_000_000),
            (".5s", 500_000_000),
            ("1.004s", 1_004_000_000),
            ("100.00100s", 100_001_000_000),
            ("11us", 11_000),
            ("12µs", 12_000),
            ("12μs", 12_000),
            ("13ms", 13_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("10.5s4m", 250_500_000_000),
            ("1h2m3s4ms5us6ns", 3_723_004_005_006),
            ("9223372036854775807ns", i128::from(i64::MAX)),
            ("0.9223372036854775807h", 3_320_413_933_267),
        ] {
            assert_eq!(ns(text), nanoseconds, "{text}");
        }
    }

    #[test]
    fn refuses_what_go_refuses() {
        for text in [
            "", "-", "s", ".", ".s", "+.s", "1d", "1 h", "1h 30m", "abc", "1e3s", "1hx",
        ] {
            assert_eq!(parse(text), Err(DurationError::Form), "{text}");
        }
        for text in ["3", "90", "1.5", "1h30"] {
            assert_eq!(parse(text), Err(DurationError::Unit), "{text}");
        }
        for text in ["9223372036854775808ns", "3000000h", "99999999999999999999s"] {
            assert_eq!(parse(text), Err(DurationError::TooLong), "{text}");
        }
    }

    #[test]
    fn bare_numbers_are_nanoseconds() {
        assert_eq!(
            parse_bare("1500").map(|read| read.map(|read| read.size)),
            Some(Ok(Duration::from_nanos(1500)))
        );
        for text in ["90s", "", "x", "1_000", "1.5.2"] {
            assert_eq!(parse_bare(text), None, "{text}");
        }
    }

    #[test]
    fn shows_the_short_form() {
        for (duration, text) in [
            (Duration::ZERO, "0s"),
            (Duration::from_secs(1200), "20m"),
            (Duration::from_secs(5400), "1h30m"),
            (Duration::from_millis(1500), "1s500ms"),
        ] {
            assert_eq!(format(duration), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(nanoseconds in 0..i64::MAX) {
            let duration = Duration::from_nanos(nanoseconds.unsigned_abs());
            prop_assert_eq!(parse(&format(duration)), Ok(GoDuration { negative: false, size: duration }));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[-+0-9.hmsnuµ ]{0,40}") {
            let _ = parse(&text);
            let _ = parse_bare(&text);
        }
    }
}
