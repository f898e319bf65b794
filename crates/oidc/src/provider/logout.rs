//! Signing out: the end of a browser's session, by the person's own wish or by an application's.
//!
//! Invariants
//! - A session ends without a question only if the request has an ID token that came of this very
//!   session. Everybody else can only have the person asked.
//! - What was granted in a session ends before it does: a failure in between can be tried again.

use jiff::Timestamp;

use super::{Provider, store_failed, verified};
use crate::{
    OidcError, Params,
    logout::{EndSessionRequest, IdTokenHint},
    store::{Digest, GrantsOf, Session},
};

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
        self.end_session(&session, now).await?;
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

    /// Ends a session, with all that was granted in it.
    async fn end_session(&self, session: &Session, now: Timestamp) -> Result<(), OidcError> {
        let grants = GrantsOf::Session(session.id);
        let revoked = self.store.revoke_grants(&grants).await;
        revoked.map_err(store_failed)?;
        let ended = self.store.end_session(session.id, now).await;
        if ended.map_err(store_failed)?.is_some() {
            tracing::info!(target: "oidc", subject = session.subject, "a session has ended");
        }
        Ok(())
    }

    /// What an ID token of ours says, which may have expired.
    pub(super) async fn hinted(&self, hint: &str) -> Option<IdTokenHint> {
        let published = self.keys.loaded().await.document()?;
        let claims = verified(hint, &published.document, &self.settings.issuer)?;
        IdTokenHint::of(&claims)
    }
}
