//! What a request asks for (host, path, method), and the patterns of rules.
//!
//! Paths are the hard part: one server reads `/public/%2e%2e/admin` as a path below `/public`,
//! another as `/admin`, and we do not know which of them is behind us. So a [`Path`] keeps *every*
//! reading that some server could arrive at (decoded once or several times, slashes merged, dots
//! resolved, backslashes replaced, full-width letters narrowed, parameters and trailing dots
//! removed). A rule that grants access must match all of them; a rule that denies needs one. A path
//! with too many readings, or with hidden control characters, is refused.
//!
//! The readings are computed once per request, when the first rule or route with a path needs them.
//! Their number and total size are bounded: a long path with many escapes costs no more than a long
//! plain one.

use std::{cell::Cell, collections::VecDeque, sync::OnceLock};

use ::http::Method;
use serde_json::Value;
use toml::de::DeTable;

use super::{Effect, Grant, Match, RuleReader, Scope, grant};
use tailbone_values::web::{BadHost, Host, HostPattern};

/// What a request asks for. `None` is what the proxy did not report.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Target {
    pub host: Option<Host>,
    pub path: Option<Path>,
    pub method: Option<Method>,
}

impl Target {
    /// Why the path has no readings, if a rule or route needed them.
    pub fn unreadable(&self) -> Option<TargetError> {
        self.path.as_ref()?.unreadable()
    }
}

/// Why a host or path cannot be used for a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("the path can be read in too many ways")]
    AmbiguousPath,
    #[error("the path has bytes in it that no path needs")]
    BadPath,
    #[error("the host is not a host name or address")]
    BadHost,
}

impl From<BadHost> for TargetError {
    fn from(_: BadHost) -> Self {
        Self::BadHost
    }
}

/// The most readings that a path may have. An honest path has one or two.
const MAX_READINGS: usize = 64;
/// The most bytes written for all readings together: enough for the longest path with escapes.
const MAX_READING_BYTES: usize = 256 << 10;
/// Longer paths are refused before any work is spent on them.
const MAX_PATH_BYTES: usize = 8 << 10;

/// A path with every reading that some server could arrive at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    sent: Vec<u8>,
    /// Filled on first use.
    readings: OnceLock<Result<Vec<Vec<u8>>, TargetError>>,
}

impl Path {
    /// The path of a request target, without the query. Errors in it appear when the readings are
    /// needed.
    pub fn sent(raw: &str) -> Result<Self, TargetError> {
        let raw = raw.as_bytes();
        if raw.first() != Some(&b'/') || raw.len() > MAX_PATH_BYTES {
            return Err(TargetError::BadPath);
        }
        Ok(Self {
            sent: raw.to_vec(),
            readings: OnceLock::new(),
        })
    }

    /// The same, with the readings computed at once.
    pub fn parse(raw: &str) -> Result<Self, TargetError> {
        let path = Self::sent(raw)?;
        path.readings()?;
        Ok(path)
    }

    /// The error, if a rule or route needed the readings and there are none.
    pub fn unreadable(&self) -> Option<TargetError> {
        self.readings.get()?.as_ref().err().copied()
    }

    fn readings(&self) -> Result<&[Vec<u8>], TargetError> {
        match self.readings.get_or_init(|| read(&self.sent, &mut 0)) {
            Ok(readings) => Ok(readings),
            Err(error) => Err(*error),
        }
    }

    /// The path as sent, cut after its first segment: enough for a log line, without anything
    /// hidden further down.
    pub fn first_segment(&self) -> String {
        let sent = &self.sent;
        let end = sent
            .iter()
            .skip(1)
            .position(|b| *b == b'/')
            .map_or(sent.len(), |at| at + 1);
        let shown = sent.get(..end.min(64)).unwrap_or_default();
        shown.escape_ascii().to_string()
    }

