//! The state of the provider: clients, grants and their tokens, sessions, and what may be used
//! only once.
//!
//! Invariants
//! - What a call has acknowledged survives a kill and a loss of power.
//! - A call does all of its change or nothing. Where several callers race for something that may
//!   be used once, exactly one of them has it, whichever processes they are in.
//! - Nothing stored gives access: secrets, codes, tokens and cookies are digests.
//! - What has expired is never returned, whether or not [`Store::sweep`] has come by.
//! - Time is an argument.
//!
//! A grant is the family of everything that comes of one authorization. Its code is redeemed once;
//! its refresh token is replaced at each use. Either presented again revokes the grant, and no
//! token of a revoked grant is found any more. What a code or a token may be used *for* (client,
//! redirect URI, verifier, scopes) is the protocol's business: it reads by `present_…`, decides,
//! and then calls `redeem_…` or `rotate_…`, where the race is decided.

mod calls;
mod database;
mod dump;
mod operations;
mod postgres;
mod records;
mod schema;
mod secret;
mod sqlite;
pub mod tsidp;
mod watched;

use std::{
    fmt,
    io::{Read, Write},
    path::Path,
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::Timestamp;

pub use postgres::{Postgres, PostgresError, PostgresSettings};
pub use records::*;
pub use secret::{Digest, GrantId, GrantName, NoRandom, RefreshToken, SessionId, random_token};
pub use sqlite::{OpenError, Sqlite};
pub use watched::{CallKind, Watched, Watcher};

/// Bytes of a client id, a user's name or the owner of a registration. PostgreSQL cannot put more
/// than 2700 into an index.
pub const MAX_NAME: usize = 2048;

/// What a call of the store gives, in the end.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Why the store gives no answer. None of them is the caller's fault, and none has a secret in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The database holds something that cannot be, or answers something that cannot be.
    #[error("{place}: {detail}")]
    Broken { place: String, detail: String },
    #[error("the dump cannot be read: {detail}")]
    Dump { detail: String },
    #[error("{place}: no space left on the device")]
    Full { place: String },
    #[error(transparent)]
    NoRandom(#[from] NoRandom),
    /// It may work later. Whether a change took effect is not known.
    #[error("{place}: not available: {detail}")]
    Unavailable { place: String, detail: String },
    /// A value that a database cannot hold: one with a NUL character, or a name that is longer than
    /// [`MAX_NAME`].
    #[error("{what} has a NUL character, or is longer than {MAX_NAME} bytes")]
    Unsuitable { what: &'static str },
    /// This store cannot do that; the text says what can.
    #[error("{0}")]
    Unsupported(&'static str),
}

/// Where the provider keeps its state. Both implementations pass the same list of tests.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Names the place for people and logs, without a secret.
    fn place(&self) -> &str;

    /// Whether it answers.
    fn check(&self) -> Answer<'_, ()>;

    /// Adds a client. The limits are those for dynamic registration; `None` for clients that are
    /// not counted.
    fn add_client<'a>(
        &'a self,
        client: &'a Client,
        limits: Option<RegistrationLimits>,
    ) -> Answer<'a, AddedClient>;

    fn client<'a>(&'a self, id: &'a str, now: Timestamp) -> Answer<'a, Option<Client>>;

    /// At most `limit` clients in the order of their ids, from behind `after` on.
    fn clients<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: u32,
        now: Timestamp,
    ) -> Answer<'a, Vec<Client>>;

    /// At most `query.limit` of the clients that a query finds, in the order of their ids.
    fn find_clients<'a>(
        &'a self,
        query: &'a ClientQuery,
        now: Timestamp,
    ) -> Answer<'a, Vec<Client>>;

    /// Replaces what was read as `client.version`; `false` if it was changed or removed since.
    fn replace_client<'a>(&'a self, client: &'a Client, now: Timestamp) -> Answer<'a, bool>;

    /// Lets a client with an end live until then; one without an end has none afterwards either.
    fn extend_client<'a>(
        &'a self,
        id: &'a str,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Answer<'a, ()>;

    /// Removes a client. From then on nothing of its grants is found, not even for a new client of
    /// the same id; their rows go with the sweep. `false` if there was none.
    fn remove_client<'a>(&'a self, id: &'a str, now: Timestamp) -> Answer<'a, bool>;

    /// Adds clients of another program once: nothing happens if `source` was imported before.
    /// Clients whose id is taken are left out.
    fn import_clients<'a>(
        &'a self,
        source: &'a str,
        clients: &'a [Client],
        now: Timestamp,
    ) -> Answer<'a, Imported>;

    /// Makes the clients of files those of this list, all or none of them, and says what changes,
    /// in the order of ids. A client of this id that somebody else made becomes the file's, with
    /// its grants. Callers that apply the same list at once change it once.
    fn apply_clients<'a>(
        &'a self,
        clients: &'a [Client],
        options: ApplyOptions,
        now: Timestamp,
    ) -> Answer<'a, Vec<ClientChange>>;

    /// Stores a grant whose code is given to the client.
    fn authorize<'a>(&'a self, grant: &'a Grant, code: Code) -> Answer<'a, ()>;

    /// What a code stands for. Presented again after it was redeemed, it revokes its grant.
    fn present_code(&self, code: Digest, now: Timestamp) -> Answer<'_, Presented<Grant>>;

    /// Redeems a code. Of those who race for it one has [`Presented::Valid`]; all others have
    /// [`Presented::Reused`], which takes from the winner what it was given.
    fn redeem_code<'a>(
        &'a self,
        code: Digest,
        issue: &'a Issue,
        now: Timestamp,
    ) -> Answer<'a, Presented<Issued>>;

    /// Ends a code that was presented wrongly, with its grant.
    fn burn_code(&self, code: Digest) -> Answer<'_, ()>;

    /// Stores a grant that has no code, and what it gives at once.
    fn issue<'a>(
        &'a self,
        grant: &'a Grant,
        issue: &'a Issue,
        now: Timestamp,
    ) -> Answer<'a, Issued>;

    /// Stores one more access token of a grant; `false` if the grant has ended.
    fn add_access_token<'a>(
        &'a self,
        grant: GrantId,
        token: &'a AccessToken,
        now: Timestamp,
    ) -> Answer<'a, bool>;

    /// The token and its grant, while both are alive.
    fn access_token(
        &self,
        token: Digest,
        now: Timestamp,
    ) -> Answer<'_, Option<(AccessToken, Grant)>>;

    /// `false` if there was none.
    fn revoke_access_token(&self, token: Digest, now: Timestamp) -> Answer<'_, bool>;

    /// What a refresh token stands for. One that was replaced revokes its grant, except for the
    /// last one within `grace` after it was replaced: then the answer may have been lost.
    fn present_refresh<'a>(
        &'a self,
        token: &'a RefreshToken,
        grace: Duration,
        now: Timestamp,
    ) -> Answer<'a, Presented<Grant>>;

    /// Replaces a refresh token by its successor. Whoever presents the replaced one within `grace`
    /// and before its successor was used has the same successor again, with an access token of
    /// their own. All others have [`Presented::Reused`]. `issue.refresh_until` must be given.
    fn rotate_refresh<'a>(
        &'a self,
        token: &'a RefreshToken,
        grace: Duration,
        issue: &'a Issue,
        now: Timestamp,
    ) -> Answer<'a, Presented<Issued>>;

    /// Ends a grant with all of its codes and tokens; `false` if it had ended.
    fn revoke_grant(&self, grant: GrantId, now: Timestamp) -> Answer<'_, bool>;

    /// At most `limit` grants that live, the newest first.
    fn grants<'a>(&'a self, of: &'a GrantsOf, limit: u32, now: Timestamp)
    -> Answer<'a, Vec<Grant>>;

    /// The grant of this name, while it lives.
    fn grant_named(&self, name: GrantName, now: Timestamp) -> Answer<'_, Option<Grant>>;

    /// Ends them all and says how many there were.
    fn revoke_grants<'a>(&'a self, of: &'a GrantsOf) -> Answer<'a, u64>;

    fn add_session<'a>(&'a self, session: &'a Session) -> Answer<'a, ()>;

    /// By the browser's cookie.
    fn session(&self, cookie: Digest, now: Timestamp) -> Answer<'_, Option<Session>>;

    /// At most `limit` sessions of a user, the newest first.
    fn sessions<'a>(
        &'a self,
        subject: &'a str,
        limit: u32,
        now: Timestamp,
    ) -> Answer<'a, Vec<Session>>;

    /// The same of whichever sessions: the newest first, or of all those that end last.
    fn find_sessions<'a>(
        &'a self,
        of: &'a SessionsOf,
        limit: u32,
        now: Timestamp,
    ) -> Answer<'a, Vec<Session>>;

    /// Gives the session of this id another cookie, end, time of authentication and details;
    /// `false` if it has ended.
    fn renew_session<'a>(&'a self, session: &'a Session, now: Timestamp) -> Answer<'a, bool>;

    /// Ends a session. Its grants stay: [`GrantsOf::Session`] revokes them.
    fn end_session(&self, id: SessionId, now: Timestamp) -> Answer<'_, Option<EndedSession>>;

    fn push_request<'a>(&'a self, request: &'a PushedRequest) -> Answer<'a, ()>;

    /// Reads a pushed request and leaves it, for a page that may be loaded again.
    fn pushed_request(
        &self,
        reference: Digest,
        now: Timestamp,
    ) -> Answer<'_, Option<PushedRequest>>;

    /// Takes a pushed request. Of those who race for it one has it.
    fn take_pushed_request(
        &self,
        reference: Digest,
        now: Timestamp,
    ) -> Answer<'_, Option<PushedRequest>>;

    /// `false` if the user code is taken, and another one must be tried.
    fn start_device<'a>(&'a self, device: &'a DeviceRequest, now: Timestamp) -> Answer<'a, bool>;

    /// The device of a user code, while nobody has decided.
    fn device(&self, user_code: Digest, now: Timestamp) -> Answer<'_, Option<DeviceRequest>>;

    /// Decides for a device. Of those who race one decides and has `true`.
    fn decide_device<'a>(
        &'a self,
        user_code: Digest,
        decision: &'a DeviceDecision,
        now: Timestamp,
    ) -> Answer<'a, bool>;

    /// Answers a device, and makes it slower if it came too early.
    fn poll_device(&self, device_code: Digest, now: Timestamp) -> Answer<'_, DevicePoll>;

    /// Whether this is the first use of an assertion, known by the digest of its issuer and `jti`,
    /// until `expires_at`. Of those who race one has `true`.
    fn use_assertion(
        &self,
        assertion: Digest,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Answer<'_, bool>;

    /// Deletes at most `limit` expired rows of each kind, so that nobody waits long behind it. To
    /// be called again, after a pause, while there is more.
    fn sweep(&self, limit: u32, now: Timestamp) -> Answer<'_, Swept>;

    /// Counts what lives, by index, while others read and write. It takes the longer the more
    /// there is.
    fn count_live(&self, now: Timestamp) -> Answer<'_, LiveRows>;

    /// Writes a copy that can be opened as a store, while others read and write.
    fn back_up<'a>(&'a self, to: &'a Path) -> Answer<'a, ()>;

    /// Writes everything as lines of JSON, as of one instant, while others read and write.
    fn dump(&self, to: Box<dyn Write + Send>) -> Answer<'_, ()>;

    /// Reads what [`Self::dump`] wrote, of either kind of store, into one that is empty: all of it
    /// or nothing.
    fn load(&self, from: Box<dyn Read + Send>) -> Answer<'_, ()>;
}
