//! What was granted, as it is kept between the requests of a login.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    capability::Rules,
    claims::{ClaimsRequest, Identity},
};

/// How long a code may be redeemed, in seconds.
pub const CODE_LIFETIME: i64 = 60;

/// How long a refresh token lives, in seconds, as in tsidp: 30 days, and anew with each use.
pub const REFRESH_LIFETIME: i64 = 30 * 24 * 3600;

/// The grant of one login, or of a program that acts for itself.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GrantDetails {
    pub identity: Identity,
    pub scopes: Vec<String>,
    /// Not all that were asked for, or more than the client may know of: the token's answer names
    /// the scopes (RFC 6749, section 3.3).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub scopes_narrowed: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    pub redirect_uri: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// Of PKCE, always S256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenge: Option<String>,
    /// When the person last confirmed who they are, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_time: Option<i64>,
    /// How, where the request asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acr: Option<String>,
    #[serde(default)]
    pub claims: ClaimsRequest,
    /// The names by which policy knows a program that acts for itself; empty for a person.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub program: Vec<String>,
}

impl GrantDetails {
    /// Those of the resources that policy gives to whoever has the grant.
    pub fn allowed(&self, rules: &Rules, resources: &[String]) -> Vec<String> {
        if self.program.is_empty() {
            rules.allowed(&self.identity.login, resources)
        } else {
            rules.allowed_to_program(&self.program, resources)
        }
    }
}

/// One access token of a grant.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct AccessDetails {
    pub scopes: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Of the token itself if it is a JWT, or else of the ID token that came with it; a random
    /// token without one has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its audiences are the resources alone: it came of a token exchange, or belongs to a machine
    /// that is no client.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exchanged: bool,
    /// The audiences that it tells, if it is a JWT.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub told_audiences: Vec<String>,
    /// On whose behalf (RFC 8693, section 4.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act: Option<Value>,
}
