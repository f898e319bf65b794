//! Tells gRPC calls of programs from other requests to the same paths.
//!
//! A web page can send a POST with a plain content type to any address that its visitor's browser
//! can reach, and to us the connection then looks like the visitor calling. A page cannot send
//! gRPC's content type, nor HTTP/2 without TLS. Browsers also mark the requests of pages with
//! headers that no page can remove (`Origin`, `Sec-Fetch-*`).

use http::{HeaderMap, HeaderName, Version, header};

use super::{Error, error::Kind, origin};

/// Refuses what is not a gRPC call of a program. The refusal is a plain HTTP answer: its receiver
/// does not read gRPC's trailers.
///
/// The protocol "gRPC over HTTP/2" asks servers to answer 415 if the content type does not begin
/// with `application/grpc`.
pub fn check(version: Version, headers: &HeaderMap) -> Result<(), Error> {
    if version != Version::HTTP_2 || !content_type(headers) {
        return Err(Error::new(
            Kind::UnsupportedMediaType,
            "not_grpc",
            "only gRPC calls are taken here: HTTP/2 with content-type application/grpc",
        ));
    }
    // No gRPC client sends any of these headers.
    let fetched = |name: &HeaderName| name.as_str().starts_with("sec-fetch-");
    if origin::by_browser(headers) || headers.keys().any(fetched) {
        return Err(Error::new(
            Kind::Forbidden,
            "browser_request",
            "requests of browsers (with Origin or Sec-Fetch-* headers) are not taken here",
        ));
    }
    Ok(())
}

/// Accepts `application/grpc`, alone or followed by a format (`+proto`) or parameters. gRPC-Web is
/// another protocol.
fn content_type(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return false;
    };
    let rest = value
        .as_bytes()
        .split_at_checked("application/grpc".len())
        .filter(|(name, _)| name.eq_ignore_ascii_case(b"application/grpc"))
        .map(|(_, rest)| rest);
    matches!(rest, Some([] | [b'+' | b';' | b' ' | b'\t', ..]))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn code(version: Version, list: &[(&'static str, &'static str)]) -> &'static str {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, HeaderValue::from_static(value));
        }
        check(version, &headers).map_or_else(|error| error.code, |()| "")
    }

    #[test]
    fn a_call_has_the_version_and_the_content_type_of_grpc() {
        for good in [
            "application/grpc",
            "application/grpc+proto",
            "Application/gRPC;charset=utf-8",
        ] {
            let headers = [("content-type", good)];
            assert_eq!(code(Version::HTTP_2, &headers), "", "{good}");
            assert_eq!(code(Version::HTTP_11, &headers), "not_grpc", "{good}");
        }
        for bad in [
            "text/plain",
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpcx",
            "application/json",
            "text/plain;application/grpc",
            "",
        ] {
            let headers = [("content-type", bad)];
            assert_eq!(code(Version::HTTP_2, &headers), "not_grpc", "{bad}");
        }
        assert_eq!(code(Version::HTTP_2, &[]), "not_grpc");
        let twice = [
            ("content-type", "application/grpc"),
            ("content-type", "text/plain"),
        ];
        assert_eq!(code(Version::HTTP_2, &twice), "not_grpc");
    }

    #[test]
    fn a_browser_makes_no_calls() {
        for mark in [
            ("origin", "http://evil.example"),
            ("origin", "null"),
            ("sec-fetch-site", "same-origin"),
            ("sec-fetch-mode", "no-cors"),
            ("sec-fetch-dest", "empty"),
        ] {
            let headers = [("content-type", "application/grpc"), mark];
            assert_eq!(
                code(Version::HTTP_2, &headers),
                "browser_request",
                "{mark:?}"
            );
        }
    }
}
