//! Deleting what has expired, by index and a little at a time, and counting what has not.

use futures_util::FutureExt as _;
use jiff::Timestamp;

use super::{Link, Outcome, clients::uncount_clients};
use crate::store::{
    LiveRows, Swept,
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

macro_rules! count_live {
    ($table:literal) => {
        concat!("SELECT COUNT(*) FROM ", $table, " WHERE expires_at > $1")
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

impl Expiring {
    fn count(self) -> &'static str {
        match self {
            Self::AccessTokens => count_live!("oidc_access_tokens"),
            Self::Assertions => count_live!("oidc_assertions"),
            // Most of them have no end. The three counts go by indexes; of the rows only those are
            // read that the next sweep removes.
            Self::Clients => {
                "SELECT (SELECT COUNT(*) FROM oidc_clients) \
                 - (SELECT COUNT(*) FROM oidc_clients WHERE removed_at IS NOT NULL) \
                 - (SELECT COUNT(*) FROM oidc_clients \
                    WHERE expires_at <= $1 AND expires_at IS NOT NULL AND removed_at IS NULL)"
            }
            Self::Devices => count_live!("oidc_devices"),
            Self::Grants => count_live!("oidc_grants"),
            Self::PushedRequests => count_live!("oidc_pushed_requests"),
            Self::Sessions => count_live!("oidc_sessions"),
        }
    }

    fn of(self, rows: &mut LiveRows) -> &mut u64 {
        match self {
            Self::AccessTokens => &mut rows.access_tokens,
            Self::Assertions => &mut rows.assertions,
            Self::Clients => &mut rows.clients,
            Self::Devices => &mut rows.devices,
            Self::Grants => &mut rows.grants,
            Self::PushedRequests => &mut rows.pushed_requests,
            Self::Sessions => &mut rows.sessions,
        }
    }
}

pub(crate) fn count_live<'c>(link: Link<'c>, now: &'c Timestamp) -> Outcome<'c, LiveRows> {
    async move {
        let mut rows = LiveRows::default();
        for kind in Expiring::ALL {
            let found = link.query(kind.count(), &[(*now).into()]).await?;
            if let Some(mut row) = found.into_iter().next() {
                *kind.of(&mut rows) = u64::try_from(row.int()?).unwrap_or_default();
            }
        }
        Ok(rows)
    }
    .boxed()
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

    /// How SQLite runs each of these statements.
    fn plans(statements: impl Iterator<Item = &'static str>) -> Vec<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("oidc.db");
        drop(Sqlite::open(&path).unwrap());
        let connection = rusqlite::Connection::open(&path).unwrap();
        let plan = |statement: &str| {
            let explain = format!("EXPLAIN QUERY PLAN {}", statement.replace('$', "?"));
            let mut prepared = connection.prepare(&explain).unwrap();
            let parameters = std::iter::repeat_n(0, prepared.parameter_count());
            let steps = prepared.query_map(rusqlite::params_from_iter(parameters), |row| {
                row.get("detail")
            });
            steps.unwrap().map(Result::unwrap).collect()
        };
        statements.map(plan).collect()
    }

    #[test]
    fn every_count_goes_by_an_index_and_reads_no_row_that_lives() {
        for plan in plans(Expiring::ALL.into_iter().map(Expiring::count)) {
            for step in plan.iter().filter(|step| step.contains("oidc_")) {
                let is_of_expired = step.contains("oidc_clients_expires (expires_at>? AND");
                assert!(
                    step.contains("USING COVERING INDEX") || is_of_expired,
                    "{plan:?}"
                );
            }
        }
    }

    #[test]
    fn every_sweep_goes_by_an_index() {
        for plan in plans(Expiring::ALL.into_iter().filter_map(Expiring::deletion)) {
            assert!(
                plan.iter().any(|step| step.contains("_expires")),
                "{plan:?}"
            );
            assert!(!plan.iter().any(|step| step.contains("SCAN")), "{plan:?}");
        }
    }
}
