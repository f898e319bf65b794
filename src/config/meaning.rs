//! What one text means: pure functions from a typed value to its meaning, one per kind of setting.
//!
//! Each answers the meaning with what is odd about the text, or a sentence that says why it has none. Invariant: a sentence
//! about a secret never quotes it. Only [`secret_file`] opens anything.
//! Which setting a text belongs to, and where it was typed, is told by `load.rs`.

use std::{
    fmt,
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value as Json;

use super::{
    duration,
    raw::suggestion,
    report::Origin,
    secret::Secret,
    settings::{Binding, Memory, Upstream, UpstreamScheme},
    table::{self, Kind, LONGEST, Row},
};

/// What a text means, and what is odd about the text.
pub(super) struct Reading<T> {
    pub(super) meaning: T,
    /// The value in the plainest spelling, for `config show`.
    pub(super) plain: Json,
    pub(super) odd: Option<String>,
}

impl<T> Reading<T> {
    pub(super) fn new(meaning: T, plain: impl Into<Json>) -> Self {
        Self {
            meaning,
            plain: plain.into(),
            odd: None,
        }
    }

    pub(super) fn odd(mut self, sentence: Option<String>) -> Self {
        self.odd = sentence;
        self
    }
}

/// What no setting may hold: it would be cut or misread further down (a NUL ends a C string, a newline forges a log line).
pub(super) fn fit(text: &str) -> Result<(), String> {
    if text.len() > LONGEST {
        return Err(format!("longer than {LONGEST} bytes"));
    }
    if text
        .trim_end_matches(['\r', '\n'])
        .chars()
        .any(char::is_control)
    {
        return Err("holds a control character".into());
    }
    Ok(())
}

/// A text as it is. A newline at the end, which a value that was read from a file often has, is no part of it.
pub(super) fn text(typed: &str, _: &Origin) -> Result<Reading<String>, String> {
    let text = typed.trim_end_matches(['\r', '\n']);
    Ok(Reading::new(text.to_owned(), text))
}

/// `[host][/path]=scheme://host:port`. What host and path may be is the gate's business.
pub(super) fn upstream(word: &str) -> Result<Upstream, String> {
    let (place, url) = match word.split_once('=') {
        Some((place, url)) => (place, url),
        None => ("", word),
    };
    let known = url.split_once("://").and_then(|(scheme, address)| {
        let named = |known: &UpstreamScheme| known.as_str() == scheme;
        Some((UpstreamScheme::ALL.into_iter().find(named)?, address))
    });
    let Some((scheme, address)) = known else {
        return Err(
            "not scheme://host:port with http, https, h2c or h2, after host, /path or both and ="
                .into(),
        );
    };
    let address = address.strip_suffix('/').unwrap_or(address);
    if address.is_empty() || address.contains(['/', '?', '#', '@']) {
        return Err("an upstream's address is host:port, without path and user".into());
    }
    let (host, path) = match place.find('/') {
        Some(at) => place.split_at(at),
        None => (place, ""),
    };
    Ok(Upstream {
        host: host.to_owned(),
        path: path.to_owned(),
        address: address.to_owned(),
        scheme,
    })
}

/// A proxy is named by what only it has.
pub(super) fn proxy(word: &str) -> Result<String, String> {
    let fits = word.starts_with("tag:") || word.contains('@') && !word.contains('*');
    if fits {
        Ok(word.to_owned())
    } else {
        Err("a proxy is named by its tag (tag:name) or its user's login".into())
    }
}

pub(super) fn socket_mode(typed: &str, _: &Origin) -> Result<Reading<u32>, String> {
    let mode = u32::from_str_radix(typed.trim(), 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or("not a file mode in octal, such as 0660")?;
    Ok(Reading::new(mode, format!("{mode:04o}")))
}

pub(super) fn path(typed: &str, origin: &Origin) -> Result<Reading<PathBuf>, String> {
    let text = text(typed, origin)?.meaning;
    if text.is_empty() {
        return Err("an empty path".into());
    }
    Ok(Reading::new(PathBuf::from(&text), text))
}

pub(super) fn boolean(typed: &str, _: &Origin) -> Result<Reading<bool>, String> {
    // Go's own words for it, no others.
    let value = match typed.trim() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
        _ => return Err("not true or false".into()),
    };
    Ok(Reading::new(value, value))
}

/// An integer as the Go program read it: `80`, `0x50`, `0o120`, `0b1010000`, `0120` (octal), `8_0`, `80.0`.
pub(super) fn integer(typed: &str) -> Option<i64> {
    let text = typed.trim();
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
    // Go lets one underscore stand between two digits, or between prefix and digit.
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

/// A leading zero makes a number octal in Go, which few expect.
pub(super) fn octal(typed: &str, value: i64) -> Option<String> {
    let digits = typed.trim().trim_start_matches(['+', '-']);
    (digits.len() > 1
        && digits
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'_')
        && digits.starts_with('0'))
    .then(|| format!("the leading 0 makes it octal: taken as {value}"))
}

pub(super) fn port(typed: &str, origin: &Origin) -> Result<Reading<u16>, String> {
    if typed.starts_with("tcp://") && matches!(origin, Origin::Variable(_)) {
        // Kubernetes puts the address of every service into such variables.
        return Err(
            "not a port (1-65535); Kubernetes made this variable for a service of that name: set enableServiceLinks to false or rename the service"
                .into(),
        );
    }
    let number = integer(typed);
    let port = number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|port| *port != 0)
        .ok_or("not a port (1-65535)")?;
    Ok(Reading::new(port, port).odd(octal(typed, i64::from(port))))
}

