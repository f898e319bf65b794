//! Host names and origins in the spelling of HTTP and browsers. These types make no decisions.

use std::{fmt, net::Ipv6Addr};

/// A host name or address in a canonical form: lower case, without port, brackets and final dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Host(String);

/// The text is neither a host name nor an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the host is not a host name or address")]
pub struct BadHost;

impl Host {
    /// Parses the value of a `Host` header.
    pub fn parse(text: &str) -> Result<Self, BadHost> {
        Self::with_port(text).map(|(host, _)| host)
    }

    /// The same with the port, if there is one.
    pub fn with_port(text: &str) -> Result<(Self, Option<u16>), BadHost> {
        if let Some(rest) = text.strip_prefix('[') {
            let (address, after) = rest.split_once(']').ok_or(BadHost)?;
            let address: Ipv6Addr = address.parse().map_err(|_| BadHost)?;
            let port = match after.strip_prefix(':') {
                Some(digits) => port(digits)?,
                None if after.is_empty() => None,
                None => return Err(BadHost),
            };
            return Ok((Self(address.to_string()), port));
        }
        let (name, port) = match text.split_once(':') {
            Some((name, digits)) => (name, port(digits)?),
            None => (text, None),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.split('.').any(str::is_empty) || !name.bytes().all(fits) {
            return Err(BadHost);
        }
        Ok((Self(name.to_ascii_lowercase()), port))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// As a URL writes it: an IPv6 address in brackets.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') {
            write!(f, "[{}]", self.0)
        } else {
            f.write_str(&self.0)
        }
    }
}

fn port(digits: &str) -> Result<Option<u16>, BadHost> {
    if digits.is_empty() {
        return Ok(None);
    }
    if digits.len() > 5 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(BadHost);
    }
    digits.parse().map(Some).map_err(|_| BadHost)
}

/// A host, or all hosts below one (`*.example.com`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    Below(String),
    Exactly(Host),
}

impl HostPattern {
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad =
            || format!("{text:?} is no host: use a name, an address, or *.name, without port");
        let name = text.strip_prefix("*.").unwrap_or(text);
        // A port would never match, since hosts are compared without one.
        if name.contains(':') && name.parse::<Ipv6Addr>().is_err() {
            return Err(bad());
        }
        let host = match name.parse::<Ipv6Addr>() {
            Ok(address) => Host(address.to_string()),
            Err(_) => Host::parse(name).map_err(|_| bad())?,
        };
        Ok(if name.len() == text.len() {
            Self::Exactly(host)
        } else {
            Self::Below(format!(".{}", host.0))
        })
    }

    pub fn matches(&self, host: &Host) -> bool {
        match self {
            Self::Below(suffix) => host.0.len() > suffix.len() && host.0.ends_with(suffix),
            Self::Exactly(name) => name == host,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Below(suffix) => write!(f, "*{suffix}"),
            Self::Exactly(host) => f.write_str(&host.0),
        }
    }
}

/// The origin of a web page (RFC 6454): scheme, host and port, or none that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `null`: a sandboxed frame, a file, or a request that hides its origin.
    Null,
    Of {
        scheme: String,
        host: Host,
        /// `None` for the scheme's default port.
        port: Option<u16>,
    },
}

impl Origin {
    /// Parses the value of an `Origin` header.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text:?} is no origin: scheme, host and port, as in https://app.example.com:8443, without path"
            )
        };
        if text == "null" {
            return Ok(Self::Null);
        }
        let (scheme, authority) = text.split_once("://").ok_or_else(bad)?;
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
        if scheme.is_empty() || !scheme.bytes().all(fits) {
            return Err(bad());
        }
        let scheme = scheme.to_ascii_lowercase();
        let (host, port) = Host::with_port(authority).map_err(|_| bad())?;
        let port = non_default_port(&scheme, port);
        Ok(Self::Of { scheme, host, port })
    }

    /// Whether a request of a page of this origin goes to the page's own server, which was
    /// addressed by this host and port.
    pub fn is_own_server(&self, host: &Host, port: Option<u16>) -> bool {
        match self {
            Self::Null => false,
            Self::Of {
                scheme,
                host: own,
                port: own_port,
            } => own == host && *own_port == non_default_port(scheme, port),
        }
    }

    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Null => None,
            Self::Of { port, .. } => *port,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Of { scheme, host, port } => {
                if host.0.contains(':') {
                    write!(f, "{scheme}://[{}]", host.0)?;
                } else {
                    write!(f, "{scheme}://{}", host.0)?;
                }
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
        }
    }
}

