//! The calls of [`Store`] as operations on a database, the same for both.

use std::{
    io::{Read, Write},
    path::Path,
    time::Duration,
};

use futures_util::FutureExt as _;
use jiff::Timestamp;
use parking_lot::Mutex;

use super::{
    AccessToken, AddedClient, Answer, ApplyMode, ApplyOptions, Client, ClientChange, ClientQuery,
    Code, DeviceDecision, DevicePoll, DeviceRequest, Digest, EndedSession, Grant, GrantId,
    GrantName, GrantsOf, Imported, Issue, Issued, LiveRows, MAX_NAME, Presented, PushedRequest,
    RefreshToken, RegistrationLimits, Session, SessionId, SessionsOf, Store, StoreError, Swept,
    database::{Database, Kind},
    dump,
    operations::{self, Expiring},
};

/// Rows of one transaction where there may be very many.
const BATCH: u32 = 1000;

impl<D: Database> Store for D {
    fn place(&self) -> &str {
        Database::place(self)
    }

    fn check(&self) -> Answer<'_, ()> {
        self.run(Kind::Read, (), operations::check)
    }

    fn add_client<'a>(
        &'a self,
        client: &'a Client,
        limits: Option<RegistrationLimits>,
    ) -> Answer<'a, AddedClient> {
        if let Err(error) = suitable_client(client) {
            return failed(error);
        }
        let parameters = (client.clone(), limits);
        self.run(Kind::Transaction, parameters, operations::add_client)
    }

    fn client<'a>(&'a self, id: &'a str, now: Timestamp) -> Answer<'a, Option<Client>> {
        if !is_name(id) {
            return known(None);
        }
        self.run(Kind::Read, (id.to_owned(), now), operations::client)
    }

    fn clients<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: u32,
        now: Timestamp,
    ) -> Answer<'a, Vec<Client>> {
        if let Some(after) = after
            && !is_name(after)
        {
            return failed(StoreError::Unsuitable {
                what: "a client id",
            });
        }
        let parameters = (after.map(str::to_owned), limit, now);
        self.run(Kind::Read, parameters, operations::clients)
    }

    fn find_clients<'a>(
        &'a self,
        query: &'a ClientQuery,
        now: Timestamp,
    ) -> Answer<'a, Vec<Client>> {
        let ids = query.after.iter();
        let suitable = ids.map(|after| name(after, "a client id"));
        let mut suitable = suitable.chain([name(&query.text, "what clients are searched by")]);
        if let Some(error) = suitable.find_map(Result::err) {
            return failed(error);
        }
        self.run(Kind::Read, (query.clone(), now), operations::find_clients)
    }

    fn replace_client<'a>(&'a self, client: &'a Client, now: Timestamp) -> Answer<'a, bool> {
        if let Err(error) = suitable_client(client) {
            return failed(error);
        }
        let parameters = (client.clone(), now);
        self.run(Kind::Statement, parameters, operations::replace_client)
    }

    fn extend_client<'a>(
        &'a self,
        id: &'a str,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Answer<'a, ()> {
        if !is_name(id) {
            return known(());
        }
        let parameters = (id.to_owned(), expires_at, now);
        self.run(Kind::Statement, parameters, operations::extend_client)
    }

    fn remove_client<'a>(&'a self, id: &'a str, now: Timestamp) -> Answer<'a, bool> {
        if !is_name(id) {
            return known(false);
        }
        let parameters = (id.to_owned(), now);
        self.run(Kind::Transaction, parameters, operations::remove_client)
    }

    fn import_clients<'a>(
        &'a self,
        source: &'a str,
        clients: &'a [Client],
        now: Timestamp,
    ) -> Answer<'a, Imported> {
        if let Some(error) = clients
            .iter()
            .find_map(|client| suitable_client(client).err())
        {
            return failed(error);
        }
        let parameters = (source.to_owned(), clients.to_vec(), now);
        self.run(Kind::Transaction, parameters, operations::import_clients)
    }

    fn apply_clients<'a>(
        &'a self,
        clients: &'a [Client],
        options: ApplyOptions,
        now: Timestamp,
    ) -> Answer<'a, Vec<ClientChange>> {
        if let Some(error) = clients
            .iter()
            .find_map(|client| suitable_client(client).err())
        {
            return failed(error);
        }
        let kind = match options.mode {
            ApplyMode::Preview => Kind::Snapshot,
            ApplyMode::Write => Kind::Bulk,
        };
        let parameters = (clients.to_vec(), options, now);
        self.run(kind, parameters, operations::apply_clients)
    }

    fn authorize<'a>(&'a self, grant: &'a Grant, code: Code) -> Answer<'a, ()> {
        if let Err(error) = suitable_grant(grant) {
            return failed(error);
        }
        let parameters = (grant.clone(), code);
        self.run(Kind::Transaction, parameters, operations::authorize)
    }

    fn present_code(&self, code: Digest, now: Timestamp) -> Answer<'_, Presented<Grant>> {
        async move {
            let found = self
                .run(Kind::Read, (code, now), operations::present_code)
                .await?;
            if let Presented::Reused(grant) = found {
                self.revoke_grant(grant, now).await?;
            }
            Ok(found)
        }
        .boxed()
    }

    fn redeem_code<'a>(
        &'a self,
        code: Digest,
        issue: &'a Issue,
        now: Timestamp,
    ) -> Answer<'a, Presented<Issued>> {
        if let Err(error) = suitable_issue(issue) {
            return failed(error);
        }
        let parameters = (code, issue.clone(), now);
        self.run(Kind::Transaction, parameters, operations::redeem_code)
    }

    fn burn_code(&self, code: Digest) -> Answer<'_, ()> {
        self.run(Kind::Statement, code, operations::burn_code)
    }

    fn issue<'a>(
        &'a self,
        grant: &'a Grant,
        issue: &'a Issue,
        now: Timestamp,
    ) -> Answer<'a, Issued> {
        if let Err(error) = suitable_grant(grant).and_then(|()| suitable_issue(issue)) {
            return failed(error);
        }
        let parameters = (grant.clone(), issue.clone(), now);
        self.run(Kind::Transaction, parameters, operations::issue)
    }

    fn add_access_token<'a>(
        &'a self,
        grant: GrantId,
        token: &'a AccessToken,
        now: Timestamp,
    ) -> Answer<'a, bool> {
        if let Err(error) = suitable_token(token) {
            return failed(error);
        }
        let parameters = (grant, token.clone(), now);
        self.run(Kind::Transaction, parameters, operations::add_access_token)
    }

    fn access_token(
        &self,
        token: Digest,
        now: Timestamp,
    ) -> Answer<'_, Option<(AccessToken, Grant)>> {
        self.run(Kind::Read, (token, now), operations::access_token)
    }

    fn revoke_access_token(&self, token: Digest, now: Timestamp) -> Answer<'_, bool> {
        self.run(
            Kind::Statement,
            (token, now),
            operations::revoke_access_token,
        )
    }

    fn present_refresh<'a>(
        &'a self,
        token: &'a RefreshToken,
        grace: Duration,
        now: Timestamp,
    ) -> Answer<'a, Presented<Grant>> {
        async move {
            let parameters = (token.clone(), grace, now);
            let found = self
                .run(Kind::Read, parameters, operations::present_refresh)
                .await?;
            if let Presented::Reused(grant) = found {
                self.revoke_grant(grant, now).await?;
            }
            Ok(found)
        }
        .boxed()
    }

    fn rotate_refresh<'a>(
        &'a self,
        token: &'a RefreshToken,
        grace: Duration,
        issue: &'a Issue,
        now: Timestamp,
    ) -> Answer<'a, Presented<Issued>> {
        if let Err(error) = suitable_issue(issue) {
            return failed(error);
        }
        if issue.refresh_until.is_none() {
            return failed(StoreError::Unsupported(
                "a refresh token cannot be replaced by none: revoke its grant instead",
            ));
        }
        let parameters = (token.clone(), grace, issue.clone(), now);
        self.run(Kind::Transaction, parameters, operations::rotate_refresh)
    }

    fn revoke_grant(&self, grant: GrantId, now: Timestamp) -> Answer<'_, bool> {
        self.run(Kind::Statement, (grant, now), operations::revoke_grant)
    }

    fn grants<'a>(
        &'a self,
        of: &'a GrantsOf,
        limit: u32,
        now: Timestamp,
    ) -> Answer<'a, Vec<Grant>> {
        if !is_suitable_common(of) {
            return known(Vec::new());
        }
        self.run(Kind::Read, (of.clone(), limit, now), operations::grants)
    }

    fn grant_named(&self, name: GrantName, now: Timestamp) -> Answer<'_, Option<Grant>> {
        self.run(Kind::Read, (name, now), operations::grant_named)
    }

    fn revoke_grants<'a>(&'a self, of: &'a GrantsOf) -> Answer<'a, u64> {
        if !is_suitable_common(of) {
            return known(0);
        }
        async move {
            let mut all = 0;
            loop {
                let parameters = (of.clone(), BATCH);
                let revoked = self
                    .run(Kind::Statement, parameters, operations::revoke_grants)
                    .await?;
                all += revoked;
                if revoked < u64::from(BATCH) {
                    return Ok(all);
                }
            }
        }
        .boxed()
    }

    fn add_session<'a>(&'a self, session: &'a Session) -> Answer<'a, ()> {
        if let Err(error) = suitable_session(session) {
            return failed(error);
        }
        self.run(Kind::Statement, session.clone(), operations::add_session)
    }

    fn session(&self, cookie: Digest, now: Timestamp) -> Answer<'_, Option<Session>> {
        self.run(Kind::Read, (cookie, now), operations::session)
    }

    fn sessions<'a>(
        &'a self,
        subject: &'a str,
        limit: u32,
        now: Timestamp,
    ) -> Answer<'a, Vec<Session>> {
        if !is_name(subject) {
            return known(Vec::new());
        }
        let parameters = (SessionsOf::Subject(subject.to_owned()), limit, now);
        self.run(Kind::Read, parameters, operations::sessions)
    }

    fn find_sessions<'a>(
        &'a self,
        of: &'a SessionsOf,
        limit: u32,
        now: Timestamp,
    ) -> Answer<'a, Vec<Session>> {
        if let SessionsOf::Client(name) | SessionsOf::Details(name) | SessionsOf::Subject(name) = of
            && !is_name(name)
        {
            return known(Vec::new());
        }
        let parameters = (of.clone(), limit, now);
        self.run(Kind::Read, parameters, operations::sessions)
    }

    fn renew_session<'a>(&'a self, session: &'a Session, now: Timestamp) -> Answer<'a, bool> {
        if let Err(error) = suitable_session(session) {
            return failed(error);
        }
        let parameters = (session.clone(), now);
        self.run(Kind::Statement, parameters, operations::renew_session)
    }

    fn end_session(&self, id: SessionId, now: Timestamp) -> Answer<'_, Option<EndedSession>> {
        self.run(Kind::Transaction, (id, now), operations::end_session)
    }

    fn push_request<'a>(&'a self, request: &'a PushedRequest) -> Answer<'a, ()> {
        let suitable = name(&request.client_id, "a client id")
            .and_then(|()| text(&request.parameters, "a pushed request"));
        if let Err(error) = suitable {
            return failed(error);
        }
        self.run(Kind::Statement, request.clone(), operations::push_request)
    }

    fn pushed_request(
        &self,
        reference: Digest,
        now: Timestamp,
    ) -> Answer<'_, Option<PushedRequest>> {
        self.run(Kind::Read, (reference, now), operations::pushed_request)
    }

    fn take_pushed_request(
        &self,
        reference: Digest,
        now: Timestamp,
    ) -> Answer<'_, Option<PushedRequest>> {
        let parameters = (reference, now);
        self.run(Kind::Statement, parameters, operations::take_pushed_request)
    }

    fn start_device<'a>(&'a self, device: &'a DeviceRequest, now: Timestamp) -> Answer<'a, bool> {
        let suitable = name(&device.client_id, "a client id")
            .and_then(|()| text(&device.details, "a device's details"));
        if let Err(error) = suitable {
            return failed(error);
        }
        let parameters = (device.clone(), now);
        self.run(Kind::Transaction, parameters, operations::start_device)
    }

    fn device(&self, user_code: Digest, now: Timestamp) -> Answer<'_, Option<DeviceRequest>> {
        self.run(Kind::Read, (user_code, now), operations::device)
    }

    fn decide_device<'a>(
        &'a self,
        user_code: Digest,
        decision: &'a DeviceDecision,
        now: Timestamp,
    ) -> Answer<'a, bool> {
        if let DeviceDecision::Approved(grant) = decision
            && let Err(error) = suitable_grant(grant)
        {
            return failed(error);
        }
        let parameters = (user_code, decision.clone(), now);
        self.run(Kind::Transaction, parameters, operations::decide_device)
    }

    fn poll_device(&self, device_code: Digest, now: Timestamp) -> Answer<'_, DevicePoll> {
        let parameters = (device_code, now);
        self.run(Kind::Transaction, parameters, operations::poll_device)
    }

    fn use_assertion(
        &self,
        assertion: Digest,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Answer<'_, bool> {
        let parameters = (assertion, expires_at, now);
        self.run(Kind::Statement, parameters, operations::use_assertion)
    }

    fn sweep(&self, limit: u32, now: Timestamp) -> Answer<'_, Swept> {
        async move {
            let mut all = Swept::default();
            for kind in Expiring::ALL {
                let parameters = (kind, limit, now);
                let swept = self
                    .run(Kind::Transaction, parameters, operations::sweep)
                    .await?;
                all.rows += swept.rows;
                all.more |= swept.more;
            }
            Ok(all)
        }
        .boxed()
    }

    fn count_live(&self, now: Timestamp) -> Answer<'_, LiveRows> {
        self.run(Kind::Snapshot, now, operations::count_live)
    }

    fn back_up<'a>(&'a self, to: &'a Path) -> Answer<'a, ()> {
        Database::back_up(self, to)
    }

    fn dump(&self, to: Box<dyn Write + Send>) -> Answer<'_, ()> {
        self.run(Kind::Snapshot, Mutex::new(Some(to)), dump::write)
    }

    fn load(&self, from: Box<dyn Read + Send>) -> Answer<'_, ()> {
        self.run(Kind::Bulk, Mutex::new(Some(from)), dump::read)
    }
}

