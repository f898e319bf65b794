//! Deleting what has expired, by index and a little at a time.

use futures_util::FutureExt as _;
use jiff::Timestamp;

use super::{Link, Outcome, clients::uncount_clients};
use crate::store::{
    Swept,
    database::{Connection, Failure},
};

/// The condition is there twice, since a row may be extended while it is about to be deleted.
macro_rules! delete_expired {
    ($table:literal, $key:literal) => {
        concat!(
            "DELETE FROM ",
            $table,
            " WHERE ",
            $key,
            " IN (SELECT ",
            $key,
            " FROM ",
            $table,
            " WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2) AND expires_at <= $1 \
             RETURNING 1"
        )
    };
}

/// A kind of row that expires.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Expiring {
    AccessTokens,
    Assertions,
    Clients,
    Devices,
    Grants,
    PushedRequests,
    Sessions,
}

impl Expiring {
    pub(crate) const ALL: [Self; 7] = [
        Self::AccessTokens,
        Self::Assertions,
        Self::Clients,
        Self::Devices,
        Self::Grants,
        Self::PushedRequests,
        Self::Sessions,
    ];

    /// `None` for clients, which need several statements.
    fn deletion(self) -> Option<&'static str> {
        Some(match self {
            Self::AccessTokens => delete_expired!("oidc_access_tokens", "digest"),
            Self::Assertions => delete_expired!("oidc_assertions", "digest"),
            Self::Clients => return None,
            Self::Devices => delete_expired!("oidc_devices", "device_code"),
            Self::Grants => delete_expired!("oidc_grants", "id"),
            Self::PushedRequests => delete_expired!("oidc_pushed_requests", "reference"),
            Self::Sessions => delete_expired!("oidc_sessions", "id"),
        })
    }
}

pub(crate) fn sweep<'c>(
    link: Link<'c>,
    (kind, limit, now): &'c (Expiring, u32, Timestamp),
) -> Outcome<'c, Swept> {
    async move {
        let Some(statement) = kind.deletion() else {
            return sweep_clients(link, *limit, *now).await;
        };
        let deleted = link
            .query(statement, &[(*now).into(), (*limit).into()])
            .await?;
        let rows = deleted.len() as u64;
        Ok(Swept {
            rows,
            more: rows >= u64::from(*limit),
        })
    }
    .boxed()
}

/// Milliseconds that the row of a removed client stays. As long as it does, its grants and the
/// tokens that others' grants gave to it are known to be dead. No access token lives longer.
const MEMORY_OF_REMOVED: i64 = 24 * 60 * 60 * 1000;

/// Removes expired clients, and deletes what the removed ones were granted.
async fn sweep_clients(
    link: &mut dyn Connection,
    limit: u32,
    now: Timestamp,
) -> Result<Swept, Failure> {
    let expired = link
        .query(
            "UPDATE oidc_clients SET removed_at = $1 WHERE id IN (SELECT id FROM oidc_clients \
             WHERE expires_at <= $1 AND removed_at IS NULL ORDER BY expires_at LIMIT $2) \
             AND expires_at <= $1 AND removed_at IS NULL RETURNING origin, owner",
            &[now.into(), limit.into()],
        )
        .await?;
    let mut rows = expired.len() as u64;
    uncount_clients(link, expired).await?;
    let mut more = rows >= u64::from(limit);
    let forgotten = now.as_millisecond() - MEMORY_OF_REMOVED;
    let removed = link
        .query(
            "SELECT id FROM oidc_clients WHERE removed_at <= $1 ORDER BY removed_at LIMIT $2",
            &[forgotten.into(), limit.into()],
        )
        .await?;
    let limit = u64::from(limit);
    more |= removed.len() as u64 >= limit;
    for mut row in removed {
        let id = row.text()?;
        let left = i64::try_from(limit.saturating_sub(rows)).unwrap_or(i64::MAX);
        let grants = link
            .query(
                "DELETE FROM oidc_grants WHERE id IN \
                 (SELECT id FROM oidc_grants WHERE client_id = $1 LIMIT $2) RETURNING 1",
                &[(&id).into(), left.into()],
            )
            .await?;
        rows += grants.len() as u64;
        if rows >= limit {
            return Ok(Swept { rows, more: true });
        }
        link.query(
            "DELETE FROM oidc_clients WHERE id = $1 AND removed_at <= $2",
            &[(&id).into(), forgotten.into()],
        )
        .await?;
        rows += 1;
    }
    Ok(Swept { rows, more })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Sqlite;

    #[test]
    fn every_sweep_goes_by_an_index() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("oidc.db");
        drop(Sqlite::open(&path).unwrap());
        let connection = rusqlite::Connection::open(&path).unwrap();
        for statement in Expiring::ALL.into_iter().filter_map(Expiring::deletion) {
            let explain = format!("EXPLAIN QUERY PLAN {}", statement.replace('$', "?"));
            let mut prepared = connection.prepare(&explain).unwrap();
            let plan: Vec<String> = prepared
                .query_map([0, 1], |row| row.get("detail"))
                .unwrap()
                .map(Result::unwrap)
                .collect();
            assert!(
                plan.iter().any(|step| step.contains("_expires")),
                "{plan:?}"
            );
            assert!(!plan.iter().any(|step| step.contains("SCAN")), "{plan:?}");
        }
    }
}
