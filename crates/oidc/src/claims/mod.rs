//! The claims about a person: one builder for ID tokens, UserInfo and introspection, and the list
//! for discovery. A pure function of the grant, the rules of the tailnet's policy and the time.
//!
//! Invariants
//! - `sub` has one form, `userid:<number>`, wherever it is told.
//! - A claim without a value is left out; it is never empty and never `null`, but for `addresses`,
//!   which tsidp writes that way.
//! - No grant of the tailnet's policy changes what the protocol needs: a name of [`PROTECTED`]
//!   fails the request, as in tsidp, and one of `OURS` has no effect.

mod extra;
mod mapping;
mod request;

use std::{collections::BTreeMap, net::IpAddr};

use aws_lc_rs::digest::{SHA256, SHA384, SHA512, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub use extra::ProtectedClaim;
pub use mapping::{MailDomain, Mapping, MappingRule};
pub use request::{BadClaimsRequest, ClaimsRequest, Wish};

use crate::capability::Rules;

/// tsidp's list: a grant that claims one of these fails the login.
pub const PROTECTED: [&str; 17] = [
    "sub",
    "aud",
    "exp",
    "iat",
    "iss",
    "jti",
    "nbf",
    "username",
    "email",
    "key",
    "addresses",
    "nid",
    "node",
    "tailnet",
    "tags",
    "user",
    "uid",
];

/// Claims of the protocol that tsidp leaves unprotected. What a grant says about them is ignored.
const OURS: [&str; 14] = [
    "acr",
    "act",
    "active",
    "amr",
    "at_hash",
    "auth_time",
    "azp",
    "c_hash",
    "client_id",
    "cnf",
    "events",
    "nonce",
    "scope",
    "sid",
];

/// What the builder can put into an ID token or UserInfo, tsidp's first and in its order.
pub const SUPPORTED: [&str; 26] = [
    "sub",
    "aud",
    "exp",
    "iat",
    "iss",
    "jti",
    "nbf",
    "username",
    "email",
    "key",
    "addresses",
    "nid",
    "node",
    "tailnet",
    "uid",
    "acr",
    "at_hash",
    "auth_time",
    "azp",
    "email_verified",
    "groups",
    "name",
    "nonce",
    "picture",
    "preferred_username",
    "sid",
];

/// Claims that tell something about the token, and nothing about the person.
const OF_THE_TOKEN: [&str; 6] = ["aud", "exp", "iat", "iss", "jti", "nbf"];

/// The scope, and its claim.
const GROUPS: &str = "groups";

/// The claims of the scope `email`.
const EMAIL: [&str; 2] = ["email", "email_verified"];

/// How long an ID token and an access token live, in seconds, as in tsidp.
pub const LIFETIME: i64 = 300;

/// Which claims stand where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    /// The ID token tells the device, mail and name; UserInfo does not ask for scopes.
    #[default]
    Tsidp,
    /// OpenID Connect Core, section 5.4: claims of a scope are in UserInfo, and an ID token has
    /// those that the `claims` parameter asks for.
    Standard,
}

/// Who logged in, and from which device: what is kept with a grant.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Identity {
    pub user_id: i64,
    /// The login as the tailnet knows it.
    pub login: String,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub picture: String,
    pub device: Device,
    /// The values of the capability, as the tailnet's policy gave them at the time.
    #[serde(default)]
    pub grants: Vec<Value>,
    /// The groups that the server's file and the tailnet's policy file have the person in; `None`
    /// if nobody could say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
}

/// The node from which the person logged in.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Device {
    /// Stable node id.
    pub id: String,
    /// MagicDNS name without the final dot.
    pub name: String,
    /// The number beside the stable id.
    pub number: i64,
    pub key: String,
    pub addresses: Vec<IpAddr>,
}

impl Identity {
    pub fn subject(&self) -> String {
        format!("userid:{}", self.user_id)
    }
}

/// What was granted, as far as claims depend on it.
#[derive(Debug, Clone, Copy)]
pub struct Granted<'a> {
    pub client_id: &'a str,
    pub identity: &'a Identity,
    pub scopes: &'a [String],
    /// The audiences of the access token beside the client.
    pub resources: &'a [String],
    pub wishes: &'a ClaimsRequest,
}

