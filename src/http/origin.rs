//! Telling what a web page asks for from what a program asks for.
//!
//! Identity by connection knows whose machine calls, and not which program on it: a page of anybody that the user visits can send
//! requests from there. Browsers mark such requests, and pages cannot take the marks off: `Origin` (Fetch standard, on everything
//! but plain GET and HEAD, and on every WebSocket) and, towards trustworthy addresses, `Sec-Fetch-*` (Fetch Metadata).

use http::{HeaderMap, header};

/// Whether a browser sent this. Programs send neither of these headers.
pub fn by_browser(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN)
        || headers
            .keys()
            .any(|name| name.as_str().starts_with("sec-fetch-"))
}
