//! What each call of the store does, in statements that SQLite and PostgreSQL both understand.
//!
//! Invariants
//! - What may happen once is decided by one statement that changes a row only while it still is as
//!   it must be, and says whether it did. So it holds for any number of processes, at PostgreSQL's
//!   isolation level `READ COMMITTED`.
//! - Every statement that reads leaves out what has expired, and what belongs to a client that is
//!   removed or has expired.
//! - A statement that deletes many rows has a limit.

use std::time::Duration;

use futures_util::{FutureExt as _, future::BoxFuture};
use jiff::{SignedDuration, Timestamp};

use super::{
    AccessToken, AddedClient, Client, ClientOrigin, ClientSecret, Code, DeviceDecision, DevicePoll,
    DeviceRequest, Digest, EndedSession, Grant, GrantId, GrantsOf, Imported, Issue, Issued,
    Presented, PushedRequest, RefreshToken, RegistrationLimits, Session, SessionId, Swept,
    database::{Connection, Failure, Row},
    secret::{Proof, random},
};

type Outcome<'c, T> = BoxFuture<'c, Result<T, Failure>>;
type Link<'c> = &'c mut dyn Connection;

pub(crate) fn check<'c>(link: Link<'c>, (): &'c ()) -> Outcome<'c, ()> {
    async move {
        link.query("SELECT version FROM oidc_schema", &[]).await?;
        Ok(())
    }
    .boxed()
}

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

// Clients

macro_rules! client_columns {
    () => {
        "id, origin, owner, secrets, registration_token, metadata, created_at, updated_at, \
         expires_at, version"
    };
}

/// Under which the registered clients of all owners are counted.
const ALL_OWNERS: &str = "";

