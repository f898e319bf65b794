//! The end of a browser's session: by the person's own wish, by an application's, because somebody
//! else logs in in the browser, or because the tailnet does not know the person or the device any
//! more. A session that runs out ends nothing: its applications go on as if it were there.
//!
//! Invariants
//! - A session ends without a question only if the request has an ID token that came of this very
//!   session. Everybody else can only have the person asked.
//! - What was granted in a session ends before it does: a failure in between can be tried again.
//! - Nobody waits for the clients that are told ([`SessionEnds`]).

use jiff::Timestamp;
use uuid::Uuid;

use super::{Provider, algorithm_of, store_failed, verified};
use crate::{
    OidcError, Params,
    client::ClientMetadata,
    fetch::FetchUrl,
    logout::{EndSessionRequest, IdTokenHint, LOGOUT_TYP, LogoutClaims, LogoutNotice},
    store::{Digest, EndedSession, GrantsOf, SessionId},
};

/// Hears of each session that ends before its time, and tells its clients
/// ([`Provider::logout_notice`]). The request that ended it does not wait for that.
pub trait SessionEnds: std::fmt::Debug + Send + Sync {
    fn ended(&self, provider: &Provider, ended: EndedSession);
}

#[derive(Debug, Clone, Copy)]
pub struct SignOutRequest<'a> {
    pub params: &'a Params,
    /// The cookie of the browser's session.
    pub cookie: Option<&'a str>,
    /// The person was asked, and wants it.
    pub confirmed: bool,
}

/// What becomes of a request to sign out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignOut {
    /// The person is asked.
    Ask,
    /// Nobody is signed in in this browser any more.
    Done {
        /// Where the browser goes. Without it, a page says that the person is signed out.
        return_to: Option<String>,
        /// Whose session has ended just now.
        subject: Option<String>,
    },
}

impl Provider {
    /// `Err` is for the person: the browser goes nowhere.
    pub async fn sign_out(
        &self,
        request: SignOutRequest<'_>,
        now: Timestamp,
    ) -> Result<SignOut, OidcError> {
        let wanted = EndSessionRequest::read(request.params)?;
        let hint = match wanted.id_token_hint {
            Some(hint) => self.hinted(hint).await,
            None => None,
        };
        let return_to = self.return_to(&wanted, hint.as_ref(), now).await?;
        let session = match request.cookie {
            Some(cookie) => {
                let session = self.store.session(Digest::of(cookie), now).await;
                session.map_err(store_failed)?
            }
            None => None,
        };
        let Some(session) = session else {
            // There is nothing to ask. Without a proof of who sent it, the browser stays here.
            let proven = hint.is_some() || request.confirmed;
            return Ok(SignOut::Done {
                return_to: return_to.filter(|_| proven),
                subject: None,
            });
        };
        let proven = hint.is_some_and(|hint| hint.is_of(&session.id.text(), &session.subject));
        if !proven && !request.confirmed {
            return Ok(SignOut::Ask);
        }
        self.end_session(session.id, now).await?;
        Ok(SignOut::Done {
            return_to,
            subject: Some(session.subject),
        })
    }

    async fn return_to(
        &self,
        wanted: &EndSessionRequest<'_>,
        hint: Option<&IdTokenHint>,
        now: Timestamp,
    ) -> Result<Option<String>, OidcError> {
        let Some(client_id) = wanted.client(hint)? else {
            return Ok(None);
        };
        if wanted.post_logout_redirect_uri.is_none() {
            return Ok(None);
        }
        let found = self.client(client_id, now).await?;
        let (_, metadata) = found
            .ok_or_else(|| OidcError::invalid_request("the client of the request is not known"))?;
        wanted.return_to(&metadata)
    }

    /// Ends a session with all that was granted in it, and lets its clients know; `false` if it
    /// had ended.
    pub(super) async fn end_session(
        &self,
        session: SessionId,
        now: Timestamp,
    ) -> Result<bool, OidcError> {
        let revoked = self.store.revoke_grants(&GrantsOf::Session(session)).await;
        revoked.map_err(store_failed)?;
        let ended = self.store.end_session(session, now).await;
        let Some(ended) = ended.map_err(store_failed)? else {
            return Ok(false);
        };
        tracing::info!(target: "oidc", subject = ended.session.subject, "a session has ended");
        self.session_ends.ended(self, ended);
        Ok(true)
    }

    /// What a client is told about the end of a session; `None` if it wants to hear nothing.
    pub async fn logout_notice(
        &self,
        ended: &EndedSession,
        client_id: &str,
        now: Timestamp,
    ) -> Result<Option<LogoutNotice>, OidcError> {
        let Some((_, metadata)) = self.client(client_id, now).await? else {
            return Ok(None);
        };
        let Some(url) = logout_url(client_id, &metadata) else {
            return Ok(None);
        };
        let (session, id) = (ended.session.id.text(), Uuid::new_v4().simple().to_string());
        let claims = LogoutClaims {
            issuer: &self.settings.issuer,
            client_id,
            subject: Some(&ended.session.subject),
            session: Some(&session),
            id: &id,
            at: now,
        };
        let payload = claims
            .payload()
            .map_err(|nobody| OidcError::server_error(nobody.to_string()))?;
        let algorithm = algorithm_of(&metadata, &self.keys);
        let token = self.sign_as(algorithm, LOGOUT_TYP, &payload).await?;
        Ok(Some(LogoutNotice {
            client_id: client_id.to_owned(),
            url,
            token,
        }))
    }

    /// What an ID token of ours says, which may have expired.
    pub(super) async fn hinted(&self, hint: &str) -> Option<IdTokenHint> {
        let published = self.keys.loaded().await.document()?;
        let claims = verified(hint, &published.document, &self.settings.issuer)?;
        IdTokenHint::of(&claims)
    }
}

/// Where a client wants to hear of logouts. An entry that another version took, with an address
/// that is not fetched, hears nothing.
fn logout_url(client_id: &str, metadata: &ClientMetadata) -> Option<FetchUrl> {
    let uri = metadata.backchannel_logout_uri.as_deref()?;
    match FetchUrl::parse(uri) {
        Ok(url) => Some(url),
        Err(bad) => {
            tracing::warn!(target: "oidc", client_id, reason = %bad, "the client's backchannel_logout_uri is not usable");
            None
        }
    }
}
