//! `/authorize`: from a request to a code, a question to the person, or an error.

use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{
    Admission, Caller, Denial, Provider,
    access::NOT_ADMITTED,
    after,
    clients::Fetching,
    login_of, no_random,
    requests::{Resolved, is_reference},
    rules_of, store_failed, written,
};
use crate::{
    OidcError, Params,
    authorize::{
        self, Answer, Asked, AuthorizationRequest, Decision, Refused, ReplyTo, client_id,
        destination,
    },
    claims::{Granted, Identity},
    client::ClientMetadata,
    documents::{ClientUrl, is_loopback_only},
    grant::{CODE_LIFETIME, GrantDetails},
    store::{Client, Code, Digest, Grant, GrantId, Session, SessionId, random_token},
};

/// How long a browser stays logged in, in seconds: a week without a login ends it.
pub const SESSION_LIFETIME: i64 = 7 * 24 * 3600;

/// How long a registered client stays without a login, in seconds, and how often that is noted.
const UNUSED_CLIENT: i64 = 90 * 24 * 3600;
const NOTE_USE: i64 = 24 * 3600;

/// The most clients that a session remembers to be confirmed; the oldest is asked for again.
const MAX_CONFIRMED: usize = 100;

/// What the browser says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Browser<'a> {
    /// The cookie of its session.
    pub cookie: Option<&'a str>,
    /// A person looks at it, so that a session makes sense. Programs that follow redirects get
    /// none.
    pub navigates: bool,
}

/// What the person said on the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmation {
    Cancelled,
    Confirmed,
}

#[derive(Debug, Clone, Copy)]
pub struct AuthorizeRequest<'a> {
    pub params: &'a Params,
    pub caller: &'a Caller,
    pub browser: Browser<'a>,
    /// `None`: nobody was asked yet.
    pub confirmation: Option<Confirmation>,
}

/// A good end of a request.
#[derive(Debug)]
pub enum Authorized {
    /// The person is asked.
    Ask(Box<Question>),
    /// The person is told, and goes back to the client from that page.
    Denied(Box<DeniedLogin>),
    /// The caller is a machine. Whoever looks at its browser is told, and goes back to the client
    /// from that page.
    Machine(Box<MachineLogin>),
    Answer {
        answer: Answer,
        /// The client gets a code, and no error.
        granted: bool,
        session: Option<NewSession>,
    },
}

/// A session that has begun, or has another cookie now.
pub struct NewSession {
    pub cookie: Zeroizing<String>,
}

impl std::fmt::Debug for NewSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NewSession(hidden)")
    }
}

/// What the page says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The request that the form of the page repeats, as a query.
    pub request: String,
    pub client: ClientMetadata,
    pub client_id: String,
    /// Where the person goes afterwards.
    pub redirect_uri: String,
    pub login: String,
    pub name: String,
    /// What the client will be told about the person.
    pub told: Map<String, Value>,
    /// What the client wants tokens for.
    pub resources: Vec<String>,
    /// The host that describes the client, where no administrator and no registration does.
    pub described_by: Option<String>,
    /// Its answers go to the person's own device, where any program can be it.
    pub on_own_device: bool,
    /// Who the application expects, if that is somebody else.
    pub expected: Option<String>,
}

/// What the page says to a person who may not log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeniedLogin {
    pub client: ClientMetadata,
    pub client_id: String,
    pub login: String,
    pub denial: Denial,
    /// What the client is told.
    pub answer: Answer,
}

/// What the page says at the browser of a tagged machine, which has no user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineLogin {
    pub client: ClientMetadata,
    pub client_id: String,
    /// What the client is told.
    pub answer: Answer,
}

/// What is kept with a session.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SessionDetails {
    /// Clients whose login the person has confirmed in it, the last one at the end.
    confirmed: Vec<String>,
    /// The person's login at that time, for administrators. Nothing is decided by it.
    pub(super) login: String,
}

impl SessionDetails {
    fn confirm(&mut self, client_id: &str) {
        self.confirmed.retain(|known| known != client_id);
        self.confirmed.push(client_id.to_owned());
        if self.confirmed.len() > MAX_CONFIRMED {
            self.confirmed.remove(0);
        }
    }
}

/// A request whose client and redirect URI are good.
struct Addressed<'a> {
    client: Client,
    metadata: ClientMetadata,
    reply_to: ReplyTo,
    identity: &'a Identity,
}

