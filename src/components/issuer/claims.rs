//! The claims of a token: those of the contract in their order, then additional ones. A pure
//! function of caller, settings and time.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::{config::TokenSettings, identity::Caller};

/// The claims of an issued token (RFC 7519). `iss` to `display_name` are those of the Go Tailbone;
/// the others are additions.
#[derive(Debug, Serialize)]
pub struct IssuerClaims<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    iss: &'a str,
    exp: i64,
    nbf: i64,
    iat: i64,
    user: &'a str,
    display_name: &'a str,
    /// `user-<id>` or `node-<stable id>`. It stays the same when a login is renamed, and a node can
    /// never be taken for a user.
    sub: String,
    jti: String,
    /// Machines only.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    tags: &'a [String],
    /// Machines only: MagicDNS name.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
}

impl<'a> IssuerClaims<'a> {
    /// `None` for a Funnel caller, which has no identity.
    pub fn new(
        caller: &'a Caller,
        settings: &'a TokenSettings,
        now: Timestamp,
        id: Uuid,
    ) -> Option<Self> {
        let iat = now.as_second();
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let (user, display_name, sub, tags, node) = match caller {
            Caller::Funnel(_) => return None,
            Caller::Machine(m) => (
                &m.login,
                &m.display_name,
                format!("node-{}", m.id),
                m.tags.as_slice(),
                Some(m.name.as_str()),
            ),
            Caller::User(u) => (
                &u.login,
                &u.display_name,
                format!("user-{}", u.id),
                &[][..],
                None,
            ),
        };
        Some(Self {
            iss: &settings.issuer,
            exp: iat.saturating_add(seconds(settings.expiry)),
            nbf: iat.saturating_sub(seconds(settings.skew)),
            iat,
            user,
            display_name,
            sub,
            jti: id.simple().to_string(),
            tags,
            node,
        })
    }

    pub fn jti(&self) -> &str {
        &self.jti
    }

    pub fn subject(&self) -> &str {
        &self.sub
    }
}
