//! What a request asks for (host, path, method), and the patterns that rules hold against it.
//!
//! A path is the hard part: `/public/%2e%2e/admin` is below `/public` for one server and is `/admin` for the next, and we do
//! not know which kind stands behind us. So a [`Path`] keeps *every* reading that some server could make of it (decoded once
//! or several times, slashes merged, dots resolved, backslashes turned, parameters cut). A rule that lets through has to
//! match them all; a rule that denies needs one. What has no end of readings, or hides control characters, is no path.

use std::collections::VecDeque;

use ::http::Method;

use super::{Effect, Match};
use crate::web::{BadHost, Host, HostPattern};

/// What a request asks for. `None` is what the proxy did not tell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct What {
    pub host: Option<Host>,
    pub path: Option<Path>,
    pub method: Option<Method>,
}

/// Why something is no host or path to decide about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WhatError {
    #[error("the path can be read in too many ways")]
    AmbiguousPath,
    #[error("the path has bytes in it that no path needs")]
    BadPath,
    #[error("the host is not a host name or address")]
    BadHost,
}

impl From<BadHost> for WhatError {
    fn from(_: BadHost) -> Self {
        Self::BadHost
    }
}

/// Readings of one path at most. An honest path has one or two.
const READINGS: usize = 64;
/// Longer paths are refused before any work is spent on them.
const PATH_BYTES: usize = 8 << 10;

/// A path with every reading that some server could make of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// The first is the path as sent.
    readings: Vec<Vec<u8>>,
}

impl Path {
    /// Reads the path of a request target, without its query.
    pub fn parse(raw: &str) -> Result<Self, WhatError> {
        let raw = raw.as_bytes();
        if raw.first() != Some(&b'/') || raw.len() > PATH_BYTES {
            return Err(WhatError::BadPath);
        }
        let mut readings: Vec<Vec<u8>> = Vec::new();
        let mut open = VecDeque::from([raw.to_vec()]);
        while let Some(reading) = open.pop_front() {
            if readings.contains(&reading) {
                continue;
            }
            if !clean(&reading) {
                return Err(WhatError::BadPath);
            }
            if readings.len() == READINGS {
                return Err(WhatError::AmbiguousPath);
            }
            if !plain(&reading) {
                let ways = [decode, turn, cut_parameters, cut_query, merge, resolve];
                open.extend(ways.iter().map(|way| way(&reading)));
            }
            readings.push(reading);
        }
        Ok(Self { readings })
    }

    /// As sent, cut behind its first segment: enough for a log line, without what a path may hide further down.
    pub fn first_segment(&self) -> String {
        let sent = self.readings.first().map(Vec::as_slice).unwrap_or_default();
        let end = sent
            .iter()
            .skip(1)
            .position(|b| *b == b'/')
            .map_or(sent.len(), |at| at + 1);
        let shown = sent.get(..end.min(64)).unwrap_or_default();
        shown.escape_ascii().to_string()
    }

    /// Which of several prefixes hold the path: `Ok(None)` for none; an error where two readings differ.
    pub fn choose<'a, T>(
        &self,
        mut which: impl FnMut(&dyn Fn(&PathPrefix) -> bool) -> Option<&'a T>,
    ) -> Result<Option<&'a T>, WhatError> {
        let mut chosen: Option<Option<&'a T>> = None;
        for reading in &self.readings {
            let here = which(&|prefix| prefix.holds(reading, false));
            match chosen {
                None => chosen = Some(here),
                Some(before) if before.map(std::ptr::from_ref) == here.map(std::ptr::from_ref) => {}
                Some(_) => return Err(WhatError::AmbiguousPath),
            }
        }
        Ok(chosen.flatten())
    }
}

/// Control characters and overlong UTF-8 have no place in any reading of a path.
fn clean(reading: &[u8]) -> bool {
    reading
        .iter()
        .all(|b| !b.is_ascii_control() && !matches!(b, 0xc0 | 0xc1 | 0xf5..=0xff))
}

/// Whether all servers agree on it.
fn plain(reading: &[u8]) -> bool {
    let odd = |b: &u8| matches!(b, b'%' | b'\\' | b';' | b'?' | b'#');
    let segment = |s: &[u8]| !s.is_empty() && s != b"." && s != b"..";
    let inner = reading.get(1..).unwrap_or_default();
    let inner = inner.strip_suffix(b"/").unwrap_or(inner);
    !reading.iter().any(odd)
        && (inner.is_empty() && reading.len() < 2 || inner.split(|b| *b == b'/').all(segment))
}