fn read_client(mut row: Row) -> Result<Client, Failure> {
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

fn origin_text(origin: ClientOrigin) -> &'static str {
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

fn secrets_text(secrets: &[ClientSecret]) -> String {
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
async fn insert_client(link: &mut dyn Connection, client: &Client) -> Result<bool, Failure> {
    let secrets = secrets_text(&client.secrets);
    let added = link
        .query(
            "INSERT INTO oidc_clients (id, origin, owner, secrets, registration_token, metadata, \
             created_at, updated_at, expires_at, version, incarnation) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 1) \
             ON CONFLICT (id) DO UPDATE SET origin = excluded.origin, owner = excluded.owner, \
             secrets = excluded.secrets, registration_token = excluded.registration_token, \
             metadata = excluded.metadata, created_at = excluded.created_at, \
             updated_at = excluded.updated_at, expires_at = excluded.expires_at, \
             version = excluded.version, incarnation = oidc_clients.incarnation + 1, \
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

pub(crate) fn replace_client<'c>(
    link: Link<'c>,
    (client, now): &'c (Client, Timestamp),
) -> Outcome<'c, bool> {
    async move {
        let secrets = secrets_text(&client.secrets);
        let replaced = link
            .query(
                "UPDATE oidc_clients SET secrets = $1, registration_token = $2, metadata = $3, \
                 updated_at = $4, expires_at = $5, version = version + 1 \
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
async fn uncount_clients(link: &mut dyn Connection, removed: Vec<Row>) -> Result<(), Failure> {
    for mut row in removed {
        if origin(&row.text()?)? == ClientOrigin::Registered {
            uncount_client(link, ALL_OWNERS).await?;
            if let Some(owner) = row.opt_text()? {
                uncount_client(link, &owner).await?;
            }
        }
    }
    Ok(())
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

// Grants

fn read_grant(row: &mut Row) -> Result<Grant, Failure> {
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
struct State {
    expires_at: Timestamp,
    code: Option<Code>,
    redeemed_at: Option<Timestamp>,
    refresh: Option<Digest>,
    refresh_expires_at: Option<Timestamp>,
}

async fn insert_grant(
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
fn end_of(issue: &Issue, now: Timestamp) -> Timestamp {
    let access = issue.access.as_ref().map(|token| token.expires_at);
    access.max(issue.refresh_until).unwrap_or(now)
}

async fn insert_access_token(
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

fn common(of: &GrantsOf) -> super::database::Value<'_> {
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

// Sessions

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

pub(crate) fn sessions<'c>(
    link: Link<'c>,
    (subject, limit, now): &'c (String, u32, Timestamp),
) -> Outcome<'c, Vec<Session>> {
    async move {
        let found = link
            .query(
                concat!(
                    "SELECT ",
                    session_columns!(),
                    " FROM oidc_sessions WHERE subject = $1 AND expires_at > $2 \
                     ORDER BY created_at DESC LIMIT $3"
                ),
                &[subject.into(), (*now).into(), (*limit).into()],
            )
            .await?;
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

// Pushed requests

fn read_pushed_request(mut row: Row) -> Result<PushedRequest, Failure> {
    Ok(PushedRequest {
        reference: row.digest()?,
        client_id: row.text()?,
        parameters: row.text()?,
        expires_at: row.time()?,
    })
}

pub(crate) fn push_request<'c>(link: Link<'c>, request: &'c PushedRequest) -> Outcome<'c, ()> {
    async move {
        link.query(
            "INSERT INTO oidc_pushed_requests (reference, client_id, parameters, expires_at) \
             VALUES ($1, $2, $3, $4)",
            &[
                (&request.reference).into(),
                (&request.client_id).into(),
                (&request.parameters).into(),
                request.expires_at.into(),
            ],
        )
        .await?;
        Ok(())
    }
    .boxed()
}

pub(crate) fn pushed_request<'c>(
    link: Link<'c>,
    (reference, now): &'c (Digest, Timestamp),
) -> Outcome<'c, Option<PushedRequest>> {
    async move {
        let found = link
            .query(
                "SELECT reference, client_id, parameters, expires_at FROM oidc_pushed_requests \
                 WHERE reference = $1 AND expires_at > $2",
                &[reference.into(), (*now).into()],
            )
            .await?;
        found
            .into_iter()
            .next()
            .map(read_pushed_request)
            .transpose()
    }
    .boxed()
}

pub(crate) fn take_pushed_request<'c>(
    link: Link<'c>,
    (reference, now): &'c (Digest, Timestamp),
) -> Outcome<'c, Option<PushedRequest>> {
    async move {
        let taken = link
            .query(
                "DELETE FROM oidc_pushed_requests WHERE reference = $1 AND expires_at > $2 \
                 RETURNING reference, client_id, parameters, expires_at",
                &[reference.into(), (*now).into()],
            )
            .await?;
        taken
            .into_iter()
            .next()
            .map(read_pushed_request)
            .transpose()
    }
    .boxed()
}

// Devices

/// A device that is too fast is made slower by this many seconds (RFC 8628, section 3.5).
const SLOWER: u32 = 5;
/// And never slower than this.
const SLOWEST: u32 = 600;

pub(crate) fn start_device<'c>(
    link: Link<'c>,
    (device, now): &'c (DeviceRequest, Timestamp),
) -> Outcome<'c, bool> {
    async move {
        // People type user codes, so they are short and come again.
        link.query(
            "DELETE FROM oidc_devices WHERE user_code = $1 AND expires_at <= $2",
            &[(&device.user_code).into(), (*now).into()],
        )
        .await?;
        let started = link
            .query(
                "INSERT INTO oidc_devices (device_code, user_code, client_id, details, \
                 created_at, expires_at, poll_interval) VALUES ($1, $2, $3, $4, $5, $6, $7) \
                 ON CONFLICT DO NOTHING RETURNING device_code",
                &[
                    (&device.device_code).into(),
                    (&device.user_code).into(),
                    (&device.client_id).into(),
                    (&device.details).into(),
                    device.created_at.into(),
                    device.expires_at.into(),
                    device.interval.into(),
                ],
            )
            .await?;
        Ok(!started.is_empty())
    }
    .boxed()
}

pub(crate) fn device<'c>(
    link: Link<'c>,
    (user_code, now): &'c (Digest, Timestamp),
) -> Outcome<'c, Option<DeviceRequest>> {
    async move {
        let found = link
            .query(
                "SELECT device_code, user_code, client_id, details, created_at, expires_at, \
                 poll_interval FROM oidc_devices \
                 WHERE user_code = $1 AND expires_at > $2 AND approved IS NULL",
                &[user_code.into(), (*now).into()],
            )
            .await?;
        let Some(mut row) = found.into_iter().next() else {
            return Ok(None);
        };
        Ok(Some(DeviceRequest {
            device_code: row.digest()?,
            user_code: row.digest()?,
            client_id: row.text()?,
            details: row.text()?,
            created_at: row.time()?,
            expires_at: row.time()?,
            interval: seconds(row.int()?),
        }))
    }
    .boxed()
}

fn seconds(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(SLOWEST)
}

pub(crate) fn decide_device<'c>(
    link: Link<'c>,
    (user_code, decision, now): &'c (Digest, DeviceDecision, Timestamp),
) -> Outcome<'c, bool> {
    async move {
        let approved = i64::from(matches!(decision, DeviceDecision::Approved(_)));
        let decided = link
            .query(
                "UPDATE oidc_devices SET approved = $3 \
                 WHERE user_code = $1 AND expires_at > $2 AND approved IS NULL \
                 RETURNING device_code, client_id, expires_at",
                &[user_code.into(), (*now).into(), approved.into()],
            )
            .await?;
        let Some(mut row) = decided.into_iter().next() else {
            return Ok(false);
        };
        let (digest, client_id, expires_at) = (row.digest()?, row.text()?, row.time()?);
        if let DeviceDecision::Approved(grant) = decision {
            if grant.client_id != client_id {
                return Err(Failure::Broken(
                    "a device is to be approved for another client".to_owned(),
                ));
            }
            let state = State {
                expires_at,
                code: Some(Code { digest, expires_at }),
                ..State::default()
            };
            insert_grant(link, grant, &state).await?;
        }
        Ok(true)
    }
    .boxed()
}

