//! Administration: clients with their secrets, sessions and grants. Each interface for
//! administrators stands on these operations.
//!
//! Invariants
//! - A secret is told by the operation that makes it, and never again.
//! - What is changed is what was read. If somebody else changes it meanwhile, the change is made
//!   anew on what is there then, or refused if the administrator named a version.
//! - What a file says about a client is changed in that file alone.
//!
//! Who may administer, and the audit lines, are for the interfaces.

use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{
    Provider,
    authorization::SessionDetails,
    login_of, no_random,
    registration::{TRIES, fit_secrets, new_secret, stored},
    store_failed, written,
};
use crate::{
    OidcError,
    client::{ClientMetadata, Login},
    grant::GrantDetails,
    store::{
        AddedClient, Client, ClientOrigin, ClientQuery, ClientSecret, Grant, GrantName, GrantsOf,
        Session, SessionId, SessionsOf, random_token,
    },
};

/// The most entries of one answer.
const MOST: u32 = 500;

/// The most secrets of a client.
const MAX_SECRETS: usize = 10;

/// The longest id that an administrator gives a client, in bytes.
const MAX_ID: usize = 128;

/// The longest text that is searched for, in bytes.
const MAX_SEARCH: usize = 256;

/// A client of the store, and what it says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientEntry {
    pub client: Client,
    pub metadata: ClientMetadata,
    /// Whether its logins show a page, also where the metadata leaves it open.
    pub login: Login,
}

/// Clients in the order of their ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientPage {
    pub clients: Vec<ClientEntry>,
    /// Where the next page begins ([`ClientQuery::after`]).
    pub next: Option<String>,
}

/// A client that an administrator makes.
#[derive(Debug, Clone, Copy)]
pub struct NewClient<'a> {
    /// Chosen by the server if empty.
    pub id: &'a str,
    /// The members of a registration (RFC 7591) and `login`, as JSON.
    pub metadata: &'a str,
    /// When its first secret ends.
    pub secret_until: Option<Timestamp>,
}

/// A client as it is after a change.
#[derive(Debug)]
pub struct MadeClient {
    pub entry: ClientEntry,
    /// Made by this change.
    pub secret: Option<Zeroizing<String>>,
}

/// A secret that was made.
#[derive(Debug)]
pub struct MadeSecret {
    pub stored: ClientSecret,
    pub secret: Zeroizing<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEntry {
    pub session: Session,
    /// The person's login when the session began or was renewed; empty if nobody noted it.
    pub login: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct GrantEntry {
    pub grant: Grant,
    pub details: GrantDetails,
}

/// The first of what was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed<T> {
    pub entries: Vec<T>,
    /// There are others, which are not listed.
    pub more: bool,
}

/// Names a secret to administrators: the first 16 digits of its digest.
pub fn secret_name(secret: &ClientSecret) -> String {
    let mut name = secret.digest.text();
    name.truncate(16);
    name
}

impl Provider {
    pub async fn find_clients(
        &self,
        query: &ClientQuery,
        now: Timestamp,
    ) -> Result<ClientPage, OidcError> {
        check_search(&query.text)?;
        let limit = match query.limit {
            0 => MOST,
            limit => limit.min(MOST),
        };
        let one_more = ClientQuery {
            limit: limit + 1,
            ..query.clone()
        };
        let found = self.store.find_clients(&one_more, now).await;
        let mut clients = found.map_err(store_failed)?;
        let more = clients.len() > limit as usize;
        clients.truncate(limit as usize);
        let next = clients.last().filter(|_| more).map(|last| last.id.clone());
        Ok(ClientPage {
            clients: clients.into_iter().map(entry_of).collect(),
            next,
        })
    }

    pub async fn client_entry(&self, id: &str, now: Timestamp) -> Result<ClientEntry, OidcError> {
        let found = self.store.client(id, now).await.map_err(store_failed)?;
        found.map(entry_of).ok_or_else(no_client)
    }

