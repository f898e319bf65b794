//! Makes a token for a caller and an audience, or says why there is none. What that looks like on
//! the wire is for the routes to say.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tailbone_values::excerpt;
use tracing::Instrument as _;

use super::{
    access::{self, Access, AudienceEntry, AudienceRuleFile, DecidedBy, TokenTerms, Verdict},
    claims::{self, TokenInput, Validity},
};
use crate::{
    audit,
    identity::{NoSubject, SubjectTemplate, Visitor, policy},
    jwks::KeySet,
    keys::{Algorithm, NoSigner, SignError, Signer, SigningQueue, remote::RemoteFailure},
    policy::Who,
    telemetry::{audit::Decision, error_chain, meter::Meter},
};

/// What makes tokens. Clones share one state.
#[derive(Debug, Clone)]
pub struct TokenMaker {
    pub issuer: Arc<str>,
    pub keys: KeySet,
    pub signing: Arc<SigningQueue>,
    pub rules: Arc<AudienceRuleFile>,
    /// May be replaced while the server runs.
    pub settings: Arc<ArcSwap<TokenSettings>>,
    pub meter: Meter,
}

/// What all audiences have in common, unless the file of rules says otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenSettings {
    pub access: Access,
    pub lifetime: Duration,
    pub algorithm: Algorithm,
    pub subject: SubjectTemplate,
    /// Tokens carry all capabilities of the caller, as those of tsiam do.
    pub with_capabilities: bool,
}

/// A signed token.
#[derive(Debug)]
pub struct IssuedToken {
    pub token: String,
    pub validity: Validity,
    pub lifetime: Duration,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum NoToken {
    #[error("the requested audience is not allowed by the settings of this server")]
    NotListed,
    #[error("the caller may not have tokens for this audience")]
    NotPermitted,
    #[error(transparent)]
    NoSubject(#[from] NoSubject),
    #[error("no key of the algorithm that the audience needs can sign")]
    NoSigner(#[from] NoSigner),
    #[error(transparent)]
    NoSigningService(RemoteFailure),
    #[error("there are more requests than this server can sign tokens for")]
    Overloaded,
    #[error("the token could not be signed")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl NoToken {
    /// A stable code, for audit lines and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotListed => "audience_not_allowed",
            Self::NotPermitted => "audience_not_permitted",
            Self::NoSubject(_) => "no_subject",
            Self::NoSigner(_) => "no_signing_key",
            Self::NoSigningService(_) => "signer_unavailable",
            Self::Overloaded => "overloaded",
            Self::Failed(_) => "signing_failed",
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NoSigner(_) => Some(Duration::from_secs(10)),
            Self::NoSigningService(failure) => Some(failure.retry_after),
            Self::Overloaded => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

impl TokenMaker {
    /// A token of `visitor` for `audience`. The audit has a line either way.
    pub async fn token(&self, visitor: &Visitor, audience: &str) -> Result<IssuedToken, NoToken> {
        let settings = self.settings.load_full();
        let rules = self.rules.rules();
        let who = Who::Known(visitor);
        let verdict = settings.access.decide(&rules, who, audience);
        let made = match &verdict {
            Verdict::NotListed => Err(NoToken::NotListed),
            Verdict::NotPermitted { .. } => Err(NoToken::NotPermitted),
            Verdict::Allowed { terms, .. } => {
                let usual = AudienceEntry::default();
                let entry = access::entry_of(&rules, audience).unwrap_or(&usual);
                let wanted = WantedToken {
                    audience,
                    lifetime: shorter(entry.lifetime.unwrap_or(settings.lifetime), terms),
                    algorithm: entry.algorithm.unwrap_or(settings.algorithm),
                    subject: entry.subject.as_ref().unwrap_or(&settings.subject),
                    aud_is_text: entry.aud_is_text,
                    aws_session: entry.aws_session,
                    with_capabilities: settings.with_capabilities,
                    terms,
                };
                self.sign(visitor, wanted).await
            }
        };
        let by = match verdict {
            Verdict::NotListed => DecidedBy::Audiences,
            Verdict::Allowed { by, .. } | Verdict::NotPermitted { by } => by,
        };
        match made {
            Ok(signed) => {
                audit!(
                    Decision::Allowed,
                    "issued workload token",
                    caller = policy::caller_word(visitor),
                    node = visitor.node_id(),
                    sub = signed.subject,
                    audience = audience,
                    rule = %by,
                    kid = signed.signer.kid().as_str(),
                    jti = signed.id
                );
                Ok(signed.issued)
            }
            Err(refused) => {
                self.meter.token_refused("workload", refused.code());
                audit!(
                    Decision::Refused,
                    "workload token",
                    caller = policy::caller_word(visitor),
                    node = visitor.node_id(),
                    audience = excerpt(audience),
                    rule = %by,
                    reason = refused.code(),
                    detail = error_chain(&refused)
                );
                Err(refused)
            }
        }
    }

    async fn sign(&self, visitor: &Visitor, wanted: WantedToken<'_>) -> Result<Signed, NoToken> {
        let failed = |cause| NoToken::Failed(cause);
        let subject = wanted.subject.of(visitor)?;
        let signer = self
            .signer(wanted.algorithm, &wanted.terms.algorithms)
            .await?;
        let id = claims::token_id().map_err(|cause| failed(cause.into()))?;
        let input = TokenInput {
            issuer: &self.issuer,
            subject: &subject,
            audience: wanted.audience,
            visitor,
            lifetime: wanted.lifetime,
            now: Timestamp::now(),
            id: &id,
            aud_is_text: wanted.aud_is_text,
            with_capabilities: wanted.with_capabilities,
            aws_session: wanted.aws_session,
            extra: &wanted.terms.claims,
        };
        let payload = input.payload().map_err(|cause| failed(cause.into()))?;
        let started = Instant::now();
        let token = self
            .signing
            .sign(&signer, &payload)
            .instrument(tracing::debug_span!("sign"))
            .await
            .map_err(|error| match error {
                SignError::Overloaded => NoToken::Overloaded,
                SignError::Remote(failure) => NoToken::NoSigningService(failure),
                other => failed(other.into()),
            })?;
        self.meter.token_issued("workload", started.elapsed());
        let validity = input.validity();
        Ok(Signed {
            issued: IssuedToken {
                token,
                validity,
                lifetime: wanted.lifetime,
            },
            subject,
            signer,
            id,
        })
    }

    /// The key of the audience's algorithm, or of the first that the rule names if it does not
    /// allow that one.
    async fn signer(
        &self,
        preferred: Algorithm,
        allowed: &[Algorithm],
    ) -> Result<Arc<Signer>, NoSigner> {
        let algorithm = match allowed.first() {
            Some(first) if !allowed.contains(&preferred) => *first,
            _ => preferred,
        };
        self.keys.loaded().await.signer(algorithm)
    }
}

struct WantedToken<'a> {
    audience: &'a str,
    lifetime: Duration,
    algorithm: Algorithm,
    subject: &'a SubjectTemplate,
    aud_is_text: bool,
    aws_session: bool,
    with_capabilities: bool,
    terms: &'a TokenTerms,
}

struct Signed {
    issued: IssuedToken,
    subject: String,
    signer: Arc<Signer>,
    id: String,
}

fn shorter(lifetime: Duration, terms: &TokenTerms) -> Duration {
    terms
        .max_lifetime
        .map_or(lifetime, |most| lifetime.min(most))
}