impl Granted<'_> {
    /// Whether it depends on groups of which nobody could say whether the person is in them.
    pub fn lacks_groups(&self) -> bool {
        let asked = [&self.wishes.id_token, &self.wishes.userinfo];
        let wished = asked.iter().any(|wishes| wishes.contains_key(GROUPS));
        self.identity.groups.is_none() && (wished || self.has(GROUPS))
    }

    fn has(&self, scope: &str) -> bool {
        self.scopes.iter().any(|one| one == scope)
    }
}

/// The provider, as claims tell it.
#[derive(Debug, Clone, Copy)]
pub struct Provider<'a> {
    pub issuer: &'a str,
    /// The node's full name, which stands behind logins that are no mail addresses.
    pub host: &'a str,
    pub style: Style,
    pub mapping: &'a Mapping,
}

/// What an ID token has beside the person.
#[derive(Debug, Clone, Copy)]
pub struct IdToken<'a> {
    pub now: i64,
    pub id: &'a str,
    pub nonce: Option<&'a str>,
    pub auth_time: Option<i64>,
    /// How the person was authenticated.
    pub acr: Option<&'a str>,
    /// The browser session of the login, which a logout names.
    pub session: Option<&'a str>,
    /// The access token that comes with it, and the algorithm of the signature.
    pub access_token: Option<(&'a str, &'a str)>,
}

/// What introspection tells of an access token beside the person.
#[derive(Debug, Clone, Copy)]
pub struct Introspected<'a> {
    pub issued_at: i64,
    pub expires_at: i64,
    /// The id of the ID token that came with it.
    pub id: Option<&'a str>,
    /// It came of a token exchange: its audiences are the resources alone.
    pub exchanged: bool,
    /// On whose behalf (RFC 8693, section 4.1).
    pub act: Option<&'a Value>,
}