    pub async fn create_client(
        &self,
        new: NewClient<'_>,
        now: Timestamp,
    ) -> Result<MadeClient, OidcError> {
        check_end(new.secret_until, now)?;
        let metadata = self.read_administered(&members(new.metadata)?)?;
        self.check_sector(&metadata).await?;
        let id = if new.id.is_empty() {
            random_token().map_err(no_random)?.to_string()
        } else {
            check_id(new.id)?;
            new.id.to_owned()
        };
        let mut secrets = Vec::new();
        let secret = fit_secrets(&mut secrets, &metadata, now)?;
        if let Some(first) = secrets.first_mut() {
            first.expires_at = new.secret_until;
        } else if new.secret_until.is_some() {
            return Err(no_secrets());
        }
        let client = Client {
            id,
            origin: ClientOrigin::Admin,
            owner: None,
            secrets,
            registration_token: None,
            metadata: metadata.to_stored().map_err(written)?,
            created_at: now,
            updated_at: now,
            expires_at: None,
            version: 0,
        };
        let added = self.store.add_client(&client, None).await;
        if added.map_err(store_failed)? != AddedClient::Added {
            return Err(OidcError::new(
                StatusCode::PRECONDITION_FAILED,
                "client_exists",
                "there is a client with this id",
            ));
        }
        tracing::info!(target: "oidc", client_id = client.id, name = metadata.client_name, "a client was added");
        Ok(MadeClient {
            entry: entry_of(client),
            secret,
        })
    }

    /// Gives members of the metadata other values; `null` takes one away. With a version, only
    /// what was read as that one is changed.
    pub async fn change_client(
        &self,
        id: &str,
        changes: &str,
        version: Option<i64>,
        now: Timestamp,
    ) -> Result<MadeClient, OidcError> {
        let changes = members(changes)?;
        let mut secret = None;
        let entry = self
            .replace(id, version, now, |entry| {
                let mut all = match serde_json::to_value(&entry.metadata) {
                    Ok(Value::Object(all)) => all,
                    _ => Map::new(),
                };
                for (name, value) in changes.clone() {
                    if value.is_null() {
                        all.remove(&name);
                    } else {
                        all.insert(name, value);
                    }
                }
                entry.metadata = self.read_administered(&all)?;
                entry.client.metadata = entry.metadata.to_stored().map_err(written)?;
                secret = fit_secrets(&mut entry.client.secrets, &entry.metadata, now)?;
                Ok(())
            })
            .await?;
        Ok(MadeClient { entry, secret })
    }

    /// Removes a client with all that it was given.
    pub async fn delete_client(&self, id: &str, now: Timestamp) -> Result<(), OidcError> {
        let entry = self.client_entry(id, now).await?;
        check_owner(&entry.client)?;
        if self.remove_client(id, now).await? {
            Ok(())
        } else {
            Err(no_client())
        }
    }

