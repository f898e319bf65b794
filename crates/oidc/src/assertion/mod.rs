//! Authentication of a client by a signed assertion (RFC 7523, section 3, and `private_key_jwt` of
//! OpenID Connect Core, section 9).
//!
//! Two kinds: one that the client signs itself, and a workload token of this server, for a machine
//! that has no key of its own.
//!
//! Invariants
//! - An assertion is for this server alone: each of its audiences is one of ours. One that also
//!   counts elsewhere could be played here by whoever runs that place.
//! - An assertion that a client signed is accepted once. Its `jti` is noted after everything else
//!   was right, so that nobody else can use it up.
//! - A workload token is accepted until it ends: machines keep it in a file and use it again. What
//!   it may log in as is named by issuer and subject in the client's metadata.
//! - Tokens of other kinds (ID tokens, access tokens, request objects, logout tokens) are told by
//!   `typ`, or by issuer and subject, and refused.
//! - An error tells the log what was wrong, and the client nothing but that it was.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use jsonwebtoken::Algorithm;
use tailbone_keys::jwks::{
    fetch::{KeySet, name},
    verify::{MalformedToken, ParsedToken, SignatureCheck, TimeClaim, TokenClaims},
};

use crate::{
    client_keys::{BadClientKeys, ClientKeys, SignatureProblem},
    fetch::{FetchError, KeyCache, NotFetched},
    store::{Digest, Store, StoreError},
};

/// The only `client_assertion_type`.
pub const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What a client may sign with, for discovery
/// (`token_endpoint_auth_signing_alg_values_supported`).
pub const SIGNING_ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// The `typ` by which new clients name their assertions.
const TYP: &str = "client-authentication+jwt";

/// How far the clock of a client may be from ours.
const LEEWAY: Duration = Duration::from_secs(60);

/// The longest life of an assertion that a client signs, so that what is noted stays bounded.
const MAX_LIFE: Duration = Duration::from_secs(3600);

const MAX_ASSERTION_BYTES: usize = 16 << 10;
const MAX_JTI_BYTES: usize = 512;

/// An assertion as it came, not verified yet.
#[derive(Debug, Clone)]
pub struct ClientAssertion {
    token: ParsedToken,
    issuer: String,
    subject: String,
    client_id: String,
}

/// What is noted of an assertion that a client signed, so that it counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FirstUse {
    of: Digest,
    until: Timestamp,
}

/// Who made it, according to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AssertedBy {
    Client,
    Issuer,
}

/// Why an assertion does not authenticate.
#[derive(Debug, thiserror::Error)]
pub enum AssertionError {
    #[error("its algorithm is not {0}")]
    Algorithm(String),
    #[error("its audience is not this server alone")]
    Audience,
    #[error("client_assertion_type is not {JWT_BEARER}")]
    AssertionType,
    #[error("its claim {0} is missing or not as it must be")]
    Claim(&'static str),
    #[error("client_id is missing, or is not the subject")]
    ClientId,
    #[error("it has ended, begins later, or lives too long")]
    Expired,
    #[error(transparent)]
    Keys(#[from] BadClientKeys),
    #[error(transparent)]
    Malformed(#[from] MalformedToken),
    #[error("the client does not authenticate by assertions")]
    Method,
    #[error("it was used before")]
    Replayed,
    #[error(transparent)]
    Signature(#[from] SignatureProblem),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("its type is that of another kind of token")]
    Typ,
    #[error("the client does not trust this issuer and subject")]
    UnknownSubject,
}

impl AssertionError {
    /// A stable code, for audit lines and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Algorithm(_) => "assertion_algorithm",
            Self::Audience => "assertion_audience",
            Self::AssertionType => "assertion_type",
            Self::Claim(_) => "assertion_claim",
            Self::ClientId => "assertion_client",
            Self::Expired => "assertion_expired",
            Self::Keys(_) => "client_keys",
            Self::Malformed(_) => "assertion_malformed",
            Self::Method => "assertion_method",
            Self::Replayed => "assertion_replayed",
            Self::Signature(SignatureProblem::NotFetched(_)) => "client_keys",
            Self::Signature(_) => "assertion_signature",
            Self::Store(_) => "store",
            Self::Typ => "assertion_typ",
            Self::UnknownSubject => "assertion_subject",
        }
    }

    /// Whether the trouble is ours: 503, where everything else is `invalid_client`.
    pub fn is_our_trouble(&self) -> bool {
        match self {
            Self::Store(_) => true,
            Self::Signature(SignatureProblem::NotFetched(NotFetched::Fetch(error))) => {
                matches!(**error, FetchError::Busy)
            }
            _ => false,
        }
    }
}

/// What an assertion must fit.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The names of this server: its issuer, its token endpoint, and the endpoint that was called.
    pub audiences: &'a [&'a str],
    /// `token_endpoint_auth_signing_alg` of the client, if it has one.
    pub algorithm: Option<Algorithm>,
    pub at: Timestamp,
}

