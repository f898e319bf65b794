//! Clients, and how many of them registered themselves.

use futures_util::FutureExt as _;
use jiff::Timestamp;

use super::{Link, Outcome, with};
use crate::store::{
    AddedClient, Client, ClientOrigin, ClientQuery, ClientSecret, Digest, Imported,
    RegistrationLimits,
    database::{Connection, Failure, Row},
};

/// Under which the registered clients of all owners are counted.
const ALL_OWNERS: &str = "";

pub(super) fn read_client(mut row: Row) -> Result<Client, Failure> {
    Ok(Client {
        id: row.text()?,
        origin: origin(&row.text()?)?,
        owner: row.opt_text()?,
        secrets: secrets_from(&row.text()?)?,
        registration_token: row.opt_digest()?,
        metadata: row.text()?,
        created_at: row.time()?,
        updated_at: row.time()?,
        expires_at: row.opt_time()?,
        version: row.int()?,
    })
}

pub(super) fn origin_text(origin: ClientOrigin) -> &'static str {
    match origin {
        ClientOrigin::Admin => "admin",
        ClientOrigin::File => "file",
        ClientOrigin::Registered => "registered",
        ClientOrigin::Tsidp => "tsidp",
    }
}

fn origin(text: &str) -> Result<ClientOrigin, Failure> {
    [
        ClientOrigin::Admin,
        ClientOrigin::File,
        ClientOrigin::Registered,
        ClientOrigin::Tsidp,
    ]
    .into_iter()
    .find(|&origin| origin_text(origin) == text)
    .ok_or_else(|| Failure::Broken(format!("a client has the unknown origin {text:?}")))
}

/// A secret's digest, start and end, as it is in the database.
type SecretRow = (String, i64, Option<i64>);

pub(super) fn secrets_text(secrets: &[ClientSecret]) -> String {
    let rows: Vec<SecretRow> = secrets
        .iter()
        .map(|secret| {
            (
                secret.digest.text(),
                secret.created_at.as_millisecond(),
                secret.expires_at.map(Timestamp::as_millisecond),
            )
        })
        .collect();
    serde_json::json!(rows).to_string()
}

fn secrets_from(text: &str) -> Result<Vec<ClientSecret>, Failure> {
    let broken = || Failure::Broken("a client's secrets cannot be read".to_owned());
    let rows: Vec<SecretRow> = serde_json::from_str(text).map_err(|_| broken())?;
    let time = |ms| Timestamp::from_millisecond(ms).map_err(|_| broken());
    rows.into_iter()
        .map(|(digest, created, expires)| {
            Ok(ClientSecret {
                digest: Digest::parse(&digest).ok_or_else(broken)?,
                created_at: time(created)?,
                expires_at: expires.map(time).transpose()?,
            })
        })
        .collect()
}

pub(crate) fn add_client<'c>(
    link: Link<'c>,
    (client, limits): &'c (Client, Option<RegistrationLimits>),
) -> Outcome<'c, AddedClient> {
    async move {
        let taken = "SELECT 1 FROM oidc_clients WHERE id = $1 AND removed_at IS NULL";
        if !link.query(taken, &[(&client.id).into()]).await?.is_empty() {
            return Ok(AddedClient::Exists);
        }
        if client.origin == ClientOrigin::Registered {
            let unlimited = RegistrationLimits {
                total: u32::MAX,
                per_owner: u32::MAX,
            };
            let limits = limits.unwrap_or(unlimited);
            if !count_client(link, ALL_OWNERS, limits.total).await? {
                return Ok(AddedClient::TooMany);
            }
            if let Some(owner) = &client.owner
                && !count_client(link, owner, limits.per_owner).await?
            {
                uncount_client(link, ALL_OWNERS).await?;
                return Ok(AddedClient::TooManyOfOwner);
            }
        }
        if !insert_client(link, client).await? {
            return Err(Failure::Again("two clients of one id".to_owned()));
        }
        Ok(AddedClient::Added)
    }
    .boxed()
}

