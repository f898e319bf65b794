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

use std::{fmt, time::Duration};

use jiff::Timestamp;
use jsonwebtoken::Algorithm;
use serde_json::Value;
use tailbone_values::glob;

pub(super) use file::is_loopback;
pub use file::{LoadedPolicies, PolicyLoadError, PolicyMistake, load};

use crate::{
    config::Credentials,
    jwks::{
        fetch::KeySource,
        verify::{ParsedToken, SignatureCheck, TimeClaim, TokenClaims},
    },
};

/// One policy file.
#[derive(Debug, Clone)]
pub struct ExchangePolicy {
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
    pub source: KeySource,
    /// `allowed_scopes`
    pub scopes: Vec<String>,
    /// `[claims]`
    pub conditions: Vec<ClaimCondition>,
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
fn grants_tags(scope: &str) -> bool {
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
pub struct ClaimCondition {
    /// A name, or a JSON pointer if it begins with a slash.
    pub claim: String,
    pub wanted: Vec<ClaimPattern>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ClaimPattern {
    Exact(Value),
    /// `*` matches any characters, `?` one, and `\` makes the next one literal.
    Glob(String),
}

/// A caller's request.
#[derive(Debug, Clone, Copy)]
pub struct RequestedAccess<'a> {
    pub scopes: &'a [String],
    /// If empty, all tags of the policy.
    pub tags: &'a [String],
}

/// A token, with the result of its signature check for each key source in its issuer's policies.
#[derive(Debug)]
pub struct CheckedToken<'a> {
    pub token: &'a ParsedToken,
    pub signatures: Vec<(KeySource, SignatureCheck)>,
}

impl CheckedToken<'_> {
    fn signature(&self, source: &KeySource) -> SignatureCheck {
        self.signatures
            .iter()
            .find(|(checked, _)| checked == source)
            .map_or(SignatureCheck::NoKeys, |(_, signature)| *signature)
    }
}

/// The decision, and the result for each policy of the issuer.
#[derive(Debug)]
pub struct PolicyDecision<'p> {
    pub outcome: PolicyOutcome<'p>,
    pub evaluated: Vec<(&'p ExchangePolicy, Result<(), RefusalReason>)>,
}

#[derive(Debug)]
pub enum PolicyOutcome<'p> {
    Allowed(&'p ExchangePolicy),
    /// Has the policy for which the token passed most checks, if there is a policy for its issuer.
    Refused(Option<&'p ExchangePolicy>, RefusalReason),
}

/// Why a policy refuses a request, in the order of the checks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum RefusalReason {
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
    #[error("the token is for another audience (aud)")]
    Audience,
    #[error("the subject differs")]
    Subject,
    #[error("the claim {0} does not meet the policy")]
    Claim(String),
    #[error("no scope was requested")]
    NoScope,
    #[error("the scope {0} is not allowed")]
    Scope(String),
    #[error("the tag {0} is not allowed")]
    Tag(String),
    #[error("the policy names no tags for the scope {0}")]
    Untagged(String),
}

impl RefusalReason {
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
    pub fn precedes_verification(&self) -> bool {
        self.check_order() <= Self::Signature.check_order()
    }

    /// The position of the failed check in the order of checks.
    fn check_order(&self) -> u8 {
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
    policies: &'p [ExchangePolicy],
    checked_token: &CheckedToken<'_>,
    request: RequestedAccess<'_>,
    now: Timestamp,
    leeway: Duration,
) -> PolicyDecision<'p> {
    let issuer = checked_token.token.claims.text("iss").unwrap_or_default();
    let evaluated: Vec<_> = policies_for_issuer(policies, issuer)
        .map(|policy| (policy, policy.check(checked_token, request, now, leeway)))
        .collect();
    let narrowest = evaluated
        .iter()
        .filter(|(_, verdict)| verdict.is_ok())
        .min_by_key(|(policy, _)| policy.breadth());
    let outcome = match narrowest {
        Some((policy, _)) => PolicyOutcome::Allowed(policy),
        None => furthest_refusal(&evaluated),
    };
    PolicyDecision { outcome, evaluated }
}

/// The policies for an issuer. A token without an issuer has none.
pub fn policies_for_issuer<'p>(
    policies: &'p [ExchangePolicy],
    issuer: &str,
) -> impl Iterator<Item = &'p ExchangePolicy> {
    policies
        .iter()
        .filter(move |policy| policy.issuers.iter().any(|accepted| accepted == issuer))
}

