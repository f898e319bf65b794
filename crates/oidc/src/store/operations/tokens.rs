//! Access tokens, and the chain of refresh tokens of a grant.

use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::{SignedDuration, Timestamp};

use super::{
    Link, Outcome,
    grants::{end_of, read_grant},
};
use crate::store::{
    AccessToken, Digest, Grant, GrantId, Issue, Issued, Presented, RefreshToken,
    database::{Connection, Failure, Row},
    secret::{Proof, random},
};

pub(super) async fn insert_access_token(
    link: &mut dyn Connection,
    grant: GrantId,
    token: &AccessToken,
) -> Result<(), Failure> {
    link.query(
        concat!(
            "INSERT INTO oidc_access_tokens (digest, grant_id, client_id, incarnation, \
             issued_at, expires_at, details) VALUES ($1, $2, $3, ",
            incarnation!("$3"),
            ", $4, $5, $6)"
        ),
        &[
            (&token.digest).into(),
            (&grant).into(),
            (&token.client_id).into(),
            token.issued_at.into(),
            token.expires_at.into(),
            (&token.details).into(),
        ],
    )
    .await?;
    Ok(())
}

pub(crate) fn add_access_token<'c>(
    link: Link<'c>,
    (grant, token, now): &'c (GrantId, AccessToken, Timestamp),
) -> Outcome<'c, bool> {
    async move {
        let alive = link
            .query(
                concat!(
                    "UPDATE oidc_grants SET \
                     expires_at = CASE WHEN expires_at < $2 THEN $2 ELSE expires_at END \
                     WHERE id = $1 AND expires_at > $3 AND",
                    client_lives!("oidc_grants", "$3"),
                    "RETURNING id"
                ),
                &[grant.into(), token.expires_at.into(), (*now).into()],
            )
            .await?;
        if alive.is_empty() {
            return Ok(false);
        }
        insert_access_token(link, *grant, token).await?;
        Ok(true)
    }
    .boxed()
}

pub(crate) fn access_token<'c>(
    link: Link<'c>,
    (token, now): &'c (Digest, Timestamp),
) -> Outcome<'c, Option<(AccessToken, Grant)>> {
    async move {
        let found = link
            .query(
                concat!(
                    "SELECT ",
                    grant_columns!(),
                    ", oidc_access_tokens.client_id, oidc_access_tokens.issued_at, \
                     oidc_access_tokens.expires_at, oidc_access_tokens.details \
                     FROM oidc_access_tokens \
                     JOIN oidc_grants ON oidc_grants.id = oidc_access_tokens.grant_id \
                     WHERE oidc_access_tokens.digest = $1 \
                     AND oidc_access_tokens.expires_at > $2 AND oidc_grants.expires_at > $2 AND",
                    client_lives!("oidc_grants", "$2"),
                    "AND",
                    client_lives!("oidc_access_tokens", "$2")
                ),
                &[token.into(), (*now).into()],
            )
            .await?;
        let Some(mut row) = found.into_iter().next() else {
            return Ok(None);
        };
        let grant = read_grant(&mut row)?;
        let token = AccessToken {
            digest: *token,
            client_id: row.text()?,
            issued_at: row.time()?,
            expires_at: row.time()?,
            details: row.text()?,
        };
        Ok(Some((token, grant)))
    }
    .boxed()
}

pub(crate) fn revoke_access_token<'c>(
    link: Link<'c>,
    (token, now): &'c (Digest, Timestamp),
) -> Outcome<'c, bool> {
    async move {
        let revoked = link
            .query(
                "DELETE FROM oidc_access_tokens WHERE digest = $1 AND expires_at > $2 \
                 RETURNING digest",
                &[token.into(), (*now).into()],
            )
            .await?;
        Ok(!revoked.is_empty())
    }
    .boxed()
}

/// Reads only. One that is [`Presented::Reused`] is still to be revoked.
pub(crate) fn present_refresh<'c>(
    link: Link<'c>,
    (token, grace, now): &'c (RefreshToken, Duration, Timestamp),
) -> Outcome<'c, Presented<Grant>> {
    async move {
        let found = link
            .query(
                concat!(
                    "SELECT ",
                    grant_columns!(),
                    ", refresh, previous, previous_salt, replaced_at FROM oidc_grants \
                     WHERE id = $1 AND refresh_expires_at > $2 AND",
                    client_lives!("oidc_grants", "$2")
                ),
                &[(&token.grant()).into(), (*now).into()],
            )
            .await?;
        let Some(mut row) = found.into_iter().next() else {
            return Ok(Presented::Unknown);
        };
        let grant = read_grant(&mut row)?;
        let chain = Chain::read(&mut row)?;
        let valid = chain.current == Some(token.proof().digest())
            || chain.replaced_lately(token, *grace, *now).is_some();
        Ok(if valid {
            Presented::Valid(grant)
        } else {
            Presented::Reused(grant.id)
        })
    }
    .boxed()
}