pub(super) fn size(typed: &str, _: &Origin) -> Result<Reading<u32>, String> {
    let size = integer(typed)
        .and_then(|number| u32::try_from(number).ok())
        .filter(|size| table::SIZES.contains(size))
        .ok_or("not the size of an RSA key: 2048, 3072 or 4096")?;
    Ok(Reading::new(size, size).odd(octal(typed, i64::from(size))))
}

pub(super) fn binding(typed: &str, _: &Origin) -> Result<Reading<Binding>, String> {
    let text = typed.trim();
    if text.is_empty() || text.eq_ignore_ascii_case("auto") {
        return Ok(Reading::new(Binding::Auto, "auto"));
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    let address: IpAddr = bare.parse().map_err(|_| {
        "not auto or an IP address; a host name cannot be bound on the tailnet".to_owned()
    })?;
    if address.is_unspecified() {
        return Ok(Reading::new(Binding::Auto, "auto").odd(Some(
            "no tailnet address; taken as auto (the Go program listened and nothing reached it)"
                .into(),
        )));
    }
    Ok(Reading::new(Binding::Addr(address), address.to_string()))
}

pub(super) fn count(kind: Kind, typed: &str) -> Result<Reading<u32>, String> {
    let Kind::Count { least, most } = kind else {
        return Err("not a number".into());
    };
    let bounds = format!("it may be {least} to {most}");
    let number: i64 = typed
        .trim()
        .parse()
        .map_err(|_| format!("not a whole number; {bounds}"))?;
    u32::try_from(number)
        .ok()
        .filter(|number| (least..=most).contains(number))
        .map(|number| Reading::new(number, number))
        .ok_or_else(|| format!("out of bounds; {bounds}"))
}

/// Bytes as `GOMEMLIMIT` takes them, so that a value can be moved from there.
pub(super) fn memory(kind: Kind, typed: &str) -> Result<Reading<Memory>, String> {
    let Kind::Memory { least } = kind else {
        return Err("not an amount of memory".into());
    };
    let text = typed.trim();
    if text.eq_ignore_ascii_case("auto") || text.is_empty() {
        return Ok(Reading::new(Memory::Auto, "auto"));
    }
    if text.eq_ignore_ascii_case("off") {
        return Ok(Reading::new(Memory::Off, "off"));
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..) {
        Some("" | "B") => 0,
        Some("KiB") => 10,
        Some("MiB") => 20,
        Some("GiB") => 30,
        Some("TiB") => 40,
        _ => return Err("not auto, off, or a whole number with B, KiB, MiB, GiB or TiB".into()),
    };
    let bytes = digits
        .parse()
        .ok()
        .and_then(|number: u64| number.checked_mul(1 << shift))
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or("not auto, off, or a whole number with B, KiB, MiB, GiB or TiB")?;
    if bytes < least {
        return Err(format!(
            "too little for a node, which needs {} MiB",
            least >> 20
        ));
    }
    Ok(Reading::new(Memory::Bytes(bytes), text))
}

pub(super) fn bounded(
    kind: Kind,
    typed: &str,
    origin: &Origin,
) -> Result<Reading<Duration>, String> {
    let (least, most, off, bare) = match kind {
        Kind::Duration {
            least,
            most,
            off,
            bare,
        } => (least, most, off, bare),
        _ => (Duration::ZERO, Duration::MAX, false, false),
    };
    let text = typed.trim();
    if off && text.eq_ignore_ascii_case("off") {
        return Ok(Reading::new(Duration::ZERO, "off"));
    }
    // The Go program's flags refused a bare number; in variables and files it meant nanoseconds. Nobody wrote one for a setting
    // that program did not have, so there it is refused everywhere.
    let bare = match origin {
        Origin::Flag(_) => None,
        _ if text == "0" || !bare => None,
        _ => duration::parse_bare(text),
    };
    let bare_number = bare.is_some();
    let read = bare
        .unwrap_or_else(|| duration::parse(text))
        .map_err(|trouble| trouble.to_string())?;
    let shown = duration::show(read.size);
    let bounds = format!("{} to {}", duration::show(least), duration::show(most));
    let meant = if bare_number {
        format!("a number without a unit is nanoseconds ({shown}); ")
    } else {
        String::new()
    };
    if read.negative {
        return Err(format!("{meant}negative; it may be {bounds}"));
    }
    if off && read.size.is_zero() {
        return Ok(Reading::new(Duration::ZERO, "off"));
    }
    if read.size < least || read.size > most {
        return Err(format!("{meant}out of bounds; it may be {bounds}"));
    }
    let odd = bare_number.then(|| {
        format!("a number without a unit is nanoseconds: taken as {shown}; write {shown}")
    });
    Ok(Reading::new(read.size, shown).odd(odd))
}

pub(super) fn url(typed: &str, _: &Origin) -> Result<Reading<Option<String>>, String> {
    let text = typed.trim();
    if text.is_empty() {
        return Ok(Reading::new(None, ""));
    }
    let fine = text
        .parse::<http::Uri>()
        .ok()
        .filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")))
        .and_then(|uri| uri.authority().cloned())
        .filter(|authority| !authority.host().is_empty());
    match fine {
        None => Err("not an address such as https://host".into()),
        Some(authority) if authority.as_str().contains('@') => {
            // It would show in logs and errors.
            Err("an address with a name or password in it is not taken".into())
        }
        Some(_) => Ok(Reading::new(Some(text.to_owned()), text)),
    }
}

pub(super) fn prefix(typed: &str, origin: &Origin) -> Result<Reading<String>, String> {
    let reading = text(typed, origin)?;
    let prefix = &reading.meaning;
    if prefix.contains('-') {
        return Err("a - in the prefix makes key ids that cannot be read back: the time is what follows the first -".into());
    }
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    if prefix.is_empty() || prefix.len() > 64 || !prefix.chars().all(fine) {
        return Err("not a prefix: 1 to 64 letters, digits, _ or .".into());
    }
    Ok(reading)
}

pub(super) fn bucket(typed: &str, origin: &Origin) -> Result<Reading<String>, String> {
    let reading = text(typed, origin)?;
    if reading.meaning.contains("://") || reading.meaning.contains(char::is_whitespace) {
        return Err("not the name of a bucket; write the name alone".into());
    }
    Ok(reading)
}

pub(super) fn hostname(typed: &str, origin: &Origin) -> Result<Reading<String>, String> {
    let reading = text(typed, origin)?;
    let name = &reading.meaning;
    if name.is_empty() {
        return Err("an empty host name".into());
    }
    if name.len() > 63 {
        return Err("longer than a host name can be (63 bytes)".into());
    }
    let plain = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    let odd = (!plain).then(|| {
        "not of letters, digits and - alone: the control server gives the node another name"
            .to_owned()
    });
    Ok(reading.odd(odd))
}

pub(super) fn host(typed: &str, origin: &Origin) -> Result<Reading<String>, String> {
    let reading = text(typed, origin)?;
    let host = reading.meaning.trim();
    // The Go program needed brackets around an IPv6 address; both ways are right here.
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    if bare.parse::<IpAddr>().is_err() {
        if bare.contains("://") || bare.contains('/') || bare.contains(char::is_whitespace) {
            return Err("not a host name or an IP address".into());
        }
        if bare.contains(':') {
            return Err(
                "not a host name or an IP address; the port is another setting (admin.client.port)"
                    .into(),
            );
        }
    }
    Ok(Reading::new(bare.to_owned(), bare))
}

pub(super) fn tag(word: &str) -> Result<String, String> {
    let name = word
        .strip_prefix("tag:")
        .ok_or_else(|| format!("not a tag; did you mean tag:{word}?"))?;
    let fine = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if fine {
        Ok(word.to_owned())
    } else {
        Err("not a tag: tag: and a letter, then letters, digits and -".into())
    }
}

pub(super) fn known_word(row: &Row, typed: &str) -> Option<&'static str> {
    let Kind::Word(words) = row.kind else {
        return None;
    };
    words
        .iter()
        .find(|word| word.eq_ignore_ascii_case(typed.trim()))
        .copied()
}

