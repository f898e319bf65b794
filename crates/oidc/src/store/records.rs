//! What the store remembers, in the words of OAuth 2.0 and OpenID Connect.
//!
//! `details` and `metadata` are JSON texts whose meaning belongs to the protocol; the store keeps
//! them as they are. What the store itself must find, compare or let expire has a field.

use jiff::Timestamp;

use super::{Digest, GrantId, SessionId};

/// Where a client came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientOrigin {
    /// An administrator's page or command.
    Admin,
    /// A file of clients, applied at the start.
    File,
    /// Dynamic registration (RFC 7591).
    Registered,
    /// Imported from tsidp's `oidc-funnel-clients.json`.
    Tsidp,
}

impl ClientOrigin {
    /// Who may change the client, in a word for people: its file, the client itself, or whoever
    /// administers.
    pub fn owner(self) -> &'static str {
        match self {
            Self::Admin | Self::Tsidp => "manual",
            Self::File => "file",
            Self::Registered => "registered",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    pub id: String,
    pub origin: ClientOrigin,
    /// Who registered it, for limits per caller; the name of its file, for one of
    /// [`ClientOrigin::File`]; `None` for all others.
    pub owner: Option<String>,
    /// Several while a secret is being exchanged; none for a public client.
    pub secrets: Vec<ClientSecret>,
    /// The registration access token (RFC 7592).
    pub registration_token: Option<Digest>,
    /// JSON, as `client` reads it.
    pub metadata: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// An unused registration ends then.
    pub expires_at: Option<Timestamp>,
    /// Grows by one with each change. [`super::Store::replace_client`] compares it.
    pub version: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientSecret {
    pub digest: Digest,
    pub created_at: Timestamp,
    /// `None` for a secret that stays valid.
    pub expires_at: Option<Timestamp>,
}

/// Which clients an administrator looks for, a page at a time in the order of their ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientQuery {
    /// What the id, the name or a redirect URI has in it, whatever the case; empty: any.
    pub text: String,
    pub origin: Option<ClientOrigin>,
    /// The last id of the page before.
    pub after: Option<String>,
    pub limit: u32,
}

/// How many registered clients there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegistrationLimits {
    pub total: u32,
    /// Of one [`Client::owner`].
    pub per_owner: u32,
}

/// What became of a new client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddedClient {
    Added,
    /// A client of this id is there.
    Exists,
    TooMany,
    TooManyOfOwner,
}

/// How the clients of files are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApplyOptions {
    pub mode: ApplyMode,
    pub without_file: WithoutFile,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApplyMode {
    /// Only says what would change.
    Preview,
    Write,
}

/// What becomes of a client whose file is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithoutFile {
    Keep,
    Remove,
}

/// What files do to a client, whose id is that of each record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientChange {
    Added(Client),
    Changed {
        before: Box<Client>,
        after: Box<Client>,
    },
    /// Its file is gone, and it stays as it is.
    Kept(Client),
    Removed(Client),
    Unchanged(Client),
}

impl ClientChange {
    pub fn client(&self) -> &Client {
        match self {
            Self::Changed { after, .. } => after,
            Self::Added(client)
            | Self::Kept(client)
            | Self::Removed(client)
            | Self::Unchanged(client) => client,
        }
    }
}

/// What became of clients of another program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Imported {
    /// Ids of those that were added, and of those whose id was taken.
    Now {
        added: Vec<String>,
        taken: Vec<String>,
    },
    /// It was done at an earlier start.
    Before,
}

/// What a user or a machine granted to a client: the family of all codes and tokens that come of
/// one authorization. It is revoked as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub id: GrantId,
    pub client_id: String,
    /// The user; `None` if a client acts for itself.
    pub subject: Option<String>,
    pub session: Option<SessionId>,
    pub created_at: Timestamp,
    /// JSON: scopes, resources, nonce, redirect URI, challenge, who it was.
    pub details: String,
}

/// A code of the authorization endpoint, or of the device grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    pub digest: Digest,
    pub expires_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessToken {
    pub digest: Digest,
    /// To whom it was given: another than the grant's after a token exchange.
    pub client_id: String,
    pub issued_at: Timestamp,
    pub expires_at: Timestamp,
    /// JSON: scopes, audiences, actor.
    pub details: String,
}

/// What a grant gives at the token endpoint. All of it is stored, or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    pub access: Option<AccessToken>,
    /// The end of the refresh token that is to be made.
    pub refresh_until: Option<Timestamp>,
    /// Replaces the grant's details.
    pub details: Option<String>,
}

/// What came of an [`Issue`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    pub refresh: Option<super::RefreshToken>,
}

/// What is known of a code or refresh token that somebody presents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presented<T> {
    Valid(T),
    /// It was used before. Its grant is revoked, with everything that came of it.
    Reused(GrantId),
    /// Never given, expired, or revoked.
    Unknown,
}

/// Grants that have something in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrantsOf {
    Client(String),
    Session(SessionId),
    Subject(String),
}

/// Sessions that have something in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionsOf {
    All,
    /// Those in which a client was granted something that lives.
    Client(String),
    /// Those whose details have this text in them.
    Details(String),
    Subject(String),
}

/// A browser session: that this person, at this browser, meant to log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub id: SessionId,
    /// What the browser presents.
    pub cookie: Digest,
    pub subject: String,
    /// When the person last confirmed (`auth_time`).
    pub authenticated_at: Timestamp,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    /// JSON.
    pub details: String,
}

/// A session that has ended, and the clients that were given something in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedSession {
    pub session: Session,
    pub clients: Vec<String>,
}

/// Parameters of an authorization request, kept for a `request_uri` (RFC 9126) or for the page
/// that asks the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedRequest {
    /// Of the reference that is presented.
    pub reference: Digest,
    pub client_id: String,
    /// As the protocol wrote them.
    pub parameters: String,
    pub expires_at: Timestamp,
}

/// A device that waits for its user (RFC 8628).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRequest {
    pub device_code: Digest,
    pub user_code: Digest,
    pub client_id: String,
    /// JSON: scopes and resources that the device asks for.
    pub details: String,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    /// Seconds that must lie between two polls.
    pub interval: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceDecision {
    /// The device code becomes the grant's code.
    Approved(Grant),
    Denied,
}

/// What a device hears when it polls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DevicePoll {
    /// [`super::Store::present_code`] knows the device code now.
    Approved,
    Denied,
    Pending,
    /// It polled too early. From now on it must wait this many seconds.
    SlowDown {
        interval: u32,
    },
    /// Never given, or expired.
    Unknown,
}

/// How many rows of each kind have not expired. A grant of a client that was removed counts until
/// the sweep has deleted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LiveRows {
    pub access_tokens: u64,
    pub assertions: u64,
    pub clients: u64,
    pub devices: u64,
    pub grants: u64,
    pub pushed_requests: u64,
    pub sessions: u64,
}

/// What one call of [`super::Store::sweep`] deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    pub rows: u64,
    /// Whether more may be waiting.
    pub more: bool,
}