/// A grant's refresh token and the one before.
struct Chain {
    current: Option<Digest>,
    previous: Option<Digest>,
    salt: Vec<u8>,
    replaced_at: Option<Timestamp>,
}

impl Chain {
    fn read(row: &mut Row) -> Result<Self, Failure> {
        Ok(Self {
            current: row.opt_digest()?,
            previous: row.opt_digest()?,
            salt: row.opt_bytes()?.unwrap_or_default(),
            replaced_at: row.opt_time()?,
        })
    }

    /// The successor of `token`, if it was replaced within `grace` and the successor was not.
    fn replaced_lately(
        &self,
        token: &RefreshToken,
        grace: Duration,
        now: Timestamp,
    ) -> Option<Proof> {
        let grace = SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX);
        let lately = now.duration_since(self.replaced_at?) < grace;
        let successor = token.proof().successor(&self.salt);
        (lately
            && self.previous == Some(token.proof().digest())
            && self.current == Some(successor.digest()))
        .then_some(successor)
    }
}

pub(crate) fn rotate_refresh<'c>(
    link: Link<'c>,
    (token, grace, issue, now): &'c (RefreshToken, Duration, Issue, Timestamp),
) -> Outcome<'c, Presented<Issued>> {
    async move {
        let grant = token.grant();
        let salt: [u8; 16] = random()?;
        let successor = token.proof().successor(&salt);
        let rotated = link
            .query(
                concat!(
                    "UPDATE oidc_grants SET previous = refresh, previous_salt = $3, \
                     replaced_at = $4, refresh = $5, refresh_expires_at = $6, \
                     expires_at = CASE WHEN expires_at < $7 THEN $7 ELSE expires_at END, \
                     details = COALESCE($8, details) \
                     WHERE id = $1 AND refresh = $2 AND refresh_expires_at > $4 AND",
                    client_lives!("oidc_grants", "$4"),
                    "RETURNING id"
                ),
                &[
                    (&grant).into(),
                    (&token.proof().digest()).into(),
                    salt[..].into(),
                    (*now).into(),
                    (&successor.digest()).into(),
                    issue.refresh_until.into(),
                    end_of(issue, *now).into(),
                    issue.details.as_deref().into(),
                ],
            )
            .await?;
        let successor = if rotated.is_empty() {
            match replaced(link, token, *grace, *now).await? {
                Presented::Valid(successor) => successor,
                Presented::Reused(grant) => return Ok(Presented::Reused(grant)),
                Presented::Unknown => return Ok(Presented::Unknown),
            }
        } else {
            successor
        };
        if let Some(token) = &issue.access {
            insert_access_token(link, grant, token).await?;
        }
        Ok(Presented::Valid(Issued {
            refresh: Some(RefreshToken::new(grant, successor)),
        }))
    }
    .boxed()
}

/// The successor of a token that is no longer the current one, if it may be told again; otherwise
/// its grant ends.
async fn replaced(
    link: &mut dyn Connection,
    token: &RefreshToken,
    grace: Duration,
    now: Timestamp,
) -> Result<Presented<Proof>, Failure> {
    let found = link
        .query(
            concat!(
                "SELECT refresh, previous, previous_salt, replaced_at FROM oidc_grants \
                 WHERE id = $1 AND refresh_expires_at > $2 AND",
                client_lives!("oidc_grants", "$2")
            ),
            &[(&token.grant()).into(), now.into()],
        )
        .await?;
    let Some(mut row) = found.into_iter().next() else {
        return Ok(Presented::Unknown);
    };
    let chain = Chain::read(&mut row)?;
    if let Some(successor) = chain.replaced_lately(token, grace, now) {
        return Ok(Presented::Valid(successor));
    }
    link.query(
        "DELETE FROM oidc_grants WHERE id = $1",
        &[(&token.grant()).into()],
    )
    .await?;
    Ok(Presented::Reused(token.grant()))
}