fn furthest_refusal<'p>(
    evaluated: &[(&'p ExchangePolicy, Result<(), RefusalReason>)],
) -> PolicyOutcome<'p> {
    let mut furthest: Option<(&'p ExchangePolicy, &RefusalReason)> = None;
    for (policy, verdict) in evaluated {
        let Err(reason) = verdict else { continue };
        // Only a later stage replaces the reason, so that the first file wins among equals.
        if furthest
            .is_none_or(|(_, furthest_reason)| reason.check_order() > furthest_reason.check_order())
        {
            furthest = Some((policy, reason));
        }
    }
    match furthest {
        Some((policy, reason)) => PolicyOutcome::Refused(Some(policy), reason.clone()),
        None => PolicyOutcome::Refused(None, RefusalReason::NoPolicy),
    }
}

impl ExchangePolicy {
    /// Smaller means narrower.
    fn breadth(&self) -> (usize, usize) {
        (self.scopes.len(), self.tags.len())
    }

    fn check(
        &self,
        checked_token: &CheckedToken<'_>,
        request: RequestedAccess<'_>,
        now: Timestamp,
        leeway: Duration,
    ) -> Result<(), RefusalReason> {
        let token = checked_token.token;
        if !token
            .algorithm
            .is_some_and(|algorithm| self.algorithms.contains(&algorithm))
        {
            return Err(RefusalReason::Algorithm);
        }
        match checked_token.signature(&self.source) {
            SignatureCheck::Valid => {}
            SignatureCheck::Invalid => return Err(RefusalReason::Signature),
            SignatureCheck::NoKeys => return Err(RefusalReason::NoKeys),
            SignatureCheck::NoMatchingKey => return Err(RefusalReason::UnknownKey),
        }
        self.check_times(&token.claims, now, leeway)?;
        self.check_claims(&token.claims)?;
        self.check_request(request)
    }

    fn check_times(
        &self,
        claims: &TokenClaims,
        now: Timestamp,
        leeway: Duration,
    ) -> Result<(), RefusalReason> {
        // The error is far below a microsecond for centuries, and the claims are floating-point
        // numbers too.
        let now = now.as_nanosecond() as f64 / 1e9;
        let leeway = leeway.as_secs_f64();
        match claims.time("exp") {
            TimeClaim::NotANumber => return Err(RefusalReason::Malformed("exp")),
            TimeClaim::Absent if self.require_exp => return Err(RefusalReason::NoExpiry),
            TimeClaim::At(end) if now >= end + leeway => return Err(RefusalReason::Expired),
            TimeClaim::Absent | TimeClaim::At(_) => {}
        }
        match claims.time("nbf") {
            TimeClaim::NotANumber => return Err(RefusalReason::Malformed("nbf")),
            TimeClaim::At(start) if now < start - leeway => return Err(RefusalReason::NotYetValid),
            TimeClaim::Absent | TimeClaim::At(_) => {}
        }
        match (self.max_age, claims.time("iat")) {
            (_, TimeClaim::NotANumber) => return Err(RefusalReason::Malformed("iat")),
            (None, _) => {}
            (Some(_), TimeClaim::Absent) => return Err(RefusalReason::NoIssueTime),
            (Some(_), TimeClaim::At(issued)) if now < issued - leeway => {
                return Err(RefusalReason::NotYetValid);
            }
            (Some(max_age), TimeClaim::At(issued)) => {
                if now - issued > max_age.as_secs_f64() + leeway {
                    return Err(RefusalReason::TooOld);
                }
            }
        }
        Ok(())
    }

    fn check_claims(&self, claims: &TokenClaims) -> Result<(), RefusalReason> {
        let audiences = claims.audiences().ok_or(RefusalReason::Malformed("aud"))?;
        let subject = claims.text("sub").ok_or(RefusalReason::Malformed("sub"))?;
        if let Audience::OneOf(accepted_audiences) = &self.audience
            && !accepted_audiences
                .iter()
                .any(|accepted| audiences.contains(&accepted.as_str()))
        {
            return Err(RefusalReason::Audience);
        }
        if self
            .subject
            .as_ref()
            .is_some_and(|wanted| wanted != subject)
        {
            return Err(RefusalReason::Subject);
        }
        match self.conditions.iter().find(|one| !one.is_met(claims)) {
            Some(unmet) => Err(RefusalReason::Claim(unmet.claim.clone())),
            None => Ok(()),
        }
    }

    fn check_request(&self, request: RequestedAccess<'_>) -> Result<(), RefusalReason> {
        if request.scopes.is_empty() {
            return Err(RefusalReason::NoScope);
        }
        if let Some(scope) = (request.scopes.iter()).find(|scope| !self.scopes.contains(scope)) {
            return Err(RefusalReason::Scope(scope.clone()));
        }
        if self.any_tags {
            return Ok(());
        }
        if let Some(tag) = (request.tags.iter()).find(|tag| !self.tags.contains(tag)) {
            return Err(RefusalReason::Tag(tag.clone()));
        }
        match request.scopes.iter().find(|scope| grants_tags(scope)) {
            Some(scope) if self.tags.is_empty() => Err(RefusalReason::Untagged(scope.clone())),
            _ => Ok(()),
        }
    }

    /// The tags for a granted request.
    pub fn tags_for(&self, request: RequestedAccess<'_>) -> Vec<String> {
        if request.tags.is_empty() {
            self.tags.clone()
        } else {
            request.tags.to_vec()
        }
    }
}

impl ClaimCondition {
    fn is_met(&self, claims: &TokenClaims) -> bool {
        match claims.find(&self.claim) {
            None => false,
            Some(Value::Array(list)) => list.iter().any(|value| self.matches_value(value)),
            Some(value) => self.matches_value(value),
        }
    }

    fn matches_value(&self, value: &Value) -> bool {
        self.wanted.iter().any(|pattern| match pattern {
            ClaimPattern::Exact(wanted) => wanted == value,
            ClaimPattern::Glob(pattern) => value
                .as_str()
                .is_some_and(|text| glob::matches(pattern, text)),
        })
    }
}

/// Explains the decision: one line for the outcome, and one for each policy.
impl fmt::Display for PolicyDecision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            PolicyOutcome::Allowed(policy) => write!(f, "allowed by {}", policy.name)?,
            PolicyOutcome::Refused(Some(policy), reason) => {
                write!(
                    f,
                    "refused by {}: {reason} ({})",
                    policy.name,
                    reason.code()
                )?;
            }
            PolicyOutcome::Refused(None, reason) => {
                write!(f, "refused: {reason} ({})", reason.code())?
            }
        }
        for (policy, verdict) in &self.evaluated {
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