/// `false` if there is a client of this id. One that is removed gives way to a new incarnation.
pub(super) async fn insert_client(
    link: &mut dyn Connection,
    client: &Client,
) -> Result<bool, Failure> {
    let secrets = secrets_text(&client.secrets);
    let search = search_text(&client.id, &client.metadata);
    let added = link
        .query(
            "INSERT INTO oidc_clients (id, origin, owner, secrets, registration_token, metadata, \
             created_at, updated_at, expires_at, version, search, incarnation) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 1) \
             ON CONFLICT (id) DO UPDATE SET origin = excluded.origin, owner = excluded.owner, \
             secrets = excluded.secrets, registration_token = excluded.registration_token, \
             metadata = excluded.metadata, created_at = excluded.created_at, \
             updated_at = excluded.updated_at, expires_at = excluded.expires_at, \
             version = excluded.version, search = excluded.search, incarnation = oidc_clients.incarnation + 1, \
             removed_at = NULL WHERE oidc_clients.removed_at IS NOT NULL RETURNING id",
            &[
                (&client.id).into(),
                origin_text(client.origin).into(),
                client.owner.as_deref().into(),
                (&secrets).into(),
                (&client.registration_token).into(),
                (&client.metadata).into(),
                client.created_at.into(),
                client.updated_at.into(),
                client.expires_at.into(),
                client.version.into(),
                (&search).into(),
            ],
        )
        .await?;
    Ok(!added.is_empty())
}

/// `false` if there are as many as there may be.
async fn count_client(link: &mut dyn Connection, owner: &str, limit: u32) -> Result<bool, Failure> {
    if limit == 0 {
        return Ok(false);
    }
    let counted = link
        .query(
            "INSERT INTO oidc_client_counts (owner, clients) VALUES ($1, 1) \
             ON CONFLICT (owner) DO UPDATE SET clients = oidc_client_counts.clients + 1 \
             WHERE oidc_client_counts.clients < $2 RETURNING clients",
            &[owner.into(), limit.into()],
        )
        .await?;
    Ok(!counted.is_empty())
}

async fn uncount_client(link: &mut dyn Connection, owner: &str) -> Result<(), Failure> {
    let fewer = "UPDATE oidc_client_counts SET clients = clients - 1 WHERE owner = $1";
    link.query(fewer, &[owner.into()]).await?;
    let none = "DELETE FROM oidc_client_counts WHERE owner = $1 AND clients <= 0";
    link.query(none, &[owner.into()]).await?;
    Ok(())
}

pub(crate) fn client<'c>(
    link: Link<'c>,
    (id, now): &'c (String, Timestamp),
) -> Outcome<'c, Option<Client>> {
    async move {
        let found = link
            .query(
                concat!(
                    "SELECT ",
                    client_columns!(),
                    " FROM oidc_clients WHERE id = $1 AND removed_at IS NULL \
                     AND (expires_at IS NULL OR expires_at > $2)"
                ),
                &[id.into(), (*now).into()],
            )
            .await?;
        found.into_iter().next().map(read_client).transpose()
    }
    .boxed()
}

pub(crate) fn clients<'c>(
    link: Link<'c>,
    (after, limit, now): &'c (Option<String>, u32, Timestamp),
) -> Outcome<'c, Vec<Client>> {
    async move {
        let found = link
            .query(
                concat!(
                    "SELECT ",
                    client_columns!(),
                    " FROM oidc_clients WHERE id > $1 AND removed_at IS NULL \
                     AND (expires_at IS NULL OR expires_at > $2) ORDER BY id LIMIT $3"
                ),
                &[
                    after.as_deref().unwrap_or_default().into(),
                    (*now).into(),
                    (*limit).into(),
                ],
            )
            .await?;
        found.into_iter().map(read_client).collect()
    }
    .boxed()
}

pub(crate) fn find_clients<'c>(
    link: Link<'c>,
    (query, now): &'c (ClientQuery, Timestamp),
) -> Outcome<'c, Vec<Client>> {
    async move {
        let pattern = with(&query.text.to_lowercase());
        let found = link
            .query(
                concat!(
                    "SELECT ",
                    client_columns!(),
                    " FROM oidc_clients WHERE id > $1 AND removed_at IS NULL \
                     AND (expires_at IS NULL OR expires_at > $2) AND search LIKE $3 ESCAPE '!' \
                     AND ($4 IS NULL OR origin = $4) ORDER BY id LIMIT $5"
                ),
                &[
                    query.after.as_deref().unwrap_or_default().into(),
                    (*now).into(),
                    (&pattern).into(),
                    query.origin.map(origin_text).into(),
                    query.limit.into(),
                ],
            )
            .await?;
        found.into_iter().map(read_client).collect()
    }
    .boxed()
}

/// The longest text that a client is found by, in bytes.
const MAX_SEARCH: usize = 4096;