    /// Which of several prefixes the path belongs to: `Ok(None)` for none; an error if two readings
    /// differ.
    pub fn choose<'a, T>(
        &self,
        mut which: impl FnMut(&dyn Fn(&PathPrefix) -> bool) -> Option<&'a T>,
    ) -> Result<Option<&'a T>, TargetError> {
        // If no prefix restricts the path, the readings do not matter.
        let compared = Cell::new(false);
        let here = which(&|prefix| {
            compared.set(compared.get() || !prefix.is_empty());
            prefix.holds(&self.sent, false)
        });
        if !compared.get() {
            return Ok(here);
        }
        let mut chosen: Option<Option<&'a T>> = None;
        for reading in self.readings()? {
            let here = which(&|prefix| prefix.holds(reading, false));
            match chosen {
                None => chosen = Some(here),
                Some(before) if before.map(std::ptr::from_ref) == here.map(std::ptr::from_ref) => {}
                Some(_) => return Err(TargetError::AmbiguousPath),
            }
        }
        Ok(chosen.flatten())
    }
}

/// Computes all readings of a path; the first is the path as sent. `work` counts the bytes written.
fn read(sent: &[u8], work: &mut usize) -> Result<Vec<Vec<u8>>, TargetError> {
    let mut readings: Vec<Vec<u8>> = Vec::new();
    let mut open = VecDeque::from([sent.to_vec()]);
    while let Some(reading) = open.pop_front() {
        if readings.contains(&reading) {
            continue;
        }
        if !has_valid_bytes(&reading) {
            return Err(TargetError::BadPath);
        }
        if readings.len() == MAX_READINGS {
            return Err(TargetError::AmbiguousPath);
        }
        if !has_one_reading(&reading) {
            for transform in TRANSFORMATIONS {
                if *work + reading.len() > MAX_READING_BYTES {
                    return Err(TargetError::AmbiguousPath);
                }
                let other = transform(&reading);
                *work += other.len();
                if other != reading && !open.contains(&other) {
                    open.push_back(other);
                }
            }
        }
        readings.push(reading);
    }
    Ok(readings)
}

/// One transformation that servers apply to a path.
type Transformation = fn(&[u8]) -> Vec<u8>;

const TRANSFORMATIONS: [Transformation; 10] = [
    decode,
    decode_dots,
    decode_u_escapes,
    narrow_full_width,
    replace_backslashes,
    remove_parameters,
    remove_query,
    remove_trailing_dots,
    merge_slashes,
    resolve_dots,
];

/// Refuses control characters and overlong UTF-8, which no honest path contains in any reading.
fn has_valid_bytes(reading: &[u8]) -> bool {
    reading
        .iter()
        .all(|b| !b.is_ascii_control() && !matches!(b, 0xc0 | 0xc1 | 0xf5..=0xff))
}

/// Whether all servers read it alike.
fn has_one_reading(reading: &[u8]) -> bool {
    let odd = |b: &u8| matches!(*b, b'%' | b'\\' | b';' | b'?' | b'#' | FULL_WIDTH);
    let segment = |s: &[u8]| !s.is_empty() && !matches!(s.last(), Some(b'.' | b' '));
    let inner = reading.get(1..).unwrap_or_default();
    let inner = inner.strip_suffix(b"/").unwrap_or(inner);
    !reading.iter().any(odd)
        && (inner.is_empty() && reading.len() < 2 || inner.split(|b| *b == b'/').all(segment))
}

/// Decodes every `%xx` once.
fn decode(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        let hex = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
        match (first, hex(tail.first()), hex(tail.get(1))) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or_default());
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => out.push(*first),
        }
    }
    out
}

