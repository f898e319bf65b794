//! The headers that tell a backend who the caller is, in the two common conventions, and the
//! removal of such headers that come from outside.
//!
//! | Header | Convention |
//! |---|---|
//! | `Tailscale-User`, `-Login`, `-Name`, `-Profile-Picture`, `-Tailnet` | nginx-auth |
//! | `Tailscale-User-Login`, `-User-Name`, `-User-Profile-Pic` | `tailscale serve` |
//! | `Tailscale-Headers-Info`, `-App-Capabilities`, `-Funnel-Request` | `tailscale serve` |
//! | `Tailscale-Node-Id`, `-Node-Name`, `-Tags` | ours: for machines, which have no user |
//! | `Tailbone-Token` | ours: a JWT with a short life, if asked for |

use std::{fmt::Write as _, net::IpAddr};

use ::http::{HeaderMap, HeaderName, HeaderValue, header};
use serde_json::{Map, Value};

use super::Admitted;
use crate::identity::Caller;

pub(super) const TOKEN: HeaderName = HeaderName::from_static("tailbone-token");
pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(super) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

const USER: HeaderName = HeaderName::from_static("tailscale-user");
const LOGIN: HeaderName = HeaderName::from_static("tailscale-login");
const NAME: HeaderName = HeaderName::from_static("tailscale-name");
const PICTURE: HeaderName = HeaderName::from_static("tailscale-profile-picture");
const TAILNET: HeaderName = HeaderName::from_static("tailscale-tailnet");
const USER_LOGIN: HeaderName = HeaderName::from_static("tailscale-user-login");
const USER_NAME: HeaderName = HeaderName::from_static("tailscale-user-name");
const USER_PICTURE: HeaderName = HeaderName::from_static("tailscale-user-profile-pic");
const INFO: HeaderName = HeaderName::from_static("tailscale-headers-info");
const CAPABILITIES: HeaderName = HeaderName::from_static("tailscale-app-capabilities");
const FUNNEL: HeaderName = HeaderName::from_static("tailscale-funnel-request");
const NODE_ID: HeaderName = HeaderName::from_static("tailscale-node-id");
const NODE_NAME: HeaderName = HeaderName::from_static("tailscale-node-name");
const TAGS: HeaderName = HeaderName::from_static("tailscale-tags");

/// The page with which `tailscale serve` explains its headers.
const INFO_TEXT: &str = "https://tailscale.com/s/serve-headers";

/// All identity headers; those without content have an empty value. An answer to a proxy must set
/// all of them: if one were absent, a proxy that copies what it finds would pass on the client's
/// own.
pub(super) fn identity_headers(
    admitted: &Admitted,
    capabilities: &[String],
) -> Vec<(HeaderName, HeaderValue)> {
    let IdentityValues {
        user,
        login,
        name,
        picture,
        tailnet,
        user_login,
        user_name,
        user_picture,
        info,
        capabilities,
        funnel,
        node_id,
        node_name,
        tags,
    } = IdentityValues::of(admitted, capabilities);
    [
        (USER, user),
        (LOGIN, login),
        (NAME, name),
        (PICTURE, picture),
        (TAILNET, tailnet),
        (USER_LOGIN, user_login),
        (USER_NAME, user_name),
        (USER_PICTURE, user_picture),
        (INFO, info),
        (CAPABILITIES, capabilities),
        (FUNNEL, funnel),
        (NODE_ID, node_id),
        (NODE_NAME, node_name),
        (TAGS, tags),
        // Whoever makes a token for the backend puts it here.
        (TOKEN, EMPTY),
    ]
    .into()
}

const EMPTY: HeaderValue = HeaderValue::from_static("");

/// The value of each identity header. A field that is not sent is an error of the compiler.
struct IdentityValues {
    user: HeaderValue,
    login: HeaderValue,
    name: HeaderValue,
    picture: HeaderValue,
    tailnet: HeaderValue,
    user_login: HeaderValue,
    user_name: HeaderValue,
    user_picture: HeaderValue,
    info: HeaderValue,
    capabilities: HeaderValue,
    funnel: HeaderValue,
    node_id: HeaderValue,
    node_name: HeaderValue,
    tags: HeaderValue,
}

impl IdentityValues {
    const NONE: Self = Self {
        user: EMPTY,
        login: EMPTY,
        name: EMPTY,
        picture: EMPTY,
        tailnet: EMPTY,
        user_login: EMPTY,
        user_name: EMPTY,
        user_picture: EMPTY,
        info: EMPTY,
        capabilities: EMPTY,
        funnel: EMPTY,
        node_id: EMPTY,
        node_name: EMPTY,
        tags: EMPTY,
    };

