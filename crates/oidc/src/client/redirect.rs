//! Redirect URIs: which ones a client may register, which one a request may name, and how an answer
//! is put into one.
//!
//! Invariants
//! - A URI is compared byte by byte. The only exception is the port of a loopback address in a
//!   `http` URI (RFC 8252, section 7.3), with `localhost` among those, which native clients use.
//! - What a registered URI has in its query stays in front of what an answer adds.

use std::net::{Ipv4Addr, Ipv6Addr};

use url::{Url, form_urlencoded};

/// Schemes that run or read something in the browser instead of calling an application.
const REFUSED_SCHEMES: [&str; 11] = [
    "about",
    "blob",
    "chrome",
    "chrome-extension",
    "data",
    "file",
    "filesystem",
    "ftp",
    "javascript",
    "mailto",
    "vbscript",
];

/// Why a URI cannot be a client's. The first three have tsidp's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRedirectUri {
    #[error("must be a valid URI with a scheme")]
    NoScheme,
    #[error("scheme \"{0}\" is not allowed")]
    Scheme(String),
    #[error("HTTP and HTTPS URLs must have a host")]
    NoHost,
    #[error("must not have a fragment")]
    Fragment,
    #[error("must not have a user name or password")]
    Credentials,
}

/// Whether a client may register the URI.
pub fn check(uri: &str) -> Result<(), BadRedirectUri> {
    let scheme = scheme(uri).ok_or(BadRedirectUri::NoScheme)?;
    if REFUSED_SCHEMES.contains(&scheme.as_str()) {
        return Err(BadRedirectUri::Scheme(scheme));
    }
    if uri.contains('#') {
        return Err(BadRedirectUri::Fragment);
    }
    if uri.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(BadRedirectUri::NoScheme);
    }
    let web = matches!(scheme.as_str(), "http" | "https");
    if web && !has_host(uri) {
        return Err(BadRedirectUri::NoHost);
    }
    let url = Url::parse(uri).map_err(|_| BadRedirectUri::NoScheme)?;
    if web && (!url.username().is_empty() || url.password().is_some()) {
        return Err(BadRedirectUri::Credentials);
    }
    Ok(())
}

fn scheme(uri: &str) -> Option<String> {
    let (scheme, _) = uri.split_once(':')?;
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    let begins = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
    (begins && scheme.bytes().all(fits)).then(|| scheme.to_ascii_lowercase())
}

/// Whether there is a host between `//` and what follows. Parsers of URLs are lenient about this:
/// they read `http:/path` as one whose host is `path`.
fn has_host(uri: &str) -> bool {
    let after = uri.split_once(':').map_or("", |(_, after)| after);
    after.strip_prefix("//").is_some_and(|rest| {
        let authority = rest.split(['/', '?', '\\']).next().unwrap_or_default();
        !authority.is_empty() && !authority.starts_with(':')
    })
}

/// Whether a request may name this URI, of those that the client registered.
pub fn is_registered(registered: &[String], requested: &str) -> bool {
    registered.iter().any(|one| matches(one, requested))
}