pub(super) fn strange_word(row: &Row, typed: &str) -> String {
    let Kind::Word(words) = row.kind else {
        return "not known".into();
    };
    match suggestion(typed, words.iter().copied()) {
        Some(meant) => format!("not one of {}; did you mean {meant}?", words.join(", ")),
        None => format!("not one of {}", words.join(", ")),
    }
}

pub(super) fn secret_file(path: &Path) -> Result<Secret, String> {
    let trouble =
        |error: &dyn fmt::Display| format!("file {} cannot be read: {error}", path.display());
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(LONGEST + 1));
    std::fs::File::open(path)
        .and_then(|file| file.take(LONGEST as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| trouble(&error))?;
    if bytes.len() > LONGEST {
        return Err(format!(
            "file {} is longer than {LONGEST} bytes",
            path.display()
        ));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| trouble(&"not text in UTF-8"))?;
    // An empty one is a secret that is not set: what is left of an auth key after the first join, when a credential or a mount
    // has to stay.
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}

/// What stands for a secret where settings are shown.
pub(super) const HIDDEN: &str = "(hidden)";

/// `blanks`: whether there may be any.
pub(super) fn whole_secret(secret: &Secret, blanks: bool) -> Result<(), String> {
    if secret.reveal() == HIDDEN {
        // Copied from `config show`: the control server would only say that the key is wrong.
        return Err("is the mark of a hidden secret, not a secret".into());
    }
    if secret.reveal().len() > LONGEST {
        return Err(format!("longer than {LONGEST} bytes"));
    }
    if secret
        .reveal()
        .contains(|c: char| c.is_control() || c.is_whitespace() && !(blanks && c == ' '))
    {
        return Err("holds blanks, line ends or control characters".into());
    }
    Ok(())
}