pub(crate) fn poll_device<'c>(
    link: Link<'c>,
    (device_code, now): &'c (Digest, Timestamp),
) -> Outcome<'c, DevicePoll> {
    async move {
        let found = link
            .query(
                "SELECT poll_interval, polled_at, approved FROM oidc_devices \
                 WHERE device_code = $1 AND expires_at > $2",
                &[device_code.into(), (*now).into()],
            )
            .await?;
        let Some(mut row) = found.into_iter().next() else {
            return Ok(DevicePoll::Unknown);
        };
        let (mut interval, polled_at) = (seconds(row.int()?), row.opt_time()?);
        match row.opt_int()? {
            Some(1) => return Ok(DevicePoll::Approved),
            Some(_) => return Ok(DevicePoll::Denied),
            None => {}
        }
        let early = polled_at.is_some_and(|polled_at| {
            now.duration_since(polled_at) < SignedDuration::from_secs(interval.into())
        });
        if early {
            interval = (interval + SLOWER).min(SLOWEST);
        }
        link.query(
            "UPDATE oidc_devices SET polled_at = $2, poll_interval = $3 WHERE device_code = $1",
            &[device_code.into(), (*now).into(), interval.into()],
        )
        .await?;
        Ok(if early {
            DevicePoll::SlowDown { interval }
        } else {
            DevicePoll::Pending
        })
    }
    .boxed()
}

// Assertions

pub(crate) fn use_assertion<'c>(
    link: Link<'c>,
    (assertion, expires_at, now): &'c (Digest, Timestamp, Timestamp),
) -> Outcome<'c, bool> {
    async move {
        let first = link
            .query(
                "INSERT INTO oidc_assertions (digest, expires_at) VALUES ($1, $2) \
                 ON CONFLICT (digest) DO UPDATE SET expires_at = excluded.expires_at \
                 WHERE oidc_assertions.expires_at <= $3 RETURNING digest",
                &[assertion.into(), (*expires_at).into(), (*now).into()],
            )
            .await?;
        Ok(!first.is_empty())
    }
    .boxed()
}

// The sweep

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
