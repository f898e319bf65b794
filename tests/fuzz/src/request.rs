//! Requests as text: the target in the first line, then lines of `name: value`.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, request::Parts};

/// `None` if HTTP does not allow the request.
pub(super) fn read<'t>(target: &str, lines: impl Iterator<Item = &'t str>) -> Option<Parts> {
    let mut headers = HeaderMap::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).ok()?,
            HeaderValue::from_bytes(value.trim().as_bytes()).ok()?,
        );
    }
    let request = Request::builder().method(Method::GET).uri(target);
    let (mut parts, ()) = request.body(()).ok()?.into_parts();
    parts.headers = headers;
    Some(parts)
}