/// An issuer and subject whose workload tokens authenticate a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedSubject {
    pub issuer: String,
    pub subject: String,
}

impl ClientAssertion {
    /// `client_id` is the parameter of that name. Without it an assertion names its client by its
    /// issuer and subject, which are then the same.
    pub fn read(
        assertion_type: &str,
        assertion: &str,
        client_id: Option<&str>,
    ) -> Result<Self, AssertionError> {
        if assertion_type != JWT_BEARER {
            return Err(AssertionError::AssertionType);
        }
        if assertion.len() > MAX_ASSERTION_BYTES {
            return Err(AssertionError::Claim("assertion"));
        }
        let token = ParsedToken::read(assertion)?;
        let text = |name| {
            let text = token.claims.text(name).filter(|text| !text.is_empty());
            text.map(str::to_owned).ok_or(AssertionError::Claim(name))
        };
        let (issuer, subject) = (text("iss")?, text("sub")?);
        let client_id = match client_id {
            None if issuer != subject => return Err(AssertionError::ClientId),
            Some(given) if issuer == subject && given != subject => {
                return Err(AssertionError::ClientId);
            }
            given => given.unwrap_or(&subject).to_owned(),
        };
        Ok(Self {
            token,
            issuer,
            subject,
            client_id,
        })
    }

    /// Which client it would authenticate. Not verified.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    pub fn asserted_by(&self) -> AssertedBy {
        if self.issuer == self.subject {
            AssertedBy::Client
        } else {
            AssertedBy::Issuer
        }
    }

    /// Not verified.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Whether the client itself made it, for us, and uses it for the first time. `now` is for the
    /// cache of keys.
    pub async fn verify(
        &self,
        keys: &ClientKeys,
        cache: &KeyCache,
        store: &dyn Store,
        expected: &Expected<'_>,
        now: Instant,
    ) -> Result<(), AssertionError> {
        let first_use = self.check(expected)?;
        keys.verify(&self.token, cache, now).await?;
        let FirstUse { of, until } = first_use;
        if store.use_assertion(of, until, expected.at).await? {
            Ok(())
        } else {
            Err(AssertionError::Replayed)
        }
    }

    /// Everything but the signature, and whether it was used before.
    fn check(&self, expected: &Expected<'_>) -> Result<FirstUse, AssertionError> {
        if self.asserted_by() != AssertedBy::Client {
            return Err(AssertionError::ClientId);
        }
        self.check_kind(TYP)?;
        self.check_algorithm(expected.algorithm)?;
        let claims = &self.token.claims;
        check_audience(claims, expected.audiences)?;
        let until = check_times(claims, expected.at, Some(MAX_LIFE))?;
        let id = claims.text("jti").filter(|id| !id.is_empty());
        let id = id.filter(|id| id.len() <= MAX_JTI_BYTES);
        let id = id.ok_or(AssertionError::Claim("jti"))?;
        Ok(FirstUse {
            of: Digest::of(&format!("{}\0{id}", self.client_id)),
            until: Timestamp::from_second(until).map_err(|_| AssertionError::Expired)?,
        })
    }

    /// Whether it is a workload token for us, of a subject that the client trusts. `keys` are those
    /// of the issuer, which the caller chose by [`Self::issuer`].
    pub fn verify_workload_token(
        &self,
        keys: &KeySet,
        trusted: &[TrustedSubject],
        expected: &Expected<'_>,
    ) -> Result<(), AssertionError> {
        let is_trusted =
            |known: &TrustedSubject| known.issuer == self.issuer && known.subject == self.subject;
        if self.asserted_by() != AssertedBy::Issuer || !trusted.iter().any(is_trusted) {
            return Err(AssertionError::UnknownSubject);
        }
        self.check_kind("jwt")?;
        self.check_algorithm(None)?;
        check_audience(&self.token.claims, expected.audiences)?;
        check_times(&self.token.claims, expected.at, None)?;
        match self.token.signature(keys) {
            SignatureCheck::Valid => Ok(()),
            SignatureCheck::NoMatchingKey => Err(SignatureProblem::NoMatchingKey.into()),
            SignatureCheck::Invalid | SignatureCheck::NoKeys => {
                Err(SignatureProblem::Invalid.into())
            }
        }
    }

    fn check_kind(&self, typ: &str) -> Result<(), AssertionError> {
        if self.token.typ.is_plain_or(typ) {
            Ok(())
        } else {
            Err(AssertionError::Typ)
        }
    }

    fn check_algorithm(&self, wanted: Option<Algorithm>) -> Result<(), AssertionError> {
        let fits = |algorithm: &Algorithm| match wanted {
            Some(wanted) => *algorithm == wanted,
            None => SIGNING_ALGORITHMS.contains(algorithm),
        };
        if self.token.algorithm.as_ref().is_some_and(fits) {
            return Ok(());
        }
        Err(AssertionError::Algorithm(match wanted {
            Some(wanted) => name(wanted).to_owned(),
            None => SIGNING_ALGORITHMS.map(name).join(", "),
        }))
    }
}

