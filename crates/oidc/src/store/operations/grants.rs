//! Grants and their codes.

use futures_util::FutureExt as _;
use jiff::Timestamp;

use super::{Link, Outcome, tokens::insert_access_token};
use crate::store::{
    Code, Digest, Grant, GrantId, GrantName, GrantsOf, Issue, Issued, Presented, RefreshToken,
    database::{Connection, Failure, Row, Value},
    secret::Proof,
};

pub(super) fn read_grant(row: &mut Row) -> Result<Grant, Failure> {
    Ok(Grant {
        id: row.grant_id()?,
        client_id: row.text()?,
        subject: row.opt_text()?,
        session: row.opt_session_id()?,
        created_at: row.time()?,
        details: row.text()?,
    })
}

/// What a row of a grant has besides the grant.
#[derive(Default)]
pub(super) struct State {
    pub(super) expires_at: Timestamp,
    pub(super) code: Option<Code>,
    pub(super) redeemed_at: Option<Timestamp>,
    pub(super) refresh: Option<Digest>,
    pub(super) refresh_expires_at: Option<Timestamp>,
}

pub(super) async fn insert_grant(
    link: &mut dyn Connection,
    grant: &Grant,
    state: &State,
) -> Result<(), Failure> {
    link.query(
        concat!(
            "INSERT INTO oidc_grants (id, client_id, incarnation, subject, session, created_at, \
             expires_at, details, code, code_expires_at, redeemed_at, refresh, \
             refresh_expires_at) VALUES ($1, $2, ",
            incarnation!("$2"),
            ", $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
        ),
        &[
            (&grant.id).into(),
            (&grant.client_id).into(),
            grant.subject.as_deref().into(),
            (&grant.session).into(),
            grant.created_at.into(),
            state.expires_at.into(),
            (&grant.details).into(),
            (&state.code.map(|code| code.digest)).into(),
            state.code.map(|code| code.expires_at).into(),
            state.redeemed_at.into(),
            (&state.refresh).into(),
            state.refresh_expires_at.into(),
        ],
    )
    .await?;
    if let Some(session) = &grant.session {
        link.query(
            "INSERT INTO oidc_session_clients (session, client_id) \
             SELECT $1, $2 WHERE EXISTS (SELECT 1 FROM oidc_sessions WHERE id = $1) \
             ON CONFLICT DO NOTHING",
            &[session.into(), (&grant.client_id).into()],
        )
        .await?;
    }
    Ok(())
}

pub(crate) fn authorize<'c>(link: Link<'c>, (grant, code): &'c (Grant, Code)) -> Outcome<'c, ()> {
    async move {
        let state = State {
            expires_at: code.expires_at,
            code: Some(*code),
            ..State::default()
        };
        insert_grant(link, grant, &state).await
    }
    .boxed()
}

/// Reads only. One that is [`Presented::Reused`] is still to be revoked.
pub(crate) fn present_code<'c>(
    link: Link<'c>,
    (code, now): &'c (Digest, Timestamp),
) -> Outcome<'c, Presented<Grant>> {
    async move {
        let found = link
            .query(
                concat!(
                    "SELECT ",
                    grant_columns!(),
                    ", code_expires_at, redeemed_at FROM oidc_grants \
                     WHERE code = $1 AND expires_at > $2 AND",
                    client_lives!("oidc_grants", "$2")
                ),
                &[code.into(), (*now).into()],
            )
            .await?;
        let Some(mut row) = found.into_iter().next() else {
            return Ok(Presented::Unknown);
        };
        let grant = read_grant(&mut row)?;
        let expires_at = row.time()?;
        Ok(match row.opt_time()? {
            Some(_) => Presented::Reused(grant.id),
            None if expires_at > *now => Presented::Valid(grant),
            None => Presented::Unknown,
        })
    }
    .boxed()
}

pub(crate) fn redeem_code<'c>(
    link: Link<'c>,
    (code, issue, now): &'c (Digest, Issue, Timestamp),
) -> Outcome<'c, Presented<Issued>> {
    async move {
        let proof = first_proof(issue)?;
        let redeemed = link
            .query(
                concat!(
                    "UPDATE oidc_grants SET redeemed_at = $2, expires_at = $3, refresh = $4, \
                     refresh_expires_at = $5, details = COALESCE($6, details) \
                     WHERE code = $1 AND redeemed_at IS NULL AND code_expires_at > $2 AND",
                    client_lives!("oidc_grants", "$2"),
                    "RETURNING id"
                ),
                &[
                    code.into(),
                    (*now).into(),
                    end_of(issue, *now).into(),
                    (&proof.as_ref().map(Proof::digest)).into(),
                    issue.refresh_until.into(),
                    issue.details.as_deref().into(),
                ],
            )
            .await?;
        let Some(mut row) = redeemed.into_iter().next() else {
            return lost_code(link, *code, *now).await;
        };
        let grant = row.grant_id()?;
        if let Some(token) = &issue.access {
            insert_access_token(link, grant, token).await?;
        }
        Ok(Presented::Valid(Issued {
            refresh: proof.map(|proof| RefreshToken::new(grant, proof)),
        }))
    }
    .boxed()
}