/// Decodes dots alone. To readers of URLs as browsers are (URL standard, 4.4) `%2e%2e` leads up,
/// while `%2f` stays a part of its segment.
fn decode_dots(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        match rest {
            [b'%', b'2', b'e' | b'E', after @ ..] => {
                out.push(b'.');
                rest = after;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// Decodes every `%uXXXX` once, as IIS and old Java servers do.
fn decode_u_escapes(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        match (first, u_escape(tail)) {
            (b'%', Some(c)) => {
                out.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = tail.get(5..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// The character that `uXXXX` stands for.
fn u_escape(text: &[u8]) -> Option<char> {
    let hex = match text.get(..5)? {
        [b'u' | b'U', hex @ ..] => hex,
        _ => return None,
    };
    let number = hex.iter().try_fold(0, |number, b| {
        Some(number * 16 + char::from(*b).to_digit(16)?)
    })?;
    char::from_u32(number)
}

/// The first byte of the full-width forms in UTF-8 (U+FF01 to U+FF5E: EF BC 81 to EF BD 9E).
const FULL_WIDTH: u8 = 0xef;

/// The full-width forms of ASCII as ASCII: the "best fit" of servers whose names of files have a
/// narrower character set than Unicode.
fn narrow_full_width(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        let ascii = match rest {
            [FULL_WIDTH, 0xbc, low @ 0x81..=0xbf, ..] => Some(low - 0x81 + b'!'),
            [FULL_WIDTH, 0xbd, low @ 0x80..=0x9e, ..] => Some(low - 0x80 + b'`'),
            _ => None,
        };
        out.push(ascii.unwrap_or(*first));
        rest = match ascii {
            Some(_) => tail.get(2..).unwrap_or_default(),
            None => tail,
        };
    }
    out
}

/// Removes dots and blanks at the end of each segment, as Windows does with file names. `.` and
/// `..` are not names.
fn remove_trailing_dots(path: &[u8]) -> Vec<u8> {
    let cut = |segment: &[u8]| -> Vec<u8> {
        let blank = |b: &u8| *b == b' ';
        let end = |b: &u8| matches!(b, b'.' | b' ');
        let kept = |odd: &dyn Fn(&u8) -> bool| {
            segment
                .iter()
                .rposition(|b| !odd(b))
                .map_or(0, |last| last + 1)
        };
        // If a segment is all dots, only blanks after them are removed.
        let length = match kept(&end) {
            0 => kept(&blank),
            length => length,
        };
        segment.get(..length).unwrap_or_default().to_vec()
    };
    path.split(|b| *b == b'/')
        .map(cut)
        .collect::<Vec<_>>()
        .join(&b'/')
}

/// Replaces backslashes by slashes.
fn replace_backslashes(path: &[u8]) -> Vec<u8> {
    path.iter()
        .map(|b| if *b == b'\\' { b'/' } else { *b })
        .collect()
}

/// Removes everything from the first `;` on in each segment.
fn remove_parameters(path: &[u8]) -> Vec<u8> {
    let cut = |segment: &[u8]| -> Vec<u8> {
        segment
            .split(|b| *b == b';')
            .next()
            .unwrap_or_default()
            .to_vec()
    };
    path.split(|b| *b == b'/')
        .map(cut)
        .collect::<Vec<_>>()
        .join(&b'/')
}

/// Removes everything from a `?` or `#` on, which decoding may have produced.
fn remove_query(path: &[u8]) -> Vec<u8> {
    path.split(|b| matches!(b, b'?' | b'#'))
        .next()
        .unwrap_or_default()
        .to_vec()
}

/// Merges consecutive slashes.
fn merge_slashes(path: &[u8]) -> Vec<u8> {
    let mut out = path.to_vec();
    out.dedup_by(|next, before| *next == b'/' && *before == b'/');
    out
}

/// Resolves `.` and `..` segments; nothing leads above the root.
fn resolve_dots(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<&[u8]> = Vec::new();
    let mut open_end = false;
    for segment in path.split(|b| *b == b'/').skip(1) {
        open_end = matches!(segment, b"." | b"..");
        match segment {
            b"." => {}
            b".." => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    if open_end {
        out.push(b"");
    }
    let mut path = vec![b'/'];
    path.extend(out.join(&b'/'));
    path
}

/// A path and everything below it, by whole segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPrefix(String);

impl PathPrefix {
    pub fn parse(text: &str) -> Result<Self, String> {
        let one_reading = Path::sent(text)
            .and_then(|path| Ok(path.readings()?.len() == 1))
            .unwrap_or_default();
        if !one_reading || text.contains('*') {
            return Err(format!(
                "{text:?} is no path prefix: it starts with /, is written without %, //, . and .., no name in it ends with a dot, and it holds all below it (no *)"
            ));
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }

    /// The length; of two prefixes that match, the longer one is more specific.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn holds(&self, path: &[u8], ignore_case: bool) -> bool {
        let Some((head, rest)) = path.split_at_checked(self.0.len()) else {
            return false;
        };
        let same = if ignore_case {
            head.eq_ignore_ascii_case(self.0.as_bytes())
        } else {
            head == self.0.as_bytes()
        };
        same && matches!(rest.first(), None | Some(b'/'))
    }
}

/// The part of a rule that concerns a web request. An empty list means no restriction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestScope {
    pub(super) hosts: Vec<HostPattern>,
    pub(super) paths: Vec<PathPrefix>,
    pub(super) methods: Vec<Method>,
}

impl Scope for RequestScope {
    type Target = Target;
    type Top = ();

    const KEYS: &'static [&'static str] = &["hosts", "methods", "paths"];
    const TOP_KEYS: &'static [&'static str] = &[];
    const EFFECTS: &'static [Effect] = &[Effect::Allow, Effect::Deny, Effect::Anonymous];

    fn of_rule(reader: &mut RuleReader<'_>, table: &DeTable<'_>, field: &str) -> Self {
        Self {
            hosts: reader.list(table, "hosts", field, HostPattern::parse),
            paths: reader.list(table, "paths", field, PathPrefix::parse),
            methods: reader.list(table, "methods", field, grant::method),
        }
    }

    fn of_top(_: &mut RuleReader<'_>, _: &DeTable<'_>) -> Self::Top {}

    fn of_grant(value: &Value) -> Result<Grant<Self>, String> {
        grant::read(value)
    }

    /// A denying rule ignores case in paths and methods, since some servers do.
    fn matches(&self, target: &Target, effect: Effect) -> (Match, &'static str) {
        let host = match (&target.host, self.hosts.is_empty()) {
            (_, true) => (Match::Yes, ""),
            (None, _) => (Match::Maybe, "the proxy did not tell the host"),
            (Some(host), _) => (
                Match::from_bool(self.hosts.iter().any(|pattern| pattern.matches(host))),
                "another host",
            ),
        };
        let deny = effect == Effect::Deny;
        let path = match (&target.path, self.paths.is_empty()) {
            (_, true) => (Match::Yes, ""),
            (None, _) => (Match::Maybe, "the proxy did not tell the path"),
            (Some(path), _) => self.path(path, deny),
        };
        let method = match (&target.method, self.methods.is_empty()) {
            (_, true) => (Match::Yes, ""),
            (None, _) => (Match::Maybe, "the proxy did not tell the method"),
            (Some(method), _) => (self.method(method, deny), "another method"),
        };
        [host, path, method]
            .into_iter()
            .min_by_key(|(sure, _)| *sure)
            .unwrap_or((Match::No, ""))
    }
}

impl RequestScope {
    /// Whether a host is named explicitly or by its domain, not by the absence of a restriction.
    pub(super) fn names_host(&self, host: &Host) -> bool {
        self.hosts.iter().any(|pattern| pattern.matches(host))
    }

    pub(super) fn names_methods(&self) -> bool {
        !self.methods.is_empty()
    }

    fn path(&self, path: &Path, ignore_case: bool) -> (Match, &'static str) {
        let Ok(readings) = path.readings() else {
            return (Match::Maybe, "the path can be read in too many ways");
        };
        let held = readings
            .iter()
            .filter(|reading| self.paths.iter().any(|p| p.holds(reading, ignore_case)))
            .count();
        if held == 0 {
            (Match::No, "another path")
        } else if held == readings.len() {
            (Match::Yes, "")
        } else {
            (
                Match::Maybe,
                "the path can be read as one that it is about and as one that it is not",
            )
        }
    }

    /// `GET` includes `HEAD`, which is the same without a body.
    fn method(&self, method: &Method, ignore_case: bool) -> Match {
        Match::any(self.methods.iter().map(|wanted| {
            let head = wanted == Method::GET && method == Method::HEAD;
            let loose = ignore_case && wanted.as_str().eq_ignore_ascii_case(method.as_str());
            Match::from_bool(wanted == method || head || loose)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(raw: &str) -> Vec<String> {
        let path = Path::parse(raw).unwrap();
        path.readings()
            .unwrap()
            .iter()
            .map(|r| String::from_utf8_lossy(r).into_owned())
            .collect()
    }

    #[test]
    fn a_plain_path_has_one_reading() {
        for raw in [
            "/",
            "/a",
            "/a/",
            "/a/b.c/d",
            "/.well-known/x",
            "/a/...",
            "/ü",
        ] {
            assert_eq!(readings(raw), [raw]);
        }
    }

    #[test]
    fn tricks_reach_what_they_hide() {
        for raw in [
            "/public/../admin",
            "/public/%2e%2e/admin",
            "/public/%2E./admin",
            "/public/%252e%252e/admin",
            "/pu%2fblic/%2e%2e/admin",
            "/public%2f..%2fadmin",
            "/public\\..\\admin",
            "/public/%5c../../admin",
            "//admin",
            "/./admin",
            "/%61dmin",
            "/%2561dmin",
            "/admin;v=1",
            "/public/..;/admin",
            "/admin%3fx",
            "/admin%23x",
            "/x//..//admin",
            "/%2fadmin",
            "/%u0061dmin",
            "/public/%u002e%u002E/admin",
            "/public%u002f..%U005cadmin",
            "/public/%uff0e%uff0e/%uFF41dmin",
            "/public/%ef%bc%8e．/%EF%BD%81dｍin",
            "/%25u0061dmin",
            "/admin.",
            "/admin..",
            "/admin%20",
            "/admin%20.%20",
            "/public/..%20/admin",
            "/public/.%2e%20%20/admin./",
        ] {
            let all = readings(raw);
            let hidden = |r: &String| r.trim_end_matches('/') == "/admin";
            assert!(all.iter().any(hidden), "{raw}: {all:?}");
        }
    }

    #[test]
    fn full_width_letters_are_read_as_they_are_too() {
        let all = readings("/%uff41dmin");
        assert!(all.contains(&"/ａdmin".to_owned()), "{all:?}");
        assert_eq!(readings("/日本語"), ["/日本語"]);
        assert_eq!(readings("/～"), ["/～", "/~"]);
    }

    #[test]
    fn a_path_with_too_many_readings_is_refused() {
        for raw in [
            "",
            "admin",
            "*",
            "/a%u0000",
            "/a%00",
            "/a\u{1}",
            "/a%0d%0aX: y",
            "/%c0%ae%c0%ae/",
            "/%7f",
        ] {
            assert_eq!(Path::parse(raw), Err(TargetError::BadPath), "{raw}");
        }
        let nested = format!("/{}2e", "%25".to_owned() + &"25".repeat(80));
        assert_eq!(Path::parse(&nested), Err(TargetError::AmbiguousPath));
        assert_eq!(
            Path::parse(&format!("/{}", "a".repeat(MAX_PATH_BYTES))),
            Err(TargetError::BadPath)
        );
    }

    #[test]
    fn a_long_path_costs_little_however_much_it_hides() {
        let fill = |open: &str, close: &str| {
            let room = MAX_PATH_BYTES - open.len() - close.len();
            format!("{open}{}{close}", "a".repeat(room))
        };
        let nested = "%25".to_owned() + &"25".repeat(200) + "2e";
        for raw in [
            fill("/", &nested),
            fill("/", "%2525252e%5c%3b%3f//."),
            format!("/{}", "%2525".repeat(MAX_PATH_BYTES / 5 - 1)),
            format!("/{}", "a;b//./%5c".repeat(MAX_PATH_BYTES / 10 - 1)),
            format!("/{}", "%u002525u002e/".repeat(MAX_PATH_BYTES / 14 - 1)),
        ] {
            let mut work = 0;
            let _ = read(raw.as_bytes(), &mut work);
            assert!(work <= 32 * MAX_PATH_BYTES, "{work} bytes: {}", &raw[..40]);
        }
        // An honest path of the same length, with escapes, is readable.
        let honest = format!("/{}", "%E3%81%82/".repeat(MAX_PATH_BYTES / 10 - 1));
        assert_eq!(read(honest.as_bytes(), &mut 0).unwrap().len(), 2);
        let deep = format!("/{}", "a/b%20c/".repeat(MAX_PATH_BYTES / 8 - 1));
        assert_eq!(read(deep.as_bytes(), &mut 0).unwrap().len(), 2);
    }

    #[test]
    fn a_path_that_nothing_asks_about_is_not_read() {
        let path = Path::sent("/a%2f..%2fb").unwrap();
        let anywhere = PathPrefix::parse("/").unwrap();
        assert_eq!(
            path.choose(|holds| holds(&anywhere).then_some(&1)),
            Ok(Some(&1))
        );
        let target = Target {
            path: Some(path),
            ..Target::default()
        };
        assert_eq!(
            RequestScope::default().matches(&target, Effect::Allow).0,
            Match::Yes
        );
        let path = target.path.unwrap();
        assert!(path.readings.get().is_none());

        let public = PathPrefix::parse("/a").unwrap();
        assert_eq!(
            path.choose(|holds| holds(&public).then_some(&1)),
            Err(TargetError::AmbiguousPath)
        );
        assert!(path.readings.get().is_some());
    }

    #[test]
    fn what_cannot_be_read_is_doubt_and_says_so() {
        let scope = RequestScope {
            paths: vec![PathPrefix::parse("/a").unwrap()],
            ..RequestScope::default()
        };
        for (raw, error) in [
            ("/a%00", TargetError::BadPath),
            (
                &*format!("/a/{}2e", "%25".to_owned() + &"25".repeat(80)),
                TargetError::AmbiguousPath,
            ),
        ] {
            let path = Path::sent(raw).unwrap();
            assert_eq!(path.unreadable(), None);
            let target = Target {
                path: Some(path),
                ..Target::default()
            };
            for effect in [Effect::Allow, Effect::Anonymous, Effect::Deny] {
                assert_eq!(scope.matches(&target, effect).0, Match::Maybe);
            }
            assert_eq!(target.unreadable(), Some(error));
        }
    }

    #[test]
    fn prefixes_end_at_segments() {
        let admin = PathPrefix::parse("/admin/").unwrap();
        let holds = |p: &str| admin.holds(p.as_bytes(), false);
        assert!(holds("/admin") && holds("/admin/") && holds("/admin/x"));
        assert!(!holds("/administrator") && !holds("/Admin") && !holds("/"));
        assert!(admin.holds(b"/ADMIN/x", true));
        assert!(PathPrefix::parse("/").unwrap().holds(b"/any", false));
        for bad in ["", "x", "/a/../b", "/a%20", "//", "/a/*", "/a;b"] {
            assert!(PathPrefix::parse(bad).is_err(), "{bad}");
        }
    }
}