fn check_audience(claims: &TokenClaims, ours: &[&str]) -> Result<(), AssertionError> {
    let audiences = claims.audiences().filter(|all| !all.is_empty());
    match audiences {
        Some(all) if all.iter().all(|one| ours.contains(one)) => Ok(()),
        _ => Err(AssertionError::Audience),
    }
}

/// Gives the second at which the token has certainly ended.
fn check_times(
    claims: &TokenClaims,
    at: Timestamp,
    max_life: Option<Duration>,
) -> Result<i64, AssertionError> {
    let at = at.as_second();
    let leeway = seconds(LEEWAY);
    let TimeClaim::At(exp) = claims.time("exp") else {
        return Err(AssertionError::Claim("exp"));
    };
    // Fractions are cut off; what is beyond the numbers becomes the last one.
    #[allow(clippy::cast_possible_truncation)]
    let until = (exp as i64).saturating_add(leeway);
    let latest = max_life.map_or(i64::MAX, |life| {
        at.saturating_add(seconds(life)).saturating_add(2 * leeway)
    });
    if until <= at || until > latest {
        return Err(AssertionError::Expired);
    }
    for (name, claim) in [("nbf", claims.time("nbf")), ("iat", claims.time("iat"))] {
        match claim {
            TimeClaim::Absent => {}
            #[allow(clippy::cast_possible_truncation)]
            TimeClaim::At(from) if from as i64 <= at.saturating_add(leeway) => {}
            TimeClaim::At(_) => return Err(AssertionError::Expired),
            TimeClaim::NotANumber => return Err(AssertionError::Claim(name)),
        }
    }
    Ok(until)
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// For the fuzz targets alone.
#[doc(hidden)]
pub mod fuzzing {
    use super::*;

    /// [`ClientAssertion::verify`] with the keys at hand and without a store.
    pub fn verify(
        assertion: &ClientAssertion,
        keys: &KeySet,
        expected: &Expected<'_>,
    ) -> Result<(), AssertionError> {
        assertion.check(expected)?;
        match assertion.token.signature_by_owner(keys) {
            SignatureCheck::Valid => Ok(()),
            _ => Err(SignatureProblem::Invalid.into()),
        }
    }
}

#[cfg(test)]
mod tests;