/// A line each for the id, the name and the redirect URIs, in small letters.
pub(super) fn search_text(id: &str, metadata: &str) -> String {
    let metadata: serde_json::Value = serde_json::from_str(metadata).unwrap_or_default();
    let uris = metadata["redirect_uris"].as_array();
    let words = [metadata["client_name"].as_str()].into_iter();
    let words = words.chain(uris.into_iter().flatten().map(serde_json::Value::as_str));
    let mut text = id.to_lowercase();
    for word in words.flatten() {
        text.push('\n');
        text.extend(word.to_lowercase().chars().filter(|c| !c.is_control()));
    }
    text.truncate(text.floor_char_boundary(MAX_SEARCH));
    text
}

pub(crate) fn replace_client<'c>(
    link: Link<'c>,
    (client, now): &'c (Client, Timestamp),
) -> Outcome<'c, bool> {
    async move {
        let secrets = secrets_text(&client.secrets);
        let search = search_text(&client.id, &client.metadata);
        let replaced = link
            .query(
                "UPDATE oidc_clients SET secrets = $1, registration_token = $2, metadata = $3, \
                 updated_at = $4, expires_at = $5, search = $8, version = version + 1 \
                 WHERE id = $6 AND version = $7 AND removed_at IS NULL \
                 AND (expires_at IS NULL OR expires_at > $4) RETURNING id",
                &[
                    (&secrets).into(),
                    (&client.registration_token).into(),
                    (&client.metadata).into(),
                    (*now).into(),
                    client.expires_at.into(),
                    (&client.id).into(),
                    client.version.into(),
                    (&search).into(),
                ],
            )
            .await?;
        Ok(!replaced.is_empty())
    }
    .boxed()
}

pub(crate) fn extend_client<'c>(
    link: Link<'c>,
    (id, expires_at, now): &'c (String, Timestamp, Timestamp),
) -> Outcome<'c, ()> {
    async move {
        link.query(
            "UPDATE oidc_clients SET expires_at = $2 \
             WHERE id = $1 AND expires_at > $3 AND expires_at < $2 AND removed_at IS NULL",
            &[id.into(), (*expires_at).into(), (*now).into()],
        )
        .await?;
        Ok(())
    }
    .boxed()
}

pub(crate) fn remove_client<'c>(
    link: Link<'c>,
    (id, now): &'c (String, Timestamp),
) -> Outcome<'c, bool> {
    async move {
        let removed = link
            .query(
                "UPDATE oidc_clients SET removed_at = $2 \
                 WHERE id = $1 AND removed_at IS NULL \
                 AND (expires_at IS NULL OR expires_at > $2) RETURNING origin, owner",
                &[id.into(), (*now).into()],
            )
            .await?;
        let any = !removed.is_empty();
        uncount_clients(link, removed).await?;
        Ok(any)
    }
    .boxed()
}

/// Takes rows of origin and owner.
pub(super) async fn uncount_clients(
    link: &mut dyn Connection,
    removed: Vec<Row>,
) -> Result<(), Failure> {
    for mut row in removed {
        if origin(&row.text()?)? == ClientOrigin::Registered {
            let owner = row.opt_text()?;
            uncount_registration(link, owner.as_deref()).await?;
        }
    }
    Ok(())
}

pub(super) async fn uncount_registration(
    link: &mut dyn Connection,
    owner: Option<&str>,
) -> Result<(), Failure> {
    uncount_client(link, ALL_OWNERS).await?;
    match owner {
        Some(owner) => uncount_client(link, owner).await,
        None => Ok(()),
    }
}

pub(crate) fn import_clients<'c>(
    link: Link<'c>,
    (source, clients, now): &'c (String, Vec<Client>, Timestamp),
) -> Outcome<'c, Imported> {
    async move {
        let first = link
            .query(
                "INSERT INTO oidc_imports (source, imported_at) VALUES ($1, $2) \
                 ON CONFLICT DO NOTHING RETURNING source",
                &[source.into(), (*now).into()],
            )
            .await?;
        if first.is_empty() {
            return Ok(Imported::Before);
        }
        let (mut added, mut taken) = (Vec::new(), Vec::new());
        for client in clients {
            let list = if insert_client(link, client).await? {
                &mut added
            } else {
                &mut taken
            };
            list.push(client.id.clone());
        }
        Ok(Imported::Now { added, taken })
    }
    .boxed()
}