    fn of(admitted: &Admitted, capabilities: &[String]) -> Self {
        let visitor = match admitted {
            Admitted::Anonymous { funnel: false } => return Self::NONE,
            Admitted::Anonymous { funnel: true } => {
                return Self {
                    funnel: HeaderValue::from_static("?1"),
                    ..Self::NONE
                };
            }
            Admitted::Identified(visitor) => visitor,
        };
        let grants = forwarded_grants(visitor.caller_any_tailnet(), capabilities);
        let node = Self {
            tailnet: utf8_value(visitor.tailnet()),
            node_id: utf8_value(visitor.node_id()),
            node_name: utf8_value(visitor.node_name()),
            capabilities: if grants.is_empty() {
                EMPTY
            } else {
                rfc2047_value(&Value::Object(grants).to_string())
            },
            ..Self::NONE
        };
        match visitor.caller_any_tailnet() {
            Caller::User(user) => {
                let local_part = user.login.split('@').next().unwrap_or_default();
                Self {
                    user: utf8_value(&user.login),
                    login: utf8_value(local_part),
                    name: utf8_value(&user.display_name),
                    picture: utf8_value(visitor.picture()),
                    user_login: rfc2047_value(&user.login),
                    user_name: rfc2047_value(&user.display_name),
                    user_picture: utf8_value(visitor.picture()),
                    info: HeaderValue::from_static(INFO_TEXT),
                    ..node
                }
            }
            Caller::Machine(machine) => Self {
                tags: utf8_value(&machine.tags.join(",")),
                ..node
            },
            Caller::Funnel(_) => node,
        }
    }
}

/// Adds the identity headers that have content to a request for a backend. All such headers from
/// outside must have been removed before.
pub(super) fn set_identity(headers: &mut HeaderMap, admitted: &Admitted, capabilities: &[String]) {
    for (name, value) in identity_headers(admitted, capabilities) {
        if !value.is_empty() {
            headers.insert(name, value);
        }
    }
}

fn forwarded_grants(caller: &Caller, capabilities: &[String]) -> Map<String, Value> {
    capabilities
        .iter()
        .filter(|name| caller.has_capability(name))
        .map(|name| (name.clone(), caller.grants(name).into()))
        .collect()
}

/// The text as raw UTF-8; empty if it is not valid in a header.
fn utf8_value(text: &str) -> HeaderValue {
    HeaderValue::from_bytes(text.as_bytes()).unwrap_or(HeaderValue::from_static(""))
}

/// The text, encoded by RFC 2047 (Q encoding) if it is not plain ASCII, or if a reader might take a
/// part of it for an encoded word.
fn rfc2047_value(text: &str) -> HeaderValue {
    if text.bytes().all(|b| matches!(b, b' '..=b'~')) && !text.contains("=?") {
        return utf8_value(text);
    }
    const ENCODED_WORD_START: &str = "=?utf-8?q?";
    // An encoded word may have 75 characters, and no character of the text may be split between
    // two.
    const MAX_ENCODED_TEXT: usize = 75 - ENCODED_WORD_START.len() - 2;
    let mut words = vec![String::new()];
    for c in text.chars() {
        let mut encoded = String::new();
        match c {
            ' ' => encoded.push('_'),
            '!'..='~' if !matches!(c, '=' | '?' | '_') => encoded.push(c),
            _ => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    // Writing to a String cannot fail.
                    let _ = write!(encoded, "={byte:02X}");
                }
            }
        }
        match words.last_mut() {
            Some(word) if word.len() + encoded.len() <= MAX_ENCODED_TEXT => word.push_str(&encoded),
            _ => words.push(encoded),
        }
    }
    let words: Vec<_> = words
        .iter()
        .map(|word| format!("{ENCODED_WORD_START}{word}?="))
        .collect();
    utf8_value(&words.join(" "))
}

/// Header names (and prefixes, ending with `-`) that some backend takes for the caller's identity,
/// or for a proxy's description of the request. A client that sends one pretends to be somebody.
const IDENTITY_HEADERS: [&str; 34] = [
    "cf-connecting-ip",
    "client-ip",
    "fastly-client-ip",
    "forwarded",
    "forwarded-for",
    "proxy-user",
    "remote-addr",
    "remote-email",
    "remote-groups",
    "remote-login",
    "remote-name",
    "remote-port",
    "remote-user",
    "tailbone-",
    "tailscale-",
    "trailer",
    "true-client-ip",
    "x-auth-request-",
    "x-authenticated-",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-forwarded",
    "x-forwarded-",
    "x-goog-authenticated-user-",
    "x-original-",
    "x-proxy-user",
    "x-real-ip",
    "x-remote-",
    "x-rewrite-url",
    "x-tailscale-",
    "x-token-subject",
    "x-user",
    "x-webauth-",
    "x-ms-client-principal",
];

/// Headers by which some frameworks override the request's method.
const METHOD_OVERRIDES: [&str; 3] = [
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
];

