//! Parses one text: a function per kind of setting, from what was given to a checked value. What
//! only one section has is in that section's file.
//!
//! Each returns the value, with a warning if the text is unusual, or a sentence that says why it is
//! invalid. A sentence about a secret never quotes it. Only [`secret_file`] opens anything.
//! `read.rs` adds which setting a text belongs to and where it comes from.

use std::{
    fmt,
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value as Json;

use super::{
    Secret, duration,
    raw::suggestion,
    report::ValueOrigin,
    table::{MAX_VALUE_BYTES, Row, ValueKind},
};

/// The tailnet address that a listener binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// Every tailnet address of the node (`auto`, or empty).
    Auto,
    /// One tailnet address.
    Addr(IpAddr),
}

/// What a text means, and what is odd about the text.
pub(super) struct ParsedValue<T> {
    pub(super) value: T,
    /// The value in its plainest spelling, for `config show`.
    pub(super) shown: Json,
    pub(super) warning: Option<String>,
}

impl<T> ParsedValue<T> {
    pub(super) fn new(value: T, shown: impl Into<Json>) -> Self {
        Self {
            value,
            shown: shown.into(),
            warning: None,
        }
    }

    pub(super) fn with_warning(mut self, sentence: Option<String>) -> Self {
        self.warning = sentence;
        self
    }

    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> ParsedValue<U> {
        ParsedValue {
            value: change(self.value),
            shown: self.shown,
            warning: self.warning,
        }
    }

    pub(super) fn try_map<U>(
        self,
        change: impl FnOnce(T) -> Result<U, String>,
    ) -> Result<ParsedValue<U>, String> {
        Ok(ParsedValue {
            value: change(self.value)?,
            shown: self.shown,
            warning: self.warning,
        })
    }
}

/// Refuses what no setting may contain, because it would be cut or misread later: a NUL ends a C
/// string, a newline forges a log line.
pub(super) fn check_text(text: &str) -> Result<(), String> {
    if text.len() > MAX_VALUE_BYTES {
        return Err(format!("longer than {MAX_VALUE_BYTES} bytes"));
    }
    if text
        .trim_end_matches(['\r', '\n'])
        .chars()
        .any(char::is_control)
    {
        return Err("contains a control character".into());
    }
    Ok(())
}

/// A text as it is, without the newline at its end that a value from a file often has.
pub(super) fn text(input: &str, _: &ValueOrigin) -> Result<ParsedValue<String>, String> {
    let text = input.trim_end_matches(['\r', '\n']);
    Ok(ParsedValue::new(text.to_owned(), text))
}

pub(super) fn path(input: &str, origin: &ValueOrigin) -> Result<ParsedValue<PathBuf>, String> {
    let text = text(input, origin)?.value;
    if text.is_empty() {
        return Err("an empty path".into());
    }
    Ok(ParsedValue::new(PathBuf::from(&text), text))
}

pub(super) fn boolean(input: &str, _: &ValueOrigin) -> Result<ParsedValue<bool>, String> {
    // The words that Go accepts, and no others.
    let value = match input.trim() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
        _ => return Err("not true or false".into()),
    };
    Ok(ParsedValue::new(value, value))
}

/// An integer as the Go program reads it: `80`, `0x50`, `0o120`, `0b1010000`, `0120` (octal),
/// `8_0`, `80.0`.
pub(super) fn integer(input: &str) -> Option<i64> {
    let text = input.trim();
    let text = match text.split_once('.') {
        Some((whole, zeros)) if zeros.bytes().all(|byte| byte == b'0') => whole,
        Some(_) => return None,
        None => text,
    };
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, rest) = if let Some(rest) = lower.strip_prefix("0x") {
        (16, rest)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (2, rest)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (8, rest)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    // Go allows one underscore between two digits, or between the prefix and a digit.
    let between = if base == 10 {
        rest
    } else {
        rest.strip_prefix('_').unwrap_or(rest)
    };
    let sound = !between.is_empty()
        && between
            .split('_')
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    if !sound {
        return None;
    }
    let value = i64::from_str_radix(&between.replace('_', ""), base).ok()?;
    Some(if negative { -value } else { value })
}

