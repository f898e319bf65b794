//! Forms, as OAuth sends them.

use http::{HeaderMap, header};

/// Whether the body is declared as a form, with whatever parameters of the media type.
pub fn is_form(headers: &HeaderMap) -> bool {
    let media_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next());
    media_type.is_some_and(|media_type| {
        media_type
            .trim()
            .eq_ignore_ascii_case("application/x-www-form-urlencoded")
    })
}