impl Provider<'_> {
    pub fn id_token(
        &self,
        granted: Granted<'_>,
        rules: &Rules,
        token: IdToken<'_>,
    ) -> Result<Map<String, Value>, ProtectedClaim> {
        let mut claims = Map::new();
        let person = self.person(granted.identity);
        let has = |scope: &str| granted.has(scope);
        if self.style == Style::Tsidp {
            claims.extend(device(granted.identity));
            let scoped: [(&str, &[&str]); 2] = [
                ("email", &EMAIL),
                ("profile", &["preferred_username", "picture"]),
            ];
            for (scope, names) in scoped {
                if has(scope) {
                    copy(&mut claims, &person, names);
                }
            }
        }
        self.add_wished(&mut claims, &person, granted, &granted.wishes.id_token);
        extra::add(&mut claims, rules.iter())?;
        add_groups(&mut claims, granted, rules, &granted.wishes.id_token);
        let audiences = audiences(granted);
        if let [_, _, ..] = audiences.as_slice() {
            claims.insert("azp".into(), granted.client_id.into());
        }
        claims.insert("aud".into(), one_or_list(audiences));
        claims.insert("exp".into(), token.now.saturating_add(LIFETIME).into());
        claims.insert("iat".into(), token.now.into());
        claims.insert("iss".into(), self.issuer.into());
        claims.insert("jti".into(), token.id.into());
        claims.insert("nbf".into(), token.now.saturating_sub(LIFETIME).into());
        claims.insert("sub".into(), granted.identity.subject().into());
        if let Some(nonce) = token.nonce {
            claims.insert("nonce".into(), nonce.into());
        }
        if let Some(time) = token.auth_time {
            claims.insert("auth_time".into(), time.into());
        }
        if let Some(acr) = token.acr {
            claims.insert("acr".into(), acr.into());
        }
        if let Some(session) = token.session {
            claims.insert("sid".into(), session.into());
        }
        if let Some(hash) = token
            .access_token
            .and_then(|(token, alg)| half_hash(token, alg))
        {
            claims.insert("at_hash".into(), hash.into());
        }
        Ok(claims)
    }

    pub fn userinfo(
        &self,
        granted: Granted<'_>,
        rules: &Rules,
    ) -> Result<Map<String, Value>, ProtectedClaim> {
        let person = self.person(granted.identity);
        let has = |scope: &str| granted.has(scope);
        let mut claims = Map::new();
        match self.style {
            Style::Tsidp => copy(
                &mut claims,
                &person,
                &["name", "email", "email_verified", "picture", "username"],
            ),
            Style::Standard => {
                if has("email") {
                    copy(&mut claims, &person, &EMAIL);
                }
                if has("profile") {
                    let names = ["name", "picture", "preferred_username"];
                    copy(&mut claims, &person, &names);
                }
            }
        }
        self.add_wished(&mut claims, &person, granted, &granted.wishes.userinfo);
        extra::add(
            &mut claims,
            rules.iter().filter(|rule| rule.include_in_user_info),
        )?;
        add_groups(&mut claims, granted, rules, &granted.wishes.userinfo);
        // A rule that stays out of UserInfo locks nobody out of it.
        claims.insert("sub".into(), granted.identity.subject().into());
        Ok(claims)
    }

    /// What the ID token and UserInfo tell about the person, for a page that asks the person first.
    pub fn told(
        &self,
        granted: Granted<'_>,
        rules: &Rules,
    ) -> Result<Map<String, Value>, ProtectedClaim> {
        let token = IdToken {
            now: 0,
            id: "",
            nonce: None,
            auth_time: None,
            acr: None,
            session: None,
            access_token: None,
        };
        let mut told = self.id_token(granted, rules, token)?;
        told.extend(self.userinfo(granted, rules)?);
        told.retain(|name, _| {
            let name = name.as_str();
            !OF_THE_TOKEN.contains(&name) && !OURS.contains(&name)
        });
        Ok(told)
    }

    /// The claims of an active access token (RFC 7662).
    pub fn introspection(
        &self,
        granted: Granted<'_>,
        rules: &Rules,
        token: Introspected<'_>,
    ) -> Map<String, Value> {
        let person = self.person(granted.identity);
        let has = |scope: &str| granted.has(scope);
        let mut claims = Map::new();
        if has("profile") {
            copy(&mut claims, &person, &["preferred_username", "picture"]);
        }
        if has("email") {
            copy(&mut claims, &person, &EMAIL);
        }
        add_groups(&mut claims, granted, rules, &BTreeMap::new());
        let audiences = if token.exchanged {
            granted.resources.to_vec()
        } else {
            audiences(granted)
        };
        claims.insert("active".into(), true.into());
        claims.insert("aud".into(), audiences.into());
        claims.insert("client_id".into(), granted.client_id.into());
        claims.insert("iss".into(), self.issuer.into());
        claims.insert("scope".into(), granted.scopes.join(" ").into());
        claims.insert("sub".into(), granted.identity.subject().into());
        claims.insert("token_type".into(), "Bearer".into());
        claims.insert("username".into(), granted.identity.login.as_str().into());
        claims.insert("exp".into(), token.expires_at.into());
        claims.insert("iat".into(), token.issued_at.into());
        let starts = token.issued_at.saturating_sub(LIFETIME);
        claims.insert("nbf".into(), starts.into());
        if let Some(id) = token.id {
            claims.insert("jti".into(), id.into());
        }
        if let Some(act) = token.act {
            claims.insert("act".into(), act.clone());
        }
        claims
    }

    /// Everything that is known of the person.
    fn person(&self, identity: &Identity) -> Map<String, Value> {
        let mut claims = Map::new();
        let mut put = |name: &str, value: &str| {
            if !value.is_empty() {
                claims.insert(name.to_owned(), value.into());
            }
        };
        put("name", &identity.name);
        put("picture", &identity.picture);
        if let Some(name) = self.mapping.user_name(&identity.login, self.host) {
            put("username", &name);
            put("preferred_username", &name);
        }
        if let Some(mail) = self.mapping.mail(&identity.login, self.host) {
            put("email", &mail.address);
            // An application of tsidp may refuse `false`, and has never seen it.
            let told = |verified: &bool| *verified || self.style == Style::Standard;
            if let Some(verified) = mail.verified.filter(told) {
                claims.insert("email_verified".into(), verified.into());
            }
        }
        claims
    }

    /// What the `claims` parameter asks for and the person's scopes do not keep away: whoever asks
    /// by this parameter needs no scope (OpenID Connect Core, section 5.5).
    fn add_wished(
        &self,
        claims: &mut Map<String, Value>,
        person: &Map<String, Value>,
        granted: Granted<'_>,
        wishes: &BTreeMap<String, Wish>,
    ) {
        let device = device(granted.identity);
        for name in wishes.keys() {
            let value = person.get(name).or_else(|| device.get(name));
            if let Some(value) = value {
                claims.insert(name.clone(), value.clone());
            }
        }
    }
}

