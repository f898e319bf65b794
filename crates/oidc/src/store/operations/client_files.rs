//! The clients that files own.
//!
//! Invariants
//! - Of several processes that apply files at once, one waits for the other, so that the second
//!   one finds what the first one did.
//! - What a file does not change keeps its row as it is: its version, and the time since when a
//!   secret is known.

use std::collections::BTreeMap;

use futures_util::FutureExt as _;
use jiff::Timestamp;
use serde_json::Value;

use super::{
    Link, Outcome,
    clients::{
        insert_client, origin_text, read_client, search_text, secrets_text, uncount_clients,
        uncount_registration,
    },
};
use crate::store::{
    ApplyMode, ApplyOptions, Client, ClientChange, ClientOrigin, WithoutFile,
    database::{Connection, Failure},
};

/// The row of `oidc_imports` that whoever applies files locks. No directory is called so.
const SOURCE: &str = "files of clients";

pub(crate) fn apply_clients<'c>(
    link: Link<'c>,
    (clients, options, now): &'c (Vec<Client>, ApplyOptions, Timestamp),
) -> Outcome<'c, Vec<ClientChange>> {
    async move {
        let writes = options.mode == ApplyMode::Write;
        if writes {
            lock(link, *now).await?;
        }
        let mut without_file = clients_of_files(link).await?;
        let mut changes = BTreeMap::new();
        for client in clients {
            let before = match without_file.remove(&client.id) {
                Some(before) => Some(before),
                None => client_of_others(link, &client.id, *now).await?,
            };
            let change = change(before, client, *now);
            if writes {
                write(link, &change, *now).await?;
            }
            changes.insert(client.id.clone(), change);
        }
        for (id, client) in without_file {
            let change = match options.without_file {
                WithoutFile::Keep => ClientChange::Kept(client),
                WithoutFile::Remove => ClientChange::Removed(client),
            };
            if writes {
                write(link, &change, *now).await?;
            }
            changes.insert(id, change);
        }
        Ok(changes.into_values().collect())
    }
    .boxed()
}

async fn lock(link: &mut dyn Connection, now: Timestamp) -> Result<(), Failure> {
    link.query(
        "INSERT INTO oidc_imports (source, imported_at) VALUES ($1, $2) \
         ON CONFLICT (source) DO UPDATE SET imported_at = excluded.imported_at",
        &[SOURCE.into(), now.into()],
    )
    .await?;
    Ok(())
}

async fn clients_of_files(link: &mut dyn Connection) -> Result<BTreeMap<String, Client>, Failure> {
    let found = link
        .query(
            concat!(
                "SELECT ",
                client_columns!(),
                " FROM oidc_clients WHERE origin = $1 AND removed_at IS NULL"
            ),
            &[origin_text(ClientOrigin::File).into()],
        )
        .await?;
    found
        .into_iter()
        .map(|row| read_client(row).map(|client| (client.id.clone(), client)))
        .collect()
}

async fn client_of_others(
    link: &mut dyn Connection,
    id: &str,
    now: Timestamp,
) -> Result<Option<Client>, Failure> {
    let found = link
        .query(
            concat!(
                "SELECT ",
                client_columns!(),
                " FROM oidc_clients WHERE id = $1 AND removed_at IS NULL \
                 AND (expires_at IS NULL OR expires_at > $2)"
            ),
            &[id.into(), now.into()],
        )
        .await?;
    found.into_iter().next().map(read_client).transpose()
}

/// What the file makes of the client that is there.
fn change(before: Option<Client>, described: &Client, now: Timestamp) -> ClientChange {
    let Some(before) = before else {
        return ClientChange::Added(described.clone());
    };
    let mut after = Client {
        // Who registered it may go on reading its registration.
        registration_token: before.registration_token,
        created_at: before.created_at,
        updated_at: now,
        version: before.version + 1,
        ..described.clone()
    };
    for secret in &mut after.secrets {
        let mut known = before.secrets.iter();
        if let Some(known) = known.find(|known| known.digest == secret.digest) {
            secret.created_at = known.created_at;
        }
    }
    if same_metadata(&before.metadata, &after.metadata) {
        after.metadata.clone_from(&before.metadata);
    }
    let unchanged = Client {
        updated_at: before.updated_at,
        version: before.version,
        ..after.clone()
    };
    if unchanged == before {
        return ClientChange::Unchanged(before);
    }
    ClientChange::Changed {
        before: Box::new(before),
        after: Box::new(after),
    }
}

/// Whatever the order of members and the blanks between them.
fn same_metadata(one: &str, other: &str) -> bool {
    let value = |text: &str| serde_json::from_str::<Value>(text).ok();
    value(one).is_some_and(|one| value(other) == Some(one))
}

async fn write(
    link: &mut dyn Connection,
    change: &ClientChange,
    now: Timestamp,
) -> Result<(), Failure> {
    let changed = match change {
        ClientChange::Added(client) => {
            remove_expired(link, &client.id, now).await?;
            insert_client(link, client).await?
        }
        ClientChange::Changed { before, after } => replace(link, before, after).await?,
        ClientChange::Removed(client) => remove(link, client, now).await?,
        ClientChange::Kept(_) | ClientChange::Unchanged(_) => true,
    };
    if changed {
        return Ok(());
    }
    let words = format!("the client {:?} was changed meanwhile", change.client().id);
    Err(Failure::Again(words))
}

/// A registration that has ended, and was not swept yet, gives way with its grants.
async fn remove_expired(
    link: &mut dyn Connection,
    id: &str,
    now: Timestamp,
) -> Result<(), Failure> {
    let removed = link
        .query(
            "UPDATE oidc_clients SET removed_at = $2 \
             WHERE id = $1 AND removed_at IS NULL AND expires_at <= $2 RETURNING origin, owner",
            &[id.into(), now.into()],
        )
        .await?;
    uncount_clients(link, removed).await
}

/// The row stays the same incarnation, so what the client was granted stays.
async fn replace(
    link: &mut dyn Connection,
    before: &Client,
    after: &Client,
) -> Result<bool, Failure> {
    let secrets = secrets_text(&after.secrets);
    let search = search_text(&after.id, &after.metadata);
    let replaced = link
        .query(
            "UPDATE oidc_clients SET origin = $1, owner = $2, secrets = $3, \
             metadata = $4, updated_at = $5, expires_at = NULL, \
             version = $6, search = $9 WHERE id = $7 AND version = $8 AND removed_at IS NULL RETURNING id",
            &[
                origin_text(after.origin).into(),
                after.owner.as_deref().into(),
                (&secrets).into(),
                (&after.metadata).into(),
                after.updated_at.into(),
                after.version.into(),
                (&after.id).into(),
                before.version.into(),
                (&search).into(),
            ],
        )
        .await?;
    if before.origin == ClientOrigin::Registered && !replaced.is_empty() {
        uncount_registration(link, before.owner.as_deref()).await?;
    }
    Ok(!replaced.is_empty())
}

async fn remove(
    link: &mut dyn Connection,
    client: &Client,
    now: Timestamp,
) -> Result<bool, Failure> {
    let removed = link
        .query(
            "UPDATE oidc_clients SET removed_at = $1 \
             WHERE id = $2 AND version = $3 AND removed_at IS NULL RETURNING id",
            &[now.into(), (&client.id).into(), client.version.into()],
        )
        .await?;
    Ok(!removed.is_empty())
}
