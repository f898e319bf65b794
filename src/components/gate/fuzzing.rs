//! The gate's parsers of foreign input, for tests/fuzz. Not part of the crate's interface.

use std::net::IpAddr;

use ::http::{HeaderMap, HeaderName, HeaderValue, request::Parts};

use super::{
    Admitted,
    forward_auth::{Convention, Redirect},
    headers, layer,
};
use crate::policy::Target;

/// What a proxy asks about.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestedAccess {
    pub client: IpAddr,
    pub target: Target,
    /// Where a browser would be sent, for the given setting `gate.auth.redirect`.
    pub redirect: Option<HeaderValue>,
    /// Scheme, host with port, target.
    pub url: Option<(String, String, String)>,
}

/// Reads a request from a trusted proxy.
pub fn forwarded_request(
    parts: &Parts,
    client_header: Option<&HeaderName>,
    redirect: Option<&str>,
) -> Option<RequestedAccess> {
    let forwarded = Convention::of(parts.uri.path())
        .parse(parts, client_header)
        .ok()?;
    let redirect = redirect
        .and_then(Redirect::parse)
        .and_then(|redirect| redirect.for_browser(&forwarded, &parts.headers));
    Some(RequestedAccess {
        client: forwarded.client,
        target: forwarded.target,
        redirect,
        url: forwarded.url,
    })
}

/// Reads a request to the reverse proxy or the tower layer.
pub fn direct_request(parts: &Parts) -> Option<Target> {
    layer::target(parts).ok()
}

/// Changes the headers of a request as the reverse proxy does on the way to a backend.
pub fn pass_on(headers: &mut HeaderMap, admitted: &Admitted, client: IpAddr, host: &HeaderValue) {
    headers::strip_hop_by_hop(headers);
    headers::strip_identity(headers, true);
    headers::set_identity(headers, admitted, &[]);
    headers::set_forwarded(headers, client, host, "http");
}

/// Every header that tells a backend about the caller.
pub fn identity(admitted: &Admitted) -> Vec<(HeaderName, HeaderValue)> {
    headers::identity_headers(admitted, &[])
}