/// The warning that a leading zero makes a number octal in Go, which few people expect.
pub(super) fn octal_warning(input: &str, value: i64) -> Option<String> {
    let digits = input.trim().trim_start_matches(['+', '-']);
    (digits.len() > 1
        && digits
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'_')
        && digits.starts_with('0'))
    .then(|| format!("the leading 0 makes it octal: taken as {value}"))
}

pub(super) fn port(input: &str, origin: &ValueOrigin) -> Result<ParsedValue<u16>, String> {
    if input.starts_with("tcp://") && matches!(origin, ValueOrigin::Variable(_)) {
        // Kubernetes sets such variables to the addresses of services.
        return Err(
            "not a port (1-65535); Kubernetes made this variable for a service of that name: set \
             enableServiceLinks to false or rename the service"
                .into(),
        );
    }
    let number = integer(input);
    let port = number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|port| *port != 0)
        .ok_or("not a port (1-65535)")?;
    Ok(ParsedValue::new(port, port).with_warning(octal_warning(input, i64::from(port))))
}

pub(super) fn binding(input: &str, _: &ValueOrigin) -> Result<ParsedValue<Binding>, String> {
    let text = input.trim();
    if text.is_empty() || text.eq_ignore_ascii_case("auto") {
        return Ok(ParsedValue::new(Binding::Auto, "auto"));
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    let address: IpAddr = bare.parse().map_err(|_| {
        "not auto or an IP address; a host name cannot be bound on the tailnet".to_owned()
    })?;
    if address.is_unspecified() {
        return Ok(ParsedValue::new(Binding::Auto, "auto").with_warning(Some(
            "not a tailnet address; taken as auto (the Go program listened and nothing reached it)"
                .into(),
        )));
    }
    Ok(ParsedValue::new(
        Binding::Addr(address),
        address.to_string(),
    ))
}

pub(super) fn count(kind: ValueKind, input: &str) -> Result<ParsedValue<u32>, String> {
    let ValueKind::Count { least, most } = kind else {
        return Err("not a number".into());
    };
    let bounds = format!("it may be {least} to {most}");
    let number: i64 = input
        .trim()
        .parse()
        .map_err(|_| format!("not a whole number; {bounds}"))?;
    u32::try_from(number)
        .ok()
        .filter(|number| (least..=most).contains(number))
        .map(|number| ParsedValue::new(number, number))
        .ok_or_else(|| format!("out of bounds; {bounds}"))
}

pub(super) fn bounded(
    kind: ValueKind,
    input: &str,
    origin: &ValueOrigin,
) -> Result<ParsedValue<Duration>, String> {
    let (least, most, off, bare) = match kind {
        ValueKind::Duration {
            least,
            most,
            off,
            bare,
        } => (least, most, off, bare),
        _ => (Duration::ZERO, Duration::MAX, false, false),
    };
    let text = input.trim();
    if off && text.eq_ignore_ascii_case("off") {
        return Ok(ParsedValue::new(Duration::ZERO, "off"));
    }
    // The Go program's flags refuse a number without a unit; in variables and files it means
    // nanoseconds. Settings that the Go program does not have refuse it everywhere.
    let bare = match origin {
        ValueOrigin::Flag(_) => None,
        _ if text == "0" || !bare => None,
        _ => duration::parse_bare(text),
    };
    let bare_number = bare.is_some();
    let read = bare
        .unwrap_or_else(|| duration::parse(text))
        .map_err(|trouble| trouble.to_string())?;
    let shown = duration::format(read.size);
    let bounds = format!("{} to {}", duration::format(least), duration::format(most));
    let meant = if bare_number {
        format!("a number without a unit is nanoseconds ({shown}); ")
    } else {
        String::new()
    };
    if read.negative {
        return Err(format!("{meant}negative; it may be {bounds}"));
    }
    if off && read.size.is_zero() {
        return Ok(ParsedValue::new(Duration::ZERO, "off"));
    }
    if read.size < least || read.size > most {
        return Err(format!("{meant}out of bounds; it may be {bounds}"));
    }
    let warning = bare_number.then(|| {
        format!("a number without a unit is nanoseconds: taken as {shown}; write {shown}")
    });
    Ok(ParsedValue::new(read.size, shown).with_warning(warning))
}

pub(super) fn url(input: &str, _: &ValueOrigin) -> Result<ParsedValue<Option<String>>, String> {
    let text = input.trim();
    if text.is_empty() {
        return Ok(ParsedValue::new(None, ""));
    }
    let fine = text
        .parse::<http::Uri>()
        .ok()
        .filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")))
        .and_then(|uri| uri.authority().cloned())
        .filter(|authority| !authority.host().is_empty())
        // Some have the form of an address but no browser can open them, such as https://a.86.
        .filter(|_| ::url::Url::parse(text).is_ok());
    match fine {
        None => Err("not an address such as https://host".into()),
        Some(authority) if authority.as_str().contains('@') => {
            // It would appear in logs and errors.
            Err("an address with a user name or password is not accepted".into())
        }
        Some(_) => Ok(ParsedValue::new(Some(text.to_owned()), text)),
    }
}

pub(super) fn match_word(row: &Row, input: &str) -> Option<&'static str> {
    let ValueKind::Word(words) = row.kind else {
        return None;
    };
    words
        .iter()
        .find(|word| word.eq_ignore_ascii_case(input.trim()))
        .copied()
}