/// The host of an id that is an address.
fn described_by(client_id: &str) -> Option<String> {
    let url = ClientUrl::parse(client_id).ok()?;
    Some(url.address().host().to_owned())
}

impl Provider {
    /// `Err` is for the person: nothing may be sent to the client.
    pub async fn authorize(
        &self,
        request: AuthorizeRequest<'_>,
        now: Timestamp,
    ) -> Result<Authorized, OidcError> {
        let named = destination(request.params);
        let client_id = match &named {
            Ok(destination) => destination.client_id,
            // The redirect URI may stand where the other parameters do.
            Err(_) if is_reference(request.params) => client_id(request.params)?,
            Err(error) => return Err(error.clone()),
        };
        let unknown = || OidcError::bad("invalid_client", "invalid client ID");
        // A caller whom the tailnet knows. Everybody else learns below that they are not.
        let known = *request.caller != Caller::Unknown;
        let found = self
            .client_by(client_id, Fetching::allowed_if(known), now)
            .await?;
        let (client, metadata) = found.ok_or_else(unknown)?;
        let refuse = |reply_to: &ReplyTo, refused: Refused| {
            tracing::debug!(target: "oidc", client_id, code = refused.code, description = refused.description, "a login was refused");
            let issuer = &self.settings.issuer;
            Authorized::Answer {
                answer: reply_to.error(issuer, refused.code, &refused.description),
                granted: false,
                session: None,
            }
        };
        let params = request.params;
        let resolved = match self.resolved(params, client_id, &metadata, now).await? {
            Ok(resolved) => resolved,
            Err(refused) => {
                // Only the request itself says where the client would hear of it.
                let reply_to = named.and_then(|named| named.reply_to(&metadata, params));
                return match reply_to {
                    Ok(reply_to) => Ok(refuse(&reply_to, refused)),
                    Err(_) => Err(OidcError::bad(refused.code, refused.description)),
                };
            }
        };
        let reply_to = destination(&resolved.params)?.reply_to(&metadata, &resolved.params)?;
        let identity = match request.caller {
            Caller::Person(identity) => identity,
            Caller::Machine { .. } => {
                let sentence = "tagged devices have no user who could log in";
                let prompt = resolved.params.get("prompt").unwrap_or_default();
                if !request.browser.navigates || prompt.split(' ').any(|word| word == "none") {
                    return Ok(refuse(&reply_to, Refused::new("access_denied", sentence)));
                }
                let issuer = &self.settings.issuer;
                return Ok(Authorized::Machine(Box::new(MachineLogin {
                    client: metadata,
                    client_id: client.id,
                    answer: reply_to.error(issuer, "access_denied", sentence),
                })));
            }
            Caller::Unknown => {
                let words = "failed to authenticate user with WhoIs";
                return Err(OidcError::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "server_error",
                    words,
                ));
            }
        };
        let addressed = Addressed {
            client,
            metadata,
            reply_to,
            identity,
        };
        match self.answer(request, &resolved, &addressed, now).await? {
            Ok(authorized) => Ok(authorized),
            Err(refused) => {
                self.end_pushed(&resolved, client_id, now).await?;
                Ok(refuse(&addressed.reply_to, refused))
            }
        }
    }

    /// The outer error is for the person, the inner one for the client.
    async fn answer(
        &self,
        request: AuthorizeRequest<'_>,
        resolved: &Resolved,
        addressed: &Addressed<'_>,
        now: Timestamp,
    ) -> Result<Result<Authorized, Refused>, OidcError> {
        let (rules, params) = (self.read_rules(), &resolved.params);
        let identity = addressed.identity;
        let client_id = addressed.client.id.as_str();
        let mut wanted = match AuthorizationRequest::read(params, &addressed.metadata, rules) {
            Ok(wanted) => wanted,
            Err(refused) => return Ok(Err(refused)),
        };
        let admission = self.admission(identity, &addressed.client).await?;
        if let Admission::Denied(denial) = admission {
            if !request.browser.navigates || wanted.prompt.none {
                return Ok(Err(Refused::new("access_denied", NOT_ADMITTED)));
            }
            let issuer = &self.settings.issuer;
            return Ok(Ok(Authorized::Denied(Box::new(DeniedLogin {
                client: addressed.metadata.clone(),
                client_id: addressed.client.id.clone(),
                login: identity.login.clone(),
                denial,
                answer: addressed
                    .reply_to
                    .error(issuer, "access_denied", NOT_ADMITTED),
            }))));
        }
        let asks = Granted {
            client_id: &addressed.client.id,
            identity,
            scopes: &wanted.scopes,
            resources: &[],
            wishes: &wanted.claims,
        };
        if asks.lacks_groups() {
            tracing::error!(target: "oidc", login = identity.login, "no login: the person's groups are not known");
            let sentence = "the groups of the person are not known at the moment";
            return Ok(Err(Refused::new("temporarily_unavailable", sentence)));
        }
        if !wanted.resources.is_empty() {
            let allowed = rules_of(identity)?.allowed(&identity.login, &wanted.resources);
            if allowed.is_empty() {
                let sentence = "the person may not have tokens for these resources";
                return Ok(Err(Refused::new("invalid_target", sentence)));
            }
            wanted.resources = allowed;
        }
        let subject = identity.subject();
        let hinted = match &wanted.id_token_hint {
            Some(hint) => self.hinted(hint).await,
            None => None,
        };
        if wanted.prompt.none && wanted.id_token_hint.is_some() && hinted.is_none() {
            let sentence = "id_token_hint is no ID token of this issuer";
            return Ok(Err(Refused::new("login_required", sentence)));
        }
        let found = self.session(request.browser, now).await?;
        let (session, of_other) = match found {
            Some(found) if found.0.subject == subject => (Some(found), None),
            other => (None, other.map(|(session, _)| session)),
        };
        let known = session
            .as_ref()
            .map(|(session, details)| authorize::Session {
                auth_time: session.authenticated_at.as_second(),
                knows_client: details.confirmed.contains(&addressed.client.id),
            });
        let login = login_of(&addressed.client, &addressed.metadata);
        let at = now.as_second();
        let hinted = hinted.as_ref().map(|hint| hint.subject.as_str());
        let decision = authorize::decide(&wanted, login, known, &subject, hinted, at);
        let (auth_time, confirmed) = match (decision, request.confirmation) {
            (Decision::Refuse(code, sentence), _) => return Ok(Err(Refused::new(code, sentence))),
            (Decision::Ask(_), Some(Confirmation::Cancelled)) => {
                let sentence = "the person did not confirm the login";
                return Ok(Err(Refused::new("access_denied", sentence)));
            }
            (Decision::Ask(_), None) => {
                let form = self
                    .to_confirm(resolved, request.params, client_id, now)
                    .await?;
                return Ok(Ok(Authorized::Ask(Box::new(Question {
                    request: form,
                    client: addressed.metadata.clone(),
                    client_id: addressed.client.id.clone(),
                    redirect_uri: addressed.reply_to.redirect_uri.clone(),
                    login: identity.login.clone(),
                    name: identity.name.clone(),
                    told: self.told(Granted {
                        resources: &wanted.resources,
                        ..asks
                    }),
                    resources: wanted.resources.clone(),
                    described_by: described_by(&addressed.client.id),
                    on_own_device: is_loopback_only(&addressed.metadata.redirect_uris),
                    expected: wanted
                        .login_hint
                        .filter(|hint| !hint.eq_ignore_ascii_case(&identity.login)),
                }))));
            }
            (Decision::Ask(Asked::Login), Some(Confirmation::Confirmed)) => (at, true),
            (Decision::Ask(Asked::Client), Some(Confirmation::Confirmed)) => {
                (known.map_or(at, |known| known.auth_time), true)
            }
            (Decision::Proceed { auth_time }, _) => (auth_time, false),
        };
        self.end_pushed(resolved, client_id, now).await?;
        let acr = wanted.acr(confirmed);
        let (session, new_session) = if confirmed || request.browser.navigates || session.is_some()
        {
            let confirmed = confirmed.then_some(addressed.client.id.as_str());
            self.keep_session(session, identity, auth_time, confirmed, now)
                .await?
        } else {
            (None, None)
        };
        if let (Some(_), Some(other)) = (&new_session, of_other) {
            // The browser forgets its cookie, so nobody could sign out there any more.
            self.end_session(other.id, now).await?;
        }
        let code = self
            .give_code(addressed, wanted, session, (auth_time, acr), now)
            .await?;
        Ok(Ok(Authorized::Answer {
            answer: addressed.reply_to.code(&self.settings.issuer, &code),
            granted: true,
            session: new_session,
        }))
    }

    /// The browser's session, whosever it is.
    async fn session(
        &self,
        browser: Browser<'_>,
        now: Timestamp,
    ) -> Result<Option<(Session, SessionDetails)>, OidcError> {
        let Some(cookie) = browser.cookie else {
            return Ok(None);
        };
        let session = self.store.session(Digest::of(cookie), now).await;
        let session = session.map_err(store_failed)?;
        Ok(session.map(|session| {
            let details = serde_json::from_str(&session.details).unwrap_or_default();
            (session, details)
        }))
    }

    /// Begins a session, or notes in it what has changed. A confirmed login gives it another
    /// cookie, so that nobody who knew the one before is logged in as well.
    async fn keep_session(
        &self,
        session: Option<(Session, SessionDetails)>,
        identity: &Identity,
        auth_time: i64,
        confirmed: Option<&str>,
        now: Timestamp,
    ) -> Result<(Option<SessionId>, Option<NewSession>), OidcError> {
        let (old, mut details) = session.unzip();
        let mut details: SessionDetails = details.take().unwrap_or_default();
        if let Some(client_id) = confirmed {
            details.confirm(client_id);
        }
        let unchanged = old.as_ref().is_some_and(|old: &Session| {
            let fresh = old.expires_at.as_second() - now.as_second() > SESSION_LIFETIME / 2;
            confirmed.is_none() && old.authenticated_at.as_second() == auth_time && fresh
        });
        if unchanged {
            return Ok((old.map(|old| old.id), None));
        }
        details.login.clone_from(&identity.login);
        let cookie = random_token().map_err(no_random)?;
        let session = Session {
            id: match &old {
                Some(old) => old.id,
                None => SessionId::random().map_err(no_random)?,
            },
            cookie: Digest::of(&cookie),
            subject: identity.subject(),
            authenticated_at: after(Timestamp::UNIX_EPOCH, auth_time),
            created_at: old.as_ref().map_or(now, |old| old.created_at),
            expires_at: after(now, SESSION_LIFETIME),
            details: serde_json::to_string(&details).map_err(written)?,
        };
        let renewed = match old {
            Some(_) => self
                .store
                .renew_session(&session, now)
                .await
                .map_err(store_failed)?,
            None => false,
        };
        if !renewed {
            // It has ended in the meantime, or there was none.
            self.store
                .add_session(&session)
                .await
                .map_err(store_failed)?;
        }
        Ok((Some(session.id), Some(NewSession { cookie })))
    }

    async fn give_code(
        &self,
        addressed: &Addressed<'_>,
        wanted: AuthorizationRequest,
        session: Option<SessionId>,
        (auth_time, acr): (i64, Option<&str>),
        now: Timestamp,
    ) -> Result<Zeroizing<String>, OidcError> {
        let details = GrantDetails {
            identity: addressed.identity.clone(),
            scopes: wanted.scopes,
            scopes_narrowed: wanted.scopes_narrowed,
            resources: wanted.resources,
            redirect_uri: addressed.reply_to.redirect_uri.clone(),
            nonce: wanted.nonce,
            challenge: wanted.challenge.map(|one| one.as_str().to_owned()),
            auth_time: Some(auth_time),
            acr: acr.map(str::to_owned),
            claims: wanted.claims,
            program: Vec::new(),
        };
        let grant = Grant {
            id: GrantId::random().map_err(no_random)?,
            client_id: addressed.client.id.clone(),
            subject: Some(addressed.identity.subject()),
            session,
            created_at: now,
            details: serde_json::to_string(&details).map_err(written)?,
        };
        let code = random_token().map_err(no_random)?;
        let stored = Code {
            digest: Digest::of(&code),
            expires_at: after(now, CODE_LIFETIME),
        };
        self.note_use(&addressed.client, now).await?;
        let authorized = self.store.authorize(&grant, stored).await;
        authorized.map_err(store_failed)?;
        Ok(code)
    }

    /// A registered client ends some time after its last login.
    pub(super) async fn note_use(&self, client: &Client, now: Timestamp) -> Result<(), OidcError> {
        let end = after(now, UNUSED_CLIENT);
        let noted = client
            .expires_at
            .is_none_or(|until| end.as_second() - until.as_second() < NOTE_USE);
        if noted {
            return Ok(());
        }
        let extended = self.store.extend_client(&client.id, end, now).await;
        extended.map_err(store_failed)
    }
}
