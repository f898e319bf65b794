//! Policies: which tokens are exchanged for which scopes. [`decide`] is a pure function; [`file`]
//! reads files.
//!
//! This is a rule language of its own, beside `crate::policy`: it has the format of TailSTS's files
//! and compares claims of outside tokens instead of tailnet callers.
//!
//! Invariants
//! - What no policy allows is refused. One policy must allow the whole request: the scopes of two
//!   policies are never combined.
//! - Every policy for the token's issuer is evaluated; if several allow the request, the narrowest
//!   one is used.
//! - Claims are only evaluated after the signature was verified. An earlier refusal reveals nothing
//!   about the policy.
//! - Time is an argument.

mod file;
#[doc(hidden)]
pub mod fuzzing;
mod glob;

use std::{fmt, time::Duration};

use jiff::Timestamp;
use jsonwebtoken::Algorithm;
use serde_json::Value;

pub(super) use file::is_loopback;
pub use file::{LoadError, Loaded, Mistake, load};

use super::verify::{Claims, Signature, Token, When};
use crate::{config::Credentials, jwks::fetch::Source};

/// One policy file.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The file's name.
    pub name: String,
    /// `issuer`, compared byte by byte.
    pub issuers: Vec<String>,
    /// `algorithm` or `algorithms`
    pub algorithms: Vec<Algorithm>,
    /// `subject`: if absent any subject, if empty only a missing or empty one.
    pub subject: Option<String>,
    /// `audience`
    pub audience: Audience,
    /// `jwks_url`, or discovery if absent.
    pub source: Source,
    /// `allowed_scopes`
    pub scopes: Vec<String>,
    /// `[claims]`
    pub conditions: Vec<Condition>,
    /// `max_token_age`, counted from the token's `iat`.
    pub max_age: Option<Duration>,
    /// `require_exp`
    pub require_exp: bool,
    /// `tags` that nodes and keys made with the access token may have.
    pub tags: Vec<String>,
    /// `tags = "any"`: all tags of the OAuth client.
    pub any_tags: bool,
    /// `client_id` and `client_secret_file`, if they differ from the settings.
    pub credentials: Option<Credentials>,
}

/// Whether an access token with this scope can create or change things with tags. If no tags are
/// requested, Tailscale grants all tags of the OAuth client, so the holder of such a token could
/// become a machine with any of them.
fn gives_tags(scope: &str) -> bool {
    matches!(scope, "all" | "auth_keys" | "devices" | "devices:core")
}

/// The audience that a token must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    Any,
    OneOf(Vec<String>),
}

/// The values that a claim may have. A claim that is a list matches with any of its elements.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// A name, or a JSON pointer if it begins with a slash.
    pub claim: String,
    pub wanted: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Pattern {
    Exact(Value),
    /// `*` matches any characters, `?` one, and `\` makes the next one literal.
    Glob(String),
}

/// A caller's request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub scopes: &'a [String],
    /// If empty, all tags of the policy.
    pub tags: &'a [String],
}

/// A token, with the result of its signature check for each key source in its issuer's policies.
#[derive(Debug)]
pub struct Examined<'a> {
    pub token: &'a Token,
    pub signatures: Vec<(Source, Signature)>,
}

impl Examined<'_> {
    fn signature(&self, source: &Source) -> Signature {
        self.signatures
            .iter()
            .find(|(examined, _)| examined == source)
            .map_or(Signature::NoKeys, |(_, signature)| *signature)
    }
}

/// The decision, and the result for each policy of the issuer.
#[derive(Debug)]
pub struct Decision<'p> {
    pub outcome: Outcome<'p>,
    pub tried: Vec<(&'p Policy, Result<(), Reason>)>,
}