/// Every `%xx` decoded, once.
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

/// Backslashes as slashes.
fn turn(path: &[u8]) -> Vec<u8> {
    path.iter()
        .map(|b| if *b == b'\\' { b'/' } else { *b })
        .collect()
}

/// Each segment without what follows its first `;`.
fn cut_parameters(path: &[u8]) -> Vec<u8> {
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

/// Without what follows a `?` or `#`, which a decoding may have brought up.
fn cut_query(path: &[u8]) -> Vec<u8> {
    path.split(|b| matches!(b, b'?' | b'#'))
        .next()
        .unwrap_or_default()
        .to_vec()
}

/// Several slashes as one.
fn merge(path: &[u8]) -> Vec<u8> {
    let mut out = path.to_vec();
    out.dedup_by(|next, before| *next == b'/' && *before == b'/');
    out
}

/// `.` and `..` segments resolved; nothing leads above the root.
fn resolve(path: &[u8]) -> Vec<u8> {
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
        let one_reading = Path::parse(text).is_ok_and(|path| path.readings.len() == 1);
        if !one_reading || text.contains('*') {
            return Err(format!(
                "{text:?} is no path prefix: it starts with /, is written without %, //, . and .., and holds all below it (no *)"
            ));
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }

    /// How much it says; the longer of two that match is the nearer one.
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

/// The part of a rule that is about the request. An empty list means no restriction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Scope {
    pub(super) hosts: Vec<HostPattern>,
    pub(super) paths: Vec<PathPrefix>,
    pub(super) methods: Vec<Method>,
}

impl Scope {
    /// How sure it is that the rule is about this request, and which part is the least sure. A denying rule compares paths
    /// and methods without case: there are servers that do the same.
    pub(super) fn matches(&self, what: &What, effect: Effect) -> (Match, &'static str) {
        let host = match (&what.host, self.hosts.is_empty()) {
            (_, true) => (Match::Yes, ""),
            (None, _) => (Match::Maybe, "the proxy did not tell the host"),
            (Some(host), _) => (
                Match::from_bool(self.hosts.iter().any(|pattern| pattern.is(host))),
                "another host",
            ),
        };
        let deny = effect == Effect::Deny;
        let path = match (&what.path, self.paths.is_empty()) {
            (_, true) => (Match::Yes, ""),
            (None, _) => (Match::Maybe, "the proxy did not tell the path"),
            (Some(path), _) => self.path(path, deny),
        };
        let method = match (&what.method, self.methods.is_empty()) {
            (_, true) => (Match::Yes, ""),
            (None, _) => (Match::Maybe, "the proxy did not tell the method"),
            (Some(method), _) => (self.method(method, deny), "another method"),
        };
        [host, path, method]
            .into_iter()
            .min_by_key(|(sure, _)| *sure)
            .unwrap_or((Match::No, ""))
    }

    /// Whether it names a host by itself, not by meaning all of them.
    pub(super) fn names_host(&self, host: &Host) -> bool {
        self.hosts.iter().any(|pattern| pattern.is(host))
    }

    pub(super) fn names_methods(&self) -> bool {
        !self.methods.is_empty()
    }

    fn path(&self, path: &Path, ignore_case: bool) -> (Match, &'static str) {
        let held = path
            .readings
            .iter()
            .filter(|reading| self.paths.iter().any(|p| p.holds(reading, ignore_case)))
            .count();
        if held == 0 {
            (Match::No, "another path")
        } else if held == path.readings.len() {
            (Match::Yes, "")
        } else {
            (
                Match::Maybe,
                "the path can be read as one that it is about and as one that it is not",
            )
        }
    }

    /// `GET` means `HEAD` too: the second is the first without its body.
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
        path.readings
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
        ] {
            let all = readings(raw);
            assert!(all.iter().any(|r| r == "/admin"), "{raw}: {all:?}");
        }
    }

    #[test]
    fn what_hides_too_much_is_no_path() {
        for raw in [
            "",
            "admin",
            "*",
            "/a%00",
            "/a\u{1}",
            "/a%0d%0aX: y",
            "/%c0%ae%c0%ae/",
            "/%7f",
        ] {
            assert_eq!(Path::parse(raw), Err(WhatError::BadPath), "{raw}");
        }
        let nested = format!("/{}2e", "%25".to_owned() + &"25".repeat(80));
        assert_eq!(Path::parse(&nested), Err(WhatError::AmbiguousPath));
        assert_eq!(
            Path::parse(&format!("/{}", "a".repeat(PATH_BYTES))),
            Err(WhatError::BadPath)
        );
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