/// What becomes of a code that cannot be redeemed.
async fn lost_code(
    link: &mut dyn Connection,
    code: Digest,
    now: Timestamp,
) -> Result<Presented<Issued>, Failure> {
    let revoked = link
        .query(
            "DELETE FROM oidc_grants WHERE code = $1 AND redeemed_at IS NOT NULL \
             AND expires_at > $2 RETURNING id",
            &[(&code).into(), now.into()],
        )
        .await?;
    Ok(match revoked.into_iter().next() {
        Some(mut row) => Presented::Reused(row.grant_id()?),
        None => Presented::Unknown,
    })
}

pub(crate) fn burn_code<'c>(link: Link<'c>, code: &'c Digest) -> Outcome<'c, ()> {
    async move {
        link.query("DELETE FROM oidc_grants WHERE code = $1", &[code.into()])
            .await?;
        Ok(())
    }
    .boxed()
}

pub(crate) fn issue<'c>(
    link: Link<'c>,
    (grant, issue, now): &'c (Grant, Issue, Timestamp),
) -> Outcome<'c, Issued> {
    async move {
        let proof = first_proof(issue)?;
        let state = State {
            expires_at: end_of(issue, *now),
            redeemed_at: Some(*now),
            refresh: proof.as_ref().map(Proof::digest),
            refresh_expires_at: issue.refresh_until,
            ..State::default()
        };
        insert_grant(link, grant, &state).await?;
        if let Some(token) = &issue.access {
            insert_access_token(link, grant.id, token).await?;
        }
        Ok(Issued {
            refresh: proof.map(|proof| RefreshToken::new(grant.id, proof)),
        })
    }
    .boxed()
}

fn first_proof(issue: &Issue) -> Result<Option<Proof>, Failure> {
    Ok(issue.refresh_until.map(|_| Proof::random()).transpose()?)
}

/// When nothing of it can be used any more.
pub(super) fn end_of(issue: &Issue, now: Timestamp) -> Timestamp {
    let access = issue.access.as_ref().map(|token| token.expires_at);
    access.max(issue.refresh_until).unwrap_or(now)
}

pub(crate) fn revoke_grant<'c>(
    link: Link<'c>,
    (grant, now): &'c (GrantId, Timestamp),
) -> Outcome<'c, bool> {
    async move {
        let revoked = link
            .query(
                "DELETE FROM oidc_grants WHERE id = $1 AND expires_at > $2 RETURNING id",
                &[grant.into(), (*now).into()],
            )
            .await?;
        Ok(!revoked.is_empty())
    }
    .boxed()
}

/// The statement that ends with a condition on what the grants have in common, which is `$1`.
macro_rules! grants_of {
    ($of:expr, $before:expr, $behind:expr) => {
        match $of {
            GrantsOf::Client(_) => concat!($before, "oidc_grants.client_id = $1", $behind),
            GrantsOf::Session(_) => concat!($before, "oidc_grants.session = $1", $behind),
            GrantsOf::Subject(_) => concat!($before, "oidc_grants.subject = $1", $behind),
        }
    };
}

fn common(of: &GrantsOf) -> Value<'_> {
    match of {
        GrantsOf::Client(id) => id.into(),
        GrantsOf::Session(id) => id.into(),
        GrantsOf::Subject(name) => name.into(),
    }
}

/// Codes that nobody has redeemed are no grants that somebody has.
pub(crate) fn grants<'c>(
    link: Link<'c>,
    (of, limit, now): &'c (GrantsOf, u32, Timestamp),
) -> Outcome<'c, Vec<Grant>> {
    async move {
        let statement = grants_of!(
            of,
            concat!("SELECT ", grant_columns!(), " FROM oidc_grants WHERE "),
            concat!(
                " AND expires_at > $2 AND redeemed_at IS NOT NULL AND",
                client_lives!("oidc_grants", "$2"),
                "ORDER BY created_at DESC LIMIT $3"
            )
        );
        let found = link
            .query(statement, &[common(of), (*now).into(), (*limit).into()])
            .await?;
        found
            .into_iter()
            .map(|mut row| read_grant(&mut row))
            .collect()
    }
    .boxed()
}

pub(crate) fn grant_named<'c>(
    link: Link<'c>,
    (name, now): &'c (GrantName, Timestamp),
) -> Outcome<'c, Option<Grant>> {
    async move {
        let (first, last) = name.ids();
        let found = link
            .query(
                concat!(
                    "SELECT ",
                    grant_columns!(),
                    " FROM oidc_grants WHERE id >= $1 AND id <= $2 AND expires_at > $3 \
                     AND redeemed_at IS NOT NULL AND",
                    client_lives!("oidc_grants", "$3"),
                    "LIMIT 2"
                ),
                &[(&first).into(), (&last).into(), (*now).into()],
            )
            .await?;
        // Two of one name cannot be told apart, and do not happen.
        match <[_; 1]>::try_from(found) {
            Ok([mut row]) => read_grant(&mut row).map(Some),
            Err(_) => Ok(None),
        }
    }
    .boxed()
}

/// Ends at most `limit` of them.
pub(crate) fn revoke_grants<'c>(
    link: Link<'c>,
    (of, limit): &'c (GrantsOf, u32),
) -> Outcome<'c, u64> {
    async move {
        let statement = grants_of!(
            of,
            "DELETE FROM oidc_grants WHERE id IN (SELECT id FROM oidc_grants WHERE ",
            " LIMIT $2) RETURNING id"
        );
        let revoked = link
            .query(statement, &[common(of), (*limit).into()])
            .await?;
        Ok(revoked.len() as u64)
    }
    .boxed()
}