#[derive(Debug)]
pub enum Outcome<'p> {
    Allowed(&'p Policy),
    /// Has the policy for which the token passed most checks, if there is a policy for its issuer.
    Refused(Option<&'p Policy>, Reason),
}

/// Why a policy refuses a request, in the order of the checks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Reason {
    #[error("no policy has the token's issuer")]
    NoPolicy,
    #[error("the token's algorithm is not allowed")]
    Algorithm,
    #[error("the issuer's keys could not be fetched")]
    NoKeys,
    #[error("the issuer publishes no key that fits the token")]
    UnknownKey,
    #[error("the signature is wrong")]
    Signature,
    #[error("the claim {0} has the wrong type")]
    Malformed(&'static str),
    #[error("the token never expires")]
    NoExpiry,
    #[error("the token does not say when it was issued")]
    NoIssueTime,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYetValid,
    #[error("the token is older than the policy allows")]
    TooOld,
    #[error("the token was made for somebody else (aud)")]
    Audience,
    #[error("the subject differs")]
    Subject,
    #[error("the claim {0} does not meet the policy")]
    Claim(String),
    #[error("nothing was asked for")]
    NoScope,
    #[error("the scope {0} is not allowed")]
    Scope(String),
    #[error("the tag {0} is not allowed")]
    Tag(String),
    #[error("the policy names no tags for the scope {0}")]
    Untagged(String),
}

impl Reason {
    /// A stable code for programs, logs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoPolicy => "no_policy",
            Self::Algorithm => "algorithm",
            Self::NoKeys => "no_keys",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Malformed(_) => "malformed_claim",
            Self::NoExpiry => "no_expiry",
            Self::NoIssueTime => "no_issue_time",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::TooOld => "too_old",
            Self::Audience => "audience",
            Self::Subject => "subject",
            Self::Claim(_) => "claim",
            Self::NoScope => "no_scope",
            Self::Scope(_) => "scope",
            Self::Tag(_) => "tag",
            Self::Untagged(_) => "untagged",
        }
    }

    /// Whether the signature had not been verified yet, so that the request may come from anybody.
    pub fn is_before_trust(&self) -> bool {
        self.stage() <= Self::Signature.stage()
    }

    /// The position of the failed check in the order of checks.
    fn stage(&self) -> u8 {
        match self {
            Self::NoPolicy => 0,
            Self::Algorithm => 1,
            Self::NoKeys => 2,
            Self::UnknownKey => 3,
            Self::Signature => 4,
            Self::Malformed(_) => 5,
            Self::NoExpiry | Self::NoIssueTime => 6,
            Self::Expired | Self::NotYetValid | Self::TooOld => 7,
            Self::Audience => 8,
            Self::Subject => 9,
            Self::Claim(_) => 10,
            Self::NoScope | Self::Scope(_) => 11,
            Self::Tag(_) | Self::Untagged(_) => 12,
        }
    }
}

/// Decides about a request. `leeway` is the tolerance for the issuer's clock.
pub fn decide<'p>(
    policies: &'p [Policy],
    examined: &Examined<'_>,
    request: Request<'_>,
    now: Timestamp,
    leeway: Duration,
) -> Decision<'p> {
    let issuer = examined.token.claims.text("iss").unwrap_or_default();
    let tried: Vec<_> = of_issuer(policies, issuer)
        .map(|policy| (policy, policy.judge(examined, request, now, leeway)))
        .collect();
    let narrowest = tried
        .iter()
        .filter(|(_, verdict)| verdict.is_ok())
        .min_by_key(|(policy, _)| policy.width());
    let outcome = match narrowest {
        Some((policy, _)) => Outcome::Allowed(policy),
        None => furthest(&tried),
    };
    Decision { outcome, tried }
}

/// The policies for an issuer. A token without an issuer has none.
pub fn of_issuer<'p>(policies: &'p [Policy], issuer: &str) -> impl Iterator<Item = &'p Policy> {
    policies
        .iter()
        .filter(move |policy| policy.issuers.iter().any(|known| known == issuer))
}

fn furthest<'p>(tried: &[(&'p Policy, Result<(), Reason>)]) -> Outcome<'p> {
    let mut best: Option<(&'p Policy, &Reason)> = None;
    for (policy, verdict) in tried {
        let Err(reason) = verdict else { continue };
        // Only a later stage replaces the reason, so that the first file wins among equals.
        if best.is_none_or(|(_, known)| reason.stage() > known.stage()) {
            best = Some((policy, reason));
        }
    }
    match best {
        Some((policy, reason)) => Outcome::Refused(Some(policy), reason.clone()),
        None => Outcome::Refused(None, Reason::NoPolicy),
    }
}

impl Policy {
    /// Smaller means narrower.
    fn width(&self) -> (usize, usize) {
        (self.scopes.len(), self.tags.len())
    }

    fn judge(
        &self,
        examined: &Examined<'_>,
        request: Request<'_>,
        now: Timestamp,
        leeway: Duration,
    ) -> Result<(), Reason> {
        let token = examined.token;
        if !token
            .algorithm
            .is_some_and(|algorithm| self.algorithms.contains(&algorithm))
        {
            return Err(Reason::Algorithm);
        }
        match examined.signature(&self.source) {
            Signature::Good => {}
            Signature::Bad => return Err(Reason::Signature),
            Signature::NoKeys => return Err(Reason::NoKeys),
            Signature::Unknown => return Err(Reason::UnknownKey),
        }
        self.judge_times(&token.claims, now, leeway)?;
        self.judge_claims(&token.claims)?;
        self.judge_request(request)
    }