fn matches(registered: &str, requested: &str) -> bool {
    if registered == requested {
        return true;
    }
    match (loopback(registered), loopback(requested)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

/// The host of a loopback URI and what follows its port; `None` for every other URI.
fn loopback(uri: &str) -> Option<(&str, &str)> {
    let after = uri.strip_prefix("http://")?;
    let end = after.find(['/', '?', '#', '\\']).unwrap_or(after.len());
    let (authority, rest) = after.split_at(end);
    // An IPv6 address has colons of its own.
    let port_at = match authority.strip_prefix('[') {
        Some(inside) => inside.find(']')? + 2,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(port_at);
    let digits = match port.strip_prefix(':') {
        None if port.is_empty() => "1",
        None => return None,
        Some(digits) => digits,
    };
    let port_fits = digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok();
    (port_fits && is_loopback(host)).then_some((host, rest))
}

fn is_loopback(host: &str) -> bool {
    let v6 = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    match v6 {
        Some(address) => address.parse() == Ok(Ipv6Addr::LOCALHOST),
        None => {
            host == "localhost"
                || host
                    .parse::<Ipv4Addr>()
                    .is_ok_and(|host| host.is_loopback())
        }
    }
}

/// The URI with these parameters behind its own query.
pub fn with_params<'a>(uri: &str, params: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut added = form_urlencoded::Serializer::new(String::new());
    added.extend_pairs(params);
    let added = added.finish();
    let between = match uri.split_once('?') {
        None => "?",
        Some((_, "")) => "",
        Some((_, query)) if query.ends_with('&') => "",
        Some(_) => "&",
    };
    format!("{uri}{between}{added}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uris_that_a_client_may_register_in_tsidps_words() {
        for good in [
            "https://app.example.com/callback",
            "http://localhost:8080/cb?x=1",
            "http://10.0.0.1/",
            "myapp://callback",
            "com.example.app:/oauth2redirect",
            "cursor://anysphere.cursor/callback",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", "must be a valid URI with a scheme"),
            (
                "app.example.com/callback",
                "must be a valid URI with a scheme",
            ),
            ("my app://callback", "must be a valid URI with a scheme"),
            (
                "https://a.example.com/ b",
                "must be a valid URI with a scheme",
            ),
            (
                "JavaScript:alert(1)",
                "scheme \"javascript\" is not allowed",
            ),
            ("data:text/html,x", "scheme \"data\" is not allowed"),
            ("https://", "HTTP and HTTPS URLs must have a host"),
            ("http:/callback", "HTTP and HTTPS URLs must have a host"),
            ("http:///callback", "HTTP and HTTPS URLs must have a host"),
            (
                "https://:443/callback",
                "HTTP and HTTPS URLs must have a host",
            ),
            ("https://a.example.com/#x", "must not have a fragment"),
            (
                "https://me:pw@a.example.com/",
                "must not have a user name or password",
            ),
        ] {
            assert_eq!(check(bad).unwrap_err().to_string(), why, "{bad}");
        }
    }

    #[test]
    fn a_uri_matches_byte_by_byte() {
        let registered = ["https://a.example.com:8443/cb?x=1".to_owned()];
        assert!(is_registered(&registered, &registered[0]));
        for other in [
            "https://a.example.com/cb?x=1",
            "https://A.example.com:8443/cb?x=1",
            "https://a.example.com:8443/cb",
            "https://a.example.com:8443/cb?x=1&y=2",
            "https://a.example.com:8443/cb?x=1#f",
            "https://a.example.com:8443/CB?x=1",
            "https://a.example.com:8443/%63b?x=1",
            "http://a.example.com:8443/cb?x=1",
            "https://a.example.com:8443.evil.example/cb?x=1",
        ] {
            assert!(!is_registered(&registered, other), "{other}");
        }
        assert!(!is_registered(&[], "https://a.example.com"));
    }

    #[test]
    fn the_port_of_a_loopback_address_does_not_matter() {
        for (registered, requested) in [
            ("http://127.0.0.1/cb", "http://127.0.0.1:51004/cb"),
            ("http://127.0.0.1:1234/cb", "http://127.0.0.1/cb"),
            ("http://127.8.9.1/cb?a=b", "http://127.8.9.1:1/cb?a=b"),
            ("http://[::1]/cb", "http://[::1]:51004/cb"),
            (
                "http://localhost/callback",
                "http://localhost:3118/callback",
            ),
            ("http://localhost", "http://localhost:80"),
        ] {
            assert!(matches(registered, requested), "{registered} {requested}");
        }
        for (registered, requested) in [
            ("http://127.0.0.1/cb", "http://127.0.0.2:1/cb"),
            ("http://127.0.0.1/cb", "http://localhost:1/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:1/other"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:1@evil.example/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:99999/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1.evil.example:1/cb"),
            ("https://127.0.0.1/cb", "https://127.0.0.1:1/cb"),
            ("http://[::1]/cb", "http://[::2]:1/cb"),
            ("http://[::1]/cb", "http://[::1]x:1/cb"),
            ("http://localhost/cb", "http://localhost.evil.example:1/cb"),
            ("http://localhost/cb", "http://localhost:1\\evil/cb"),
            ("http://10.0.0.1/cb", "http://10.0.0.1:1/cb"),
        ] {
            assert!(!matches(registered, requested), "{registered} {requested}");
        }
    }

    #[test]
    fn an_answer_goes_behind_the_query_that_is_there() {
        let with = |uri| with_params(uri, [("code", "a b"), ("state", "ü&")]);
        assert_eq!(
            with("https://a/cb"),
            "https://a/cb?code=a+b&state=%C3%BC%26"
        );
        assert_eq!(
            with("https://a/cb?x=%41"),
            "https://a/cb?x=%41&code=a+b&state=%C3%BC%26"
        );
        assert_eq!(
            with("https://a/cb?"),
            "https://a/cb?code=a+b&state=%C3%BC%26"
        );
        assert_eq!(with("app:/cb"), "app:/cb?code=a+b&state=%C3%BC%26");
    }
}
