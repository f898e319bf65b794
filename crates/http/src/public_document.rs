//! Documents that everybody may read and keep for a while, such as public keys.

use std::time::Duration;

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};

/// The document, or 304 if the caller has it already. `etag` has no quotes; `max_age` is how long a
/// copy may be used. To `HEAD` the server sends the same without the document.
pub fn answer(
    request: &HeaderMap,
    content_type: &'static str,
    etag: &str,
    max_age: Duration,
    document: impl Into<Body>,
) -> Response {
    let etag = format!("\"{etag}\"");
    let value = |text: &str| HeaderValue::try_from(text).ok();
    let headers = [
        (header::CONTENT_TYPE, value(content_type)),
        (
            header::CACHE_CONTROL,
            value(&format!("public, max-age={}", max_age.as_secs())),
        ),
        (header::ETAG, value(&etag)),
        // Verifiers in browsers read them too.
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, value("*")),
    ];
    let mut response = if is_known(request, &etag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        document.into().into_response()
    };
    for (name, value) in headers {
        if let Some(value) = value {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn is_known(request: &HeaderMap, etag: &str) -> bool {
    let mut theirs = request.get_all(header::IF_NONE_MATCH).iter();
    theirs.any(|theirs| theirs.as_bytes() == etag.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_that_names_the_version_gets_no_copy() {
        let answered = |known: Option<&'static str>| {
            let mut request = HeaderMap::new();
            if let Some(known) = known {
                request.insert(header::IF_NONE_MATCH, HeaderValue::from_static(known));
            }
            let age = Duration::from_secs(300);
            answer(&request, "application/json", "a", age, b"{}".to_vec())
        };
        for (known, status) in [
            (None, StatusCode::OK),
            (Some("\"a\""), StatusCode::NOT_MODIFIED),
            (Some("\"b\""), StatusCode::OK),
            (Some("a"), StatusCode::OK),
        ] {
            let response = answered(known);
            assert_eq!(response.status(), status, "{known:?}");
            for (name, value) in [
                (header::CONTENT_TYPE, "application/json"),
                (header::CACHE_CONTROL, "public, max-age=300"),
                (header::ETAG, "\"a\""),
                (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
            ] {
                assert_eq!(response.headers()[name], value);
            }
        }
    }
}
