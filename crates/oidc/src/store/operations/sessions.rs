//! Sessions of browsers.

use futures_util::FutureExt as _;
use jiff::Timestamp;

use super::{Link, Outcome, with};
use crate::store::{
    Digest, EndedSession, Session, SessionId, SessionsOf,
    database::{Failure, Row},
};

macro_rules! session_columns {
    () => {
        "id, cookie, subject, authenticated_at, created_at, expires_at, details"
    };
}

fn read_session(mut row: Row) -> Result<Session, Failure> {
    Ok(Session {
        id: row.session_id()?,
        cookie: row.digest()?,
        subject: row.text()?,
        authenticated_at: row.time()?,
        created_at: row.time()?,
        expires_at: row.time()?,
        details: row.text()?,
    })
}

pub(crate) fn add_session<'c>(link: Link<'c>, session: &'c Session) -> Outcome<'c, ()> {
    async move {
        link.query(
            concat!(
                "INSERT INTO oidc_sessions (",
                session_columns!(),
                ") VALUES ($1, $2, $3, $4, $5, $6, $7)"
            ),
            &[
                (&session.id).into(),
                (&session.cookie).into(),
                (&session.subject).into(),
                session.authenticated_at.into(),
                session.created_at.into(),
                session.expires_at.into(),
                (&session.details).into(),
            ],
        )
        .await?;
        Ok(())
    }
    .boxed()
}

pub(crate) fn session<'c>(
    link: Link<'c>,
    (cookie, now): &'c (Digest, Timestamp),
) -> Outcome<'c, Option<Session>> {
    async move {
        let found = link
            .query(
                concat!(
                    "SELECT ",
                    session_columns!(),
                    " FROM oidc_sessions WHERE cookie = $1 AND expires_at > $2"
                ),
                &[cookie.into(), (*now).into()],
            )
            .await?;
        found.into_iter().next().map(read_session).transpose()
    }
    .boxed()
}

/// The statement that finds sessions with a condition on what they have in common, which is `$3`.
macro_rules! find_sessions {
    ($common:literal, $order:literal) => {
        concat!(
            "SELECT ",
            session_columns!(),
            " FROM oidc_sessions WHERE ",
            $common,
            "expires_at > $1 ORDER BY ",
            $order,
            " DESC LIMIT $2"
        )
    };
}

pub(crate) fn sessions<'c>(
    link: Link<'c>,
    (of, limit, now): &'c (SessionsOf, u32, Timestamp),
) -> Outcome<'c, Vec<Session>> {
    async move {
        let mut parameters = vec![(*now).into(), (*limit).into()];
        let pattern;
        let statement = match of {
            // There is an index for this order of all sessions.
            SessionsOf::All => find_sessions!("", "expires_at"),
            SessionsOf::Client(id) => {
                parameters.push(id.into());
                find_sessions!(
                    "id IN (SELECT session FROM oidc_grants WHERE client_id = $3 \
                     AND session IS NOT NULL AND expires_at > $1) AND ",
                    "created_at"
                )
            }
            SessionsOf::Details(text) => {
                pattern = with(text);
                parameters.push((&pattern).into());
                find_sessions!("details LIKE $3 ESCAPE '!' AND ", "expires_at")
            }
            SessionsOf::Subject(subject) => {
                parameters.push(subject.into());
                find_sessions!("subject = $3 AND ", "created_at")
            }
        };
        let found = link.query(statement, &parameters).await?;
        found.into_iter().map(read_session).collect()
    }
    .boxed()
}

pub(crate) fn renew_session<'c>(
    link: Link<'c>,
    (session, now): &'c (Session, Timestamp),
) -> Outcome<'c, bool> {
    async move {
        let renewed = link
            .query(
                "UPDATE oidc_sessions SET cookie = $2, authenticated_at = $3, expires_at = $4, \
                 details = $5 WHERE id = $1 AND subject = $6 AND expires_at > $7 RETURNING id",
                &[
                    (&session.id).into(),
                    (&session.cookie).into(),
                    session.authenticated_at.into(),
                    session.expires_at.into(),
                    (&session.details).into(),
                    (&session.subject).into(),
                    (*now).into(),
                ],
            )
            .await?;
        Ok(!renewed.is_empty())
    }
    .boxed()
}

pub(crate) fn end_session<'c>(
    link: Link<'c>,
    (id, now): &'c (SessionId, Timestamp),
) -> Outcome<'c, Option<EndedSession>> {
    async move {
        let clients = link
            .query(
                "SELECT client_id FROM oidc_session_clients WHERE session = $1 ORDER BY client_id",
                &[id.into()],
            )
            .await?;
        let ended = link
            .query(
                concat!(
                    "DELETE FROM oidc_sessions WHERE id = $1 AND expires_at > $2 RETURNING ",
                    session_columns!()
                ),
                &[id.into(), (*now).into()],
            )
            .await?;
        let Some(row) = ended.into_iter().next() else {
            return Ok(None);
        };
        Ok(Some(EndedSession {
            session: read_session(row)?,
            clients: clients
                .into_iter()
                .map(|mut row| row.text())
                .collect::<Result<_, _>>()?,
        }))
    }
    .boxed()
}