/// The claim `groups`, where the scope of this name or the `claims` parameter asks for it: groups
/// of the grants, of the server's file and of the tailnet's policy, behind those of `extraClaims`.
fn add_groups(
    claims: &mut Map<String, Value>,
    granted: Granted<'_>,
    rules: &Rules,
    wishes: &BTreeMap<String, Wish>,
) {
    if !granted.has(GROUPS) && !wishes.contains_key(GROUPS) {
        return;
    }
    let mut groups = match claims.remove(GROUPS) {
        Some(Value::Array(extra)) => extra,
        extra => extra.into_iter().collect(),
    };
    let of_grants = rules.iter().flat_map(|rule| &rule.groups);
    for name in of_grants.chain(granted.identity.groups.iter().flatten()) {
        let name = Value::from(name.as_str());
        if !groups.contains(&name) {
            groups.push(name);
        }
    }
    if !groups.is_empty() {
        claims.insert(GROUPS.into(), groups.into());
    }
}

/// The claims about the device, as tsidp writes them.
fn device(identity: &Identity) -> Map<String, Value> {
    let device = &identity.device;
    let addresses: Vec<String> = device
        .addresses
        .iter()
        .map(|address| match address {
            IpAddr::V4(_) => format!("{address}/32"),
            IpAddr::V6(_) => format!("{address}/128"),
        })
        .collect();
    let mut claims = Map::new();
    claims.insert("key".into(), device.key.as_str().into());
    let addresses = if addresses.is_empty() {
        Value::Null
    } else {
        addresses.into()
    };
    claims.insert("addresses".into(), addresses);
    claims.insert("nid".into(), device.number.into());
    if !device.name.is_empty() {
        // Names are told with their final dot.
        let full = device.name.split_once('.').map(|(_, rest)| rest);
        let dot = if full.is_some() { "." } else { "" };
        claims.insert("node".into(), format!("{}{dot}", device.name).into());
        if let Some(tailnet) = full.filter(|rest| !rest.is_empty()) {
            claims.insert("tailnet".into(), format!("{tailnet}.").into());
        }
    }
    if identity.user_id != 0 {
        claims.insert("uid".into(), identity.user_id.into());
    }
    claims
}

fn copy(to: &mut Map<String, Value>, from: &Map<String, Value>, names: &[&str]) {
    for name in names {
        if let Some(value) = from.get(*name) {
            to.insert((*name).to_owned(), value.clone());
        }
    }
}

fn audiences(granted: Granted<'_>) -> Vec<String> {
    let client = std::iter::once(granted.client_id.to_owned());
    client.chain(granted.resources.iter().cloned()).collect()
}

/// One value is a string, as tsidp writes it today.
fn one_or_list(values: Vec<String>) -> Value {
    match <[String; 1]>::try_from(values) {
        Ok([one]) => one.into(),
        Err(several) => json!(several),
    }
}

/// `at_hash` (OpenID Connect Core, section 3.1.3.6): the left half of the hash that the algorithm
/// of the signature uses. `None` for an algorithm that fixes none in a way that clients agree on.
fn half_hash(token: &str, algorithm: &str) -> Option<String> {
    let hash = match algorithm {
        "RS256" | "ES256" => &SHA256,
        "ES384" => &SHA384,
        "ES512" => &SHA512,
        _ => return None,
    };
    let hash = digest(hash, token.as_bytes());
    let half = hash.as_ref().get(..hash.as_ref().len() / 2)?;
    Some(URL_SAFE_NO_PAD.encode(half))
}

#[cfg(test)]
mod tests;