fn known<'a, T: Send + 'a>(answer: T) -> Answer<'a, T> {
    std::future::ready(Ok(answer)).boxed()
}

fn failed<'a, T: Send + 'a>(error: StoreError) -> Answer<'a, T> {
    std::future::ready(Err(error)).boxed()
}

// What both databases can hold.

fn suitable_client(client: &Client) -> Result<(), StoreError> {
    if client.id.is_empty() {
        return Err(StoreError::Unsuitable {
            what: "a client id",
        });
    }
    name(&client.id, "a client id")?;
    name(
        client.owner.as_deref().unwrap_or_default(),
        "the owner of a client",
    )?;
    text(&client.metadata, "a client's metadata")
}

fn suitable_grant(grant: &Grant) -> Result<(), StoreError> {
    name(&grant.client_id, "a client id")?;
    name(grant.subject.as_deref().unwrap_or_default(), "a subject")?;
    text(&grant.details, "a grant's details")
}

fn suitable_issue(issue: &Issue) -> Result<(), StoreError> {
    text(
        issue.details.as_deref().unwrap_or_default(),
        "a grant's details",
    )?;
    issue.access.as_ref().map_or(Ok(()), suitable_token)
}

fn suitable_token(token: &AccessToken) -> Result<(), StoreError> {
    name(&token.client_id, "a client id")?;
    text(&token.details, "a token's details")
}

fn suitable_session(session: &Session) -> Result<(), StoreError> {
    name(&session.subject, "a subject")?;
    text(&session.details, "a session's details")
}

fn is_suitable_common(of: &GrantsOf) -> bool {
    match of {
        GrantsOf::Client(name) | GrantsOf::Subject(name) => is_name(name),
        GrantsOf::Session(_) => true,
    }
}

fn name(name: &str, what: &'static str) -> Result<(), StoreError> {
    if is_name(name) {
        Ok(())
    } else {
        Err(StoreError::Unsuitable { what })
    }
}

fn text(text: &str, what: &'static str) -> Result<(), StoreError> {
    if text.contains('\0') {
        Err(StoreError::Unsuitable { what })
    } else {
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME && !name.contains('\0')
}
