//! Tells requests of web pages from requests of programs.
//!
//! Identity by connection says which machine calls, but not which program on it: any page that the
//! user visits can send requests from there. Browsers mark such requests with headers that a page
//! cannot remove: `Origin` (Fetch standard: on everything but plain GET and HEAD, and on every
//! WebSocket), and `Sec-Fetch-Site` where the target is a trustworthy address (Fetch Metadata).
//!
//! There are two rules. Endpoints that give tokens to programs accept no requests of pages
//! ([`for_programs`]). A service that may have pages of its own accepts requests of those pages
//! only ([`is_cross_origin`]). Both have a list of origins that are allowed nevertheless.

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{self, Entry},
};

use super::{Error, error::Kind};
use tailbone_values::web::{Allowed, Host, Origin};

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const REQUEST_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-allow-private-network");

/// Whether a browser sent this for a page. Programs send neither of these headers. `Sec-Fetch-Mode`
/// alone proves nothing, since `fetch` of Node.js sends it too.
pub fn by_browser(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN) || headers.contains_key(FETCH_SITE)
}

/// Accepts requests of programs, and of pages of an allowed origin.
pub fn for_programs(headers: &HeaderMap, allowed: &[Allowed<Origin>]) -> Result<(), Error> {
    if !by_browser(headers) || is_allowed(headers, allowed) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Forbidden,
        "browser_request",
        format!(
            "this is for programs, and a browser sent it for a page{}; where that is meant, add the page's origin to the setting server.allowedOrigins",
            of(headers)
        ),
    ))
}

/// Applies [`for_programs`] to every POST to these routes. [`super::layers`] goes around it.
pub fn wrap(router: Router, allowed: &[Allowed<Origin>]) -> Router {
    let allowed: Arc<[Allowed<Origin>]> = allowed.into();
    router.layer(from_fn(move |request: Request, next: Next| {
        let allowed = allowed.clone();
        async move {
            if request.method() == Method::POST
                && let Err(error) = for_programs(request.headers(), &allowed)
            {
                return error.into_response();
            }
            next.run(request).await
        }
    }))
}

/// Lets pages of the allowed origins read the answers of these routes, and ask beforehand whether
/// they may send a request (CORS, Fetch standard).
pub fn share(router: Router, allowed: &[Allowed<Origin>]) -> Router {
    if allowed.is_empty() {
        return router;
    }
    let allowed: Arc<[Allowed<Origin>]> = allowed.into();
    router.layer(from_fn(move |request: Request, next: Next| {
        let allowed = allowed.clone();
        async move {
            let mut origins = request.headers().get_all(header::ORIGIN).iter();
            let origin = match (origins.next(), origins.next()) {
                (Some(origin), None) if is_allowed(request.headers(), &allowed) => origin.clone(),
                _ => return next.run(request).await,
            };
            let mut response = match preflight(&request) {
                Some(answer) => answer,
                None => next.run(request).await,
            };
            let headers = response.headers_mut();
            // What everybody may read says so itself.
            if let Entry::Vacant(entry) = headers.entry(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
                entry.insert(origin);
                headers.append(header::VARY, HeaderValue::from_static("origin"));
            }
            response
        }
    }))
}

/// The answer to a browser that asks whether a page may send a request.
fn preflight(request: &Request) -> Option<Response> {
    let asked = request.headers();
    if request.method() != Method::OPTIONS
        || !asked.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
    {
        return None;
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST"),
    );
    if let Some(names) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    // A page on the internet asks for leave to call a private address, which a tailnet's is.
    if asked.contains_key(REQUEST_PRIVATE_NETWORK) {
        headers.insert(ALLOW_PRIVATE_NETWORK, HeaderValue::from_static("true"));
    }
    headers.insert(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static("600"),
    );
    Some(response)
}

fn of(headers: &HeaderMap) -> String {
    match single(headers, &header::ORIGIN) {
        Some(origin) => format!(" of {}", origin.chars().take(128).collect::<String>()),
        None => String::new(),
    }
}

/// The host and port that a request was sent to.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    pub host: &'a Host,
    pub port: Option<u16>,
    /// Whether `port` is the port that the browser uses: some proxies pass on the host only.
    pub port_known: bool,
}

/// Whether a request comes from a page of another origin than the one that it is sent to.
pub fn is_cross_origin(
    headers: &HeaderMap,
    destination: Destination<'_>,
    allowed: &[Allowed<Origin>],
) -> bool {
    if !by_browser(headers) || is_allowed(headers, allowed) {
        return false;
    }
    // The browser's own comparison is more reliable than ours: a proxy in between may have changed
    // the host or port that we see.
    if headers.contains_key(&FETCH_SITE) {
        // No browser sends it twice, or in letters that cannot be read.
        return !matches!(single(headers, &FETCH_SITE), Some("same-origin" | "none"));
    }
    if !headers.contains_key(header::ORIGIN) {
        return false;
    }
    let Some(origin) = single(headers, &header::ORIGIN).and_then(|text| Origin::parse(text).ok())
    else {
        return true;
    };
    let port = if destination.port_known || destination.port.is_some() {
        destination.port
    } else {
        origin.port()
    };
    !origin.is_own_server(destination.host, port)
}