    /// Makes one more secret. Those that have ended are forgotten.
    pub async fn add_secret(
        &self,
        id: &str,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<MadeSecret, OidcError> {
        check_end(until, now)?;
        let secret = new_secret()?;
        let kept = stored(&secret, until, now);
        self.replace(id, None, now, |entry| {
            if !entry.metadata.token_endpoint_auth_method.has_secret() {
                return Err(no_secrets());
            }
            let secrets = &mut entry.client.secrets;
            secrets.retain(|one| is_valid(one, now));
            if secrets.len() >= MAX_SECRETS {
                return Err(precondition(
                    "too_many_secrets",
                    "the client has ten secrets: remove one first",
                ));
            }
            secrets.push(kept);
            Ok(())
        })
        .await?;
        Ok(MadeSecret {
            stored: kept,
            secret,
        })
    }

    /// Removes the secret of this name ([`secret_name`]); the last valid one only with `force`.
    pub async fn remove_secret(
        &self,
        id: &str,
        name: &str,
        force: bool,
        now: Timestamp,
    ) -> Result<ClientEntry, OidcError> {
        self.replace(id, None, now, |entry| {
            let secrets = &mut entry.client.secrets;
            let before = secrets.len();
            let (removed, kept): (Vec<_>, Vec<_>) =
                secrets.drain(..).partition(|one| secret_name(one) == name);
            if kept.len() == before {
                let words = "the client has no such secret";
                return Err(OidcError::new(
                    StatusCode::NOT_FOUND,
                    "secret_not_found",
                    words,
                ));
            }
            let valid = |secrets: &[ClientSecret]| secrets.iter().any(|one| is_valid(one, now));
            if valid(&removed) && !valid(&kept) && !force {
                return Err(precondition(
                    "last_secret",
                    "this is the last valid secret, without which the client cannot \
                     authenticate. Nothing was changed; force removes it anyway",
                ));
            }
            *secrets = kept;
            Ok(())
        })
        .await
    }

    /// Changes what was read, and reads again if somebody else was faster.
    async fn replace(
        &self,
        id: &str,
        version: Option<i64>,
        now: Timestamp,
        mut change: impl FnMut(&mut ClientEntry) -> Result<(), OidcError>,
    ) -> Result<ClientEntry, OidcError> {
        let conflict = || {
            OidcError::new(
                StatusCode::CONFLICT,
                "client_changed",
                "somebody else has changed the client: read it again",
            )
        };
        for _ in 0..TRIES {
            let mut entry = self.client_entry(id, now).await?;
            if version.is_some_and(|version| version != entry.client.version) {
                return Err(conflict());
            }
            check_owner(&entry.client)?;
            let before = entry.metadata.clone();
            change(&mut entry)?;
            if entry.metadata.sector_identifier_uri != before.sector_identifier_uri
                || entry.metadata.redirect_uris != before.redirect_uris
            {
                self.check_sector(&entry.metadata).await?;
            }
            let replaced = self.store.replace_client(&entry.client, now).await;
            if replaced.map_err(store_failed)? {
                entry.client.updated_at = now;
                entry.client.version += 1;
                return Ok(entry_of(entry.client));
            }
        }
        Err(conflict())
    }

    fn read_administered(&self, members: &Map<String, Value>) -> Result<ClientMetadata, OidcError> {
        self.read_metadata(|offered| ClientMetadata::administered(members, offered))
    }

    /// Of all people, of a client or of a user, the newest first.
    pub async fn find_sessions(
        &self,
        of: &SessionsOf,
        now: Timestamp,
    ) -> Result<Listed<SessionEntry>, OidcError> {
        let found = self.store.find_sessions(of, MOST + 1, now).await;
        let sessions = found.map_err(store_failed)?.into_iter();
        Ok(first(sessions.map(session_entry)))
    }

    /// Ends a session with all that was granted in it, and lets its clients know.
    pub async fn end_session_of(&self, id: SessionId, now: Timestamp) -> Result<(), OidcError> {
        if self.end_session(id, now).await? {
            return Ok(());
        }
        Err(OidcError::new(
            StatusCode::NOT_FOUND,
            "session_not_found",
            "there is no such session",
        ))
    }

    /// Ends all of them and says how many there were.
    pub async fn end_sessions(&self, of: &SessionsOf, now: Timestamp) -> Result<u64, OidcError> {
        let mut ended = 0;
        loop {
            let found = self.store.find_sessions(of, MOST, now).await;
            let found = found.map_err(store_failed)?;
            let before = ended;
            for session in found {
                ended += u64::from(self.end_session(session.id, now).await?);
            }
            if ended == before {
                return Ok(ended);
            }
        }
    }

    /// The newest first. Codes that nobody has redeemed do not count.
    pub async fn find_grants(
        &self,
        of: &GrantsOf,
        now: Timestamp,
    ) -> Result<Listed<GrantEntry>, OidcError> {
        let found = self.store.grants(of, MOST + 1, now).await;
        let grants = found.map_err(store_failed)?.into_iter();
        Ok(first(grants.map(grant_entry)))
    }

    /// Ends a grant with all of its tokens, and says whose it was.
    pub async fn revoke_named(
        &self,
        name: GrantName,
        now: Timestamp,
    ) -> Result<GrantEntry, OidcError> {
        let found = self.store.grant_named(name, now).await;
        if let Some(grant) = found.map_err(store_failed)? {
            let revoked = self.store.revoke_grant(grant.id, now).await;
            if revoked.map_err(store_failed)? {
                return Ok(grant_entry(grant));
            }
        }
        Err(OidcError::new(
            StatusCode::NOT_FOUND,
            "grant_not_found",
            "there is no such grant",
        ))
    }

    /// Ends all of them and says how many there were.
    pub async fn revoke_all(&self, of: &GrantsOf) -> Result<u64, OidcError> {
        self.store.revoke_grants(of).await.map_err(store_failed)
    }

    /// The user that an administrator names: by `userid:` and a number, by the number alone, or by
    /// a login that somebody has in a session.
    pub async fn subject_of(&self, user: &str, now: Timestamp) -> Result<String, OidcError> {
        let number = user.strip_prefix("userid:").unwrap_or(user);
        if number.parse::<i64>().is_ok() {
            return Ok(format!("userid:{number}"));
        }
        check_search(user)?;
        let noted = format!("\"login\":{}", Value::from(user));
        let of = SessionsOf::Details(noted);
        let found = self.store.find_sessions(&of, MOST, now).await;
        let mut subjects: Vec<String> = found
            .map_err(store_failed)?
            .into_iter()
            .map(session_entry)
            .filter(|entry| entry.login.eq_ignore_ascii_case(user))
            .map(|entry| entry.session.subject)
            .collect();
        subjects.sort();
        subjects.dedup();
        let mut subjects = subjects.into_iter();
        match (subjects.next(), subjects.next()) {
            (Some(subject), None) => Ok(subject),
            (None, _) => Err(OidcError::new(
                StatusCode::NOT_FOUND,
                "user_not_found",
                "nobody with this login has a session: name the user by userid: and number",
            )),
            (Some(_), Some(_)) => Err(OidcError::bad(
                "ambiguous_user",
                "several users have had this login: name one by userid: and number",
            )),
        }
    }
}

fn entry_of(client: Client) -> ClientEntry {
    // One that cannot be read logs nobody in, and its administrator must see it all the same.
    let metadata = ClientMetadata::from_stored(&client.metadata).unwrap_or_default();
    ClientEntry {
        login: login_of(&client, &metadata),
        client,
        metadata,
    }
}

fn session_entry(session: Session) -> SessionEntry {
    let details: SessionDetails = serde_json::from_str(&session.details).unwrap_or_default();
    SessionEntry {
        session,
        login: details.login,
    }
}

fn grant_entry(grant: Grant) -> GrantEntry {
    let details = serde_json::from_str(&grant.details).unwrap_or_default();
    GrantEntry { grant, details }
}

/// What was found, but for the one that was asked for to see whether there are more.
fn first<T>(found: impl Iterator<Item = T>) -> Listed<T> {
    let mut entries: Vec<T> = found.collect();
    let more = entries.len() > MOST as usize;
    entries.truncate(MOST as usize);
    Listed { entries, more }
}

fn members(json: &str) -> Result<Map<String, Value>, OidcError> {
    serde_json::from_str(json).map_err(|_| {
        OidcError::bad(
            "invalid_client_metadata",
            "the metadata is not an object of JSON",
        )
    })
}

/// An id stands in addresses, in forms and before the colon of Basic.
fn check_id(id: &str) -> Result<(), OidcError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~');
    if id.len() <= MAX_ID && id.chars().all(fits) && id != "new" {
        return Ok(());
    }
    Err(OidcError::bad(
        "bad_client_id",
        "a client id has 1 to 128 letters, digits, and -._~, and is not the word new",
    ))
}

fn check_end(until: Option<Timestamp>, now: Timestamp) -> Result<(), OidcError> {
    if until.is_some_and(|until| until <= now) {
        let words = "the end of a secret must be in the future";
        return Err(OidcError::bad("bad_secret_end", words));
    }
    Ok(())
}

fn check_search(text: &str) -> Result<(), OidcError> {
    if text.len() > MAX_SEARCH {
        let words = "the text that is searched for is longer than 256 bytes";
        return Err(OidcError::bad("bad_search", words));
    }
    Ok(())
}

fn check_owner(client: &Client) -> Result<(), OidcError> {
    if client.origin == ClientOrigin::File {
        return Err(precondition(
            "client_of_file",
            "a file describes this client: change it there",
        ));
    }
    Ok(())
}

fn is_valid(secret: &ClientSecret, now: Timestamp) -> bool {
    secret.expires_at.is_none_or(|end| end > now)
}

fn no_client() -> OidcError {
    OidcError::new(
        StatusCode::NOT_FOUND,
        "client_not_found",
        "there is no such client",
    )
}

fn no_secrets() -> OidcError {
    precondition(
        "no_secrets",
        "the client does not authenticate with a secret: token_endpoint_auth_method says how",
    )
}

fn precondition(code: &'static str, words: &'static str) -> OidcError {
    OidcError::new(StatusCode::PRECONDITION_FAILED, code, words)
}