/// Removes all headers by which a client could pass for somebody else. Names are compared as lax
/// backends do: all characters but letters and digits are equal.
pub(super) fn strip_identity(headers: &mut HeaderMap, method_overrides_too: bool) {
    let spoofed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let normalized: String = name
                .as_str()
                .chars()
                .map(|c| {
                    if c.is_ascii_alphanumeric() {
                        c.to_ascii_lowercase()
                    } else {
                        '-'
                    }
                })
                .collect();
            let normalized = normalized.trim_start_matches('-');
            let normalized = normalized.strip_prefix("http-").unwrap_or(normalized);
            IDENTITY_HEADERS.iter().any(|known| {
                normalized == *known || (known.ends_with('-') && normalized.starts_with(known))
            }) || (method_overrides_too && METHOD_OVERRIDES.contains(&normalized))
        })
        .cloned()
        .collect();
    for name in spoofed {
        headers.remove(name);
    }
}

/// Removes headers that belong to one connection (RFC 9110, section 7.6.1), and those that
/// `Connection` lists. `TE: trailers` stays, since gRPC needs it.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .collect();
    let trailers = headers
        .get_all(header::TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"));
    for name in listed {
        // If the client lists these, the body would lose its length or the request its host.
        if name != header::CONTENT_LENGTH && name != header::HOST {
            headers.remove(name);
        }
    }
    for name in [
        header::CONNECTION,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        HeaderName::from_static("http2-settings"),
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Sets the client's address, the host and the scheme of the original request, in the two
/// conventions (RFC 7239 and the older `X-Forwarded-*`).
pub(super) fn set_forwarded(
    headers: &mut HeaderMap,
    client: IpAddr,
    host: &HeaderValue,
    proto: &'static str,
) {
    let mut set = |name: HeaderName, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    };
    let client = client.to_canonical();
    set(FORWARDED_FOR, &client.to_string());
    set(HeaderName::from_static("x-real-ip"), &client.to_string());
    set(FORWARDED_PROTO, proto);
    let node = match client {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("\"[{v6}]\""),
    };
    let host_text = host.to_str().unwrap_or_default();
    set(
        header::FORWARDED,
        &format!("for={node};host=\"{host_text}\";proto={proto}"),
    );
    headers.insert(FORWARDED_HOST, host.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_looks_like_an_identity_header_is_stripped() {
        let mut headers = HeaderMap::new();
        for name in [
            "tailscale-user",
            "TAILSCALE-USER-LOGIN",
            "tailscale_user_login",
            "Tailscale.User.Login",
            "tailscale-anything",
            "http_tailscale_user",
            "_tailscale-user",
            "x-webauth-user",
            "x_webauth_user",
            "remote-user",
            "remote_user",
            "x-forwarded-for",
            "x_forwarded_for",
            "forwarded",
            "x-original-url",
            "tailbone-token",
        ] {
            let name = HeaderName::try_from(name).unwrap();
            headers.append(&name, HeaderValue::from_static("spoof"));
            headers.append(&name, HeaderValue::from_static("twice"));
        }
        for name in [
            "accept",
            "cookie",
            "authorization",
            "x-userland",
            "tailscales",
            "x-http-method-override",
        ] {
            headers.insert(
                HeaderName::from_static(name),
                HeaderValue::from_static("stays"),
            );
        }
        strip_identity(&mut headers, false);
        assert_eq!(headers.len(), 6, "{headers:?}");
        strip_identity(&mut headers, true);
        assert_eq!(headers.len(), 5, "{headers:?}");
    }

    #[test]
    fn headers_that_connection_lists_are_removed() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-One"),
            ("connection", "tailscale-user"),
            ("connection", "content-length"),
            ("content-length", "3"),
            ("x-one", "1"),
            ("tailscale-user", "x"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers.len(), 2, "{headers:?}");
        assert_eq!(headers[header::TE], "trailers");
    }

    #[test]
    fn names_beyond_ascii_are_encoded_words_of_rfc_2047() {
        assert_eq!(rfc2047_value("Alice Smith"), "Alice Smith");
        assert_eq!(rfc2047_value("Zoë =?_"), "=?utf-8?q?Zo=C3=AB_=3D=3F=5F?=");
        // The name of somebody who would like to have another one.
        assert_eq!(
            rfc2047_value("=?utf-8?q?Bob?="),
            "=?utf-8?q?=3D=3Futf-8=3Fq=3FBob=3F=3D?="
        );
        let long = rfc2047_value(&"é".repeat(30));
        let words: Vec<_> = long.to_str().unwrap().split(' ').collect();
        assert!(
            words.len() > 2 && words.iter().all(|word| word.len() <= 75),
            "{words:?}"
        );
        assert_eq!(utf8_value("a\r\nX: y"), "");
    }
}