pub(super) fn unknown_word(row: &Row, input: &str) -> String {
    let ValueKind::Word(words) = row.kind else {
        return "not known".into();
    };
    match suggestion(input, words.iter().copied()) {
        Some(meant) => format!("not one of {}; did you mean {meant}?", words.join(", ")),
        None => format!("not one of {}", words.join(", ")),
    }
}

pub(super) fn secret_file(path: &Path) -> Result<Secret, String> {
    let trouble =
        |error: &dyn fmt::Display| format!("file {} cannot be read: {error}", path.display());
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(MAX_VALUE_BYTES + 1));
    std::fs::File::open(path)
        .and_then(|file| {
            file.take(MAX_VALUE_BYTES as u64 + 1)
                .read_to_end(&mut bytes)
        })
        .map_err(|error| trouble(&error))?;
    if bytes.len() > MAX_VALUE_BYTES {
        return Err(format!(
            "file {} is longer than {MAX_VALUE_BYTES} bytes",
            path.display()
        ));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| trouble(&"not text in UTF-8"))?;
    // An empty file means that the secret is not set. It is what remains of an auth key after the
    // first join if a credential or a mount has to stay.
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}

/// Replaces a secret wherever settings are shown.
pub(super) const HIDDEN: &str = "(hidden)";

/// Refuses a secret that is cut, or is no secret at all. `blanks`: it may contain blanks.
pub(super) fn check_secret(secret: &Secret, blanks: bool) -> Result<(), String> {
    if secret.reveal() == HIDDEN {
        // Copied from `config show`. The control server would only say that the key is wrong.
        return Err("is the placeholder for a hidden secret, not a secret".into());
    }
    if secret.reveal().len() > MAX_VALUE_BYTES {
        return Err(format!("longer than {MAX_VALUE_BYTES} bytes"));
    }
    if secret
        .reveal()
        .contains(|c: char| c.is_control() || c.is_whitespace() && !(blanks && c == ' '))
    {
        return Err("contains blanks, line ends or control characters".into());
    }
    Ok(())
}