/// The port, unless it is the scheme's default.
fn non_default_port(scheme: &str, port: Option<u16>) -> Option<u16> {
    let own = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return port,
    };
    port.filter(|port| *port != own)
}

/// An element of a list of allowed values, where `*` allows everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed<T> {
    Any,
    One(T),
}

impl<T> Allowed<T> {
    pub fn parse(word: &str, one: impl FnOnce(&str) -> Result<T, String>) -> Result<Self, String> {
        if word == "*" {
            return Ok(Self::Any);
        }
        one(word).map(Self::One)
    }

    /// Whether this element allows the value that `is` recognizes.
    pub fn allows(&self, is: impl FnOnce(&T) -> bool) -> bool {
        match self {
            Self::Any => true,
            Self::One(one) => is(one),
        }
    }
}

impl<T: fmt::Display> fmt::Display for Allowed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::One(one) => one.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_in_their_plain_form() {
        let plain = |text| Host::with_port(text).map(|(host, port)| (host.0, port));
        let is = |host: &str, port| Ok((host.to_owned(), port));
        assert_eq!(
            plain("App.Example.com.:8080"),
            is("app.example.com", Some(8080))
        );
        assert_eq!(plain("a:"), is("a", None));
        assert_eq!(plain("[FD7A::1]:80"), is("fd7a::1", Some(80)));
        assert_eq!(plain("[fd7a:0::1]"), is("fd7a::1", None));
        for bad in [
            "", ".", "a..", "a..b", "a b", "a/b", "a:b", "a@b", "[::1", "[::1]x", "a:80:80",
            "a:+80", "a:70000", "a\u{e9}",
        ] {
            assert_eq!(plain(bad), Err(BadHost), "{bad}");
        }
    }

    #[test]
    fn a_wildcard_holds_what_is_below_it_alone() {
        let below = HostPattern::parse("*.Example.com").unwrap();
        let is = |name| below.matches(&Host::parse(name).unwrap());
        assert!(is("a.example.com") && is("a.b.example.com"));
        assert!(!is("example.com") && !is("evilexample.com"));
        assert!(HostPattern::parse("a:80").is_err() && HostPattern::parse("*").is_err());
        assert_eq!(below.to_string(), "*.example.com");
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let at = |origin: &str, host: &str| {
            let (host, port) = Host::with_port(host).unwrap();
            Origin::parse(origin).unwrap().is_own_server(&host, port)
        };
        assert!(at("http://wiki", "wiki") && at("http://wiki", "Wiki.:80"));
        assert!(at("http://wiki:8082", "wiki:8082"));
        assert!(at("https://wiki.example.com", "wiki.example.com:443"));
        assert!(at("http://[fd7a::1]:8082", "[fd7a:0::1]:8082"));
        assert!(!at("http://wiki:3000", "wiki") && !at("http://wiki", "wiki:8082"));
        assert!(!at("https://wiki", "wiki:80") && !at("http://evil.example", "wiki"));
        assert!(!at("http://wiki.evil.example", "wiki") && !at("null", "null"));
        for bad in [
            "",
            "wiki",
            "http://",
            "http://a/",
            "http://a b",
            "://a",
            "http://u@a",
        ] {
            assert!(Origin::parse(bad).is_err(), "{bad}");
        }
        for same in ["null", "https://a.example:8443", "http://[fd7a::1]"] {
            assert_eq!(Origin::parse(same).unwrap().to_string(), same);
        }
        assert_eq!(
            Origin::parse("HTTP://A.example:80").unwrap().to_string(),
            "http://a.example"
        );
    }
}