    fn judge_times(&self, claims: &Claims, now: Timestamp, leeway: Duration) -> Result<(), Reason> {
        // The error is far below a microsecond for centuries, and the claims are floating-point
        // numbers too.
        let now = now.as_nanosecond() as f64 / 1e9;
        let leeway = leeway.as_secs_f64();
        match claims.when("exp") {
            When::Odd => return Err(Reason::Malformed("exp")),
            When::Absent if self.require_exp => return Err(Reason::NoExpiry),
            When::At(end) if now >= end + leeway => return Err(Reason::Expired),
            When::Absent | When::At(_) => {}
        }
        match claims.when("nbf") {
            When::Odd => return Err(Reason::Malformed("nbf")),
            When::At(start) if now < start - leeway => return Err(Reason::NotYetValid),
            When::Absent | When::At(_) => {}
        }
        match (self.max_age, claims.when("iat")) {
            (_, When::Odd) => return Err(Reason::Malformed("iat")),
            (None, _) => {}
            (Some(_), When::Absent) => return Err(Reason::NoIssueTime),
            (Some(_), When::At(issued)) if now < issued - leeway => {
                return Err(Reason::NotYetValid);
            }
            (Some(most), When::At(issued)) => {
                if now - issued > most.as_secs_f64() + leeway {
                    return Err(Reason::TooOld);
                }
            }
        }
        Ok(())
    }

    fn judge_claims(&self, claims: &Claims) -> Result<(), Reason> {
        let audiences = claims.audiences().ok_or(Reason::Malformed("aud"))?;
        let subject = claims.text("sub").ok_or(Reason::Malformed("sub"))?;
        if let Audience::OneOf(ours) = &self.audience
            && !ours.iter().any(|our| audiences.contains(&our.as_str()))
        {
            return Err(Reason::Audience);
        }
        if self
            .subject
            .as_ref()
            .is_some_and(|wanted| wanted != subject)
        {
            return Err(Reason::Subject);
        }
        match self.conditions.iter().find(|one| !one.holds(claims)) {
            Some(broken) => Err(Reason::Claim(broken.claim.clone())),
            None => Ok(()),
        }
    }

    fn judge_request(&self, request: Request<'_>) -> Result<(), Reason> {
        if request.scopes.is_empty() {
            return Err(Reason::NoScope);
        }
        if let Some(scope) = (request.scopes.iter()).find(|scope| !self.scopes.contains(scope)) {
            return Err(Reason::Scope(scope.clone()));
        }
        if self.any_tags {
            return Ok(());
        }
        if let Some(tag) = (request.tags.iter()).find(|tag| !self.tags.contains(tag)) {
            return Err(Reason::Tag(tag.clone()));
        }
        match request.scopes.iter().find(|scope| gives_tags(scope)) {
            Some(scope) if self.tags.is_empty() => Err(Reason::Untagged(scope.clone())),
            _ => Ok(()),
        }
    }

    /// The tags for a granted request.
    pub fn tags_for(&self, request: Request<'_>) -> Vec<String> {
        if request.tags.is_empty() {
            self.tags.clone()
        } else {
            request.tags.to_vec()
        }
    }
}

impl Condition {
    fn holds(&self, claims: &Claims) -> bool {
        match claims.at(&self.claim) {
            None => false,
            Some(Value::Array(list)) => list.iter().any(|value| self.takes(value)),
            Some(value) => self.takes(value),
        }
    }

    fn takes(&self, value: &Value) -> bool {
        self.wanted.iter().any(|pattern| match pattern {
            Pattern::Exact(wanted) => wanted == value,
            Pattern::Glob(pattern) => value
                .as_str()
                .is_some_and(|text| glob::matches(pattern, text)),
        })
    }
}

/// Explains the decision: one line for the outcome, and one for each policy.
impl fmt::Display for Decision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Allowed(policy) => write!(f, "allowed by {}", policy.name)?,
            Outcome::Refused(Some(policy), reason) => {
                write!(
                    f,
                    "refused by {}: {reason} ({})",
                    policy.name,
                    reason.code()
                )?;
            }
            Outcome::Refused(None, reason) => write!(f, "refused: {reason} ({})", reason.code())?,
        }
        for (policy, verdict) in &self.tried {
            match verdict {
                Ok(()) => write!(f, "\n  {}: allows", policy.name)?,
                Err(reason) => write!(f, "\n  {}: {reason} ({})", policy.name, reason.code())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
