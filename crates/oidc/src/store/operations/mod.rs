//! What each call of the store does, in statements that SQLite and PostgreSQL both understand.
//!
//! Invariants
//! - What may happen once is decided by one statement that changes a row only while it still is as
//!   it must be, and says whether it did. So it holds for any number of processes, at PostgreSQL's
//!   isolation level `READ COMMITTED`.
//! - Every statement that reads leaves out what has expired, and what belongs to a client that is
//!   removed or has expired.
//! - A statement that deletes many rows has a limit.

use futures_util::{FutureExt as _, future::BoxFuture};

use super::database::{Connection, Failure};

type Outcome<'c, T> = BoxFuture<'c, Result<T, Failure>>;
type Link<'c> = &'c mut dyn Connection;

/// A condition: the client of a row of this table, if we know it, is still the one that the row
/// was made for. The parameter is the time.
macro_rules! client_lives {
    ($table:literal, $now:literal) => {
        concat!(
            " NOT EXISTS (SELECT 1 FROM oidc_clients c WHERE c.id = ",
            $table,
            ".client_id AND (c.removed_at IS NOT NULL OR c.expires_at <= ",
            $now,
            " OR c.incarnation IS DISTINCT FROM ",
            $table,
            ".incarnation)) "
        )
    };
}

/// The client's incarnation of now; the parameter is its id.
macro_rules! incarnation {
    ($client:literal) => {
        concat!(
            "(SELECT incarnation FROM oidc_clients WHERE removed_at IS NULL AND id = ",
            $client,
            ")"
        )
    };
}

macro_rules! grant_columns {
    () => {
        "oidc_grants.id, oidc_grants.client_id, oidc_grants.subject, oidc_grants.session, \
         oidc_grants.created_at, oidc_grants.details"
    };
}

macro_rules! client_columns {
    () => {
        "id, origin, owner, secrets, registration_token, metadata, created_at, updated_at, \
         expires_at, version"
    };
}

// Behind the macros, which they use.
mod assertions;
mod client_files;
mod clients;
mod devices;
mod grants;
mod pushed_requests;
mod sessions;
mod sweep;
mod tokens;

pub(crate) use assertions::*;
pub(crate) use client_files::*;
pub(crate) use clients::*;
pub(crate) use devices::*;
pub(crate) use grants::*;
pub(crate) use pushed_requests::*;
pub(crate) use sessions::*;
pub(crate) use sweep::*;
pub(crate) use tokens::*;

/// The pattern (`LIKE … ESCAPE '!'`) of all that has a text in it.
fn with(text: &str) -> String {
    let mut pattern = String::from("%");
    for c in text.chars() {
        if matches!(c, '!' | '%' | '_') {
            pattern.push('!');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

pub(crate) fn check<'c>(link: Link<'c>, (): &'c ()) -> Outcome<'c, ()> {
    async move {
        link.query("SELECT version FROM oidc_schema", &[]).await?;
        Ok(())
    }
    .boxed()
}