fn is_allowed(headers: &HeaderMap, allowed: &[Allowed<Origin>]) -> bool {
    let origin = single(headers, &header::ORIGIN).and_then(|text| Origin::parse(text).ok());
    allowed
        .iter()
        .any(|one| one.allows(|one| origin.as_ref() == Some(one)))
}

/// The value of a header that occurs exactly once.
fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn words(list: &[&str]) -> Vec<Allowed<Origin>> {
        list.iter()
            .map(|word| Allowed::parse(word, Origin::parse).unwrap())
            .collect()
    }

    #[test]
    fn programs_pass_and_pages_only_where_their_origin_is_allowed() {
        let passes = |list: &[(&'static str, &'static str)], allowed: &[&str]| {
            for_programs(&headers(list), &words(allowed)).is_ok()
        };
        let page = [("origin", "https://app.example.com")];
        assert!(passes(&[("user-agent", "curl/8")], &[]));
        assert!(!passes(&page, &[]));
        assert!(!passes(
            &page,
            &["https://other.example.com", "http://app.example.com"]
        ));
        assert!(passes(&page, &["https://app.example.com:443"]));
        assert!(passes(&page, &["*"]));
        assert!(!passes(&[("origin", "null")], &["https://app.example.com"]));
        // After DNS rebinding a page is of the same origin: its GET has no Origin, but
        // Sec-Fetch-Site.
        for site in ["same-origin", "none"] {
            let rebound = [("sec-fetch-site", site), ("sec-fetch-mode", "cors")];
            assert!(!passes(&rebound, &["https://app.example.com"]), "{site}");
        }
        // A program written in JavaScript.
        assert!(passes(
            &[("sec-fetch-mode", "cors"), ("user-agent", "node")],
            &[]
        ));
        assert!(!passes(
            &[("origin", "https://app.example.com"), ("origin", "x")],
            &["https://app.example.com"]
        ));
    }

    #[test]
    fn a_page_asks_its_own_site_alone() {
        let host = Host::parse("wiki").unwrap();
        let is = |list: &[(&'static str, &'static str)], allowed: &[&str]| {
            let destination = Destination {
                host: &host,
                port: Some(8082),
                port_known: true,
            };
            is_cross_origin(&headers(list), destination, &words(allowed))
        };
        assert!(!is(&[], &[]));
        assert!(!is(&[("origin", "http://wiki:8082")], &[]));
        for other in [
            "http://wiki",
            "http://wiki:3000",
            "http://evil.example",
            "null",
            "",
            "wiki:8082",
        ] {
            assert!(is(&[("origin", other)], &[]), "{other}");
            assert!(!is(&[("origin", other)], &["*"]), "{other}");
        }
        assert!(!is(
            &[("origin", "http://evil.example")],
            &["http://evil.example"]
        ));
        assert!(!is(&[("origin", "null")], &["null"]));
        assert!(is(
            &[
                ("origin", "http://wiki:8082"),
                ("origin", "http://wiki:8082")
            ],
            &[]
        ));
        // The browser's own comparison.
        assert!(!is(
            &[("origin", "null"), ("sec-fetch-site", "same-origin")],
            &[]
        ));
        assert!(!is(&[("sec-fetch-site", "none")], &[]));
        assert!(is(
            &[
                ("origin", "http://wiki:8082"),
                ("sec-fetch-site", "cross-site")
            ],
            &[]
        ));
        assert!(is(&[("sec-fetch-site", "same-site")], &[]));
        // Twice, or beyond ASCII: the origin alone would let these in.
        for site in [["same-origin", "none"].as_slice(), &["same-origin\u{497}"]] {
            let mut list = vec![("origin", "http://wiki:8082")];
            assert!(!is(&list, &[]));
            list.extend(site.iter().map(|site| ("sec-fetch-site", *site)));
            assert!(is(&list, &[]), "{site:?}");
        }
    }

    #[test]
    fn a_port_that_the_proxy_did_not_tell_is_not_compared() {
        let host = Host::parse("wiki").unwrap();
        let destination = |port, port_known| Destination {
            host: &host,
            port,
            port_known,
        };
        let page = headers(&[("origin", "https://wiki:8443")]);
        assert!(!is_cross_origin(&page, destination(None, false), &[]));
        assert!(is_cross_origin(&page, destination(Some(80), false), &[]));
        assert!(is_cross_origin(&page, destination(None, true), &[]));
        let evil = headers(&[("origin", "https://evil.example:8443")]);
        assert!(is_cross_origin(&evil, destination(None, false), &[]));
    }
}
