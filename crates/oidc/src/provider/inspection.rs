//! What tells about tokens, and ends them: `/userinfo`, `/introspect`, `/revoke`.

use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Map, Value};
use tailbone_keys::Algorithm;

use super::{
    Caller, Provider, clients::Fetching, offered_algorithm, store_failed, tokens::details_of,
    written,
};
use crate::{
    OidcError, Params,
    capability::Rules,
    claims::{Granted, Introspected},
    documents::ClientUrl,
    grant::AccessDetails,
    store::{Digest, Presented as InStore, RefreshToken},
    token::Presented,
};

/// Why a bearer token is refused (RFC 6750, section 3.1), in tsidp's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BearerError {
    /// As a challenge alone, without a body.
    Challenge {
        status: StatusCode,
        code: &'static str,
        description: &'static str,
    },
    Other(OidcError),
}

impl From<OidcError> for BearerError {
    fn from(error: OidcError) -> Self {
        Self::Other(error)
    }
}

/// What `/userinfo` tells, in the form that the client has registered.
#[derive(Debug, Clone, PartialEq)]
pub enum UserInfo {
    Claims(Map<String, Value>),
    /// The same claims with the issuer and the client as a signed token (OpenID Connect Core,
    /// section 5.3.2). It has no times, so it is no ID token.
    Signed(String),
}

/// Who asks about a token, or exchanges one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inspector {
    Client(String),
    /// Without a secret, by the network's word.
    Node(String),
}

impl Inspector {
    /// As tsidp writes it.
    pub fn name(&self) -> String {
        match self {
            Self::Client(id) => id.clone(),
            Self::Node(id) => format!("node:{id}"),
        }
    }
}

impl Provider {
    /// The claims about the person of an access token.
    pub async fn userinfo(
        &self,
        token: Option<&str>,
        now: Timestamp,
    ) -> Result<UserInfo, BearerError> {
        let challenge = |status, code, description| BearerError::Challenge {
            status,
            code,
            description,
        };
        let token = token.ok_or_else(|| {
            let words = "invalid Authorization header";
            challenge(StatusCode::BAD_REQUEST, "invalid_request", words)
        })?;
        let found = self.access_token(token, now).await?;
        let (token, grant) = found
            .ok_or_else(|| challenge(StatusCode::UNAUTHORIZED, "invalid_token", "invalid token"))?;
        if grant.subject.is_none() {
            let words = "the token is not that of a person";
            return Err(challenge(
                StatusCode::FORBIDDEN,
                "insufficient_scope",
                words,
            ));
        }
        let held: AccessDetails = serde_json::from_str(&token.details).map_err(written)?;
        let details = details_of(&grant)?;
        let rules = Rules::parse(&details.identity.grants)
            .map_err(|_| OidcError::invalid_request("failed to unmarshal capability"))?;
        let granted = Granted {
            client_id: &token.client_id,
            identity: &details.identity,
            scopes: &held.scopes,
            resources: &held.resources,
            wishes: &details.claims,
        };
        let claims = self.claims().userinfo(granted, &rules);
        let failed = |_| OidcError::invalid_request("failed to process user claims");
        let mut claims = claims.map_err(failed)?;
        let Some(algorithm) = self.userinfo_algorithm(&token.client_id, now).await? else {
            return Ok(UserInfo::Claims(claims));
        };
        claims.insert("aud".into(), token.client_id.as_str().into());
        claims.insert("iss".into(), self.settings.issuer.as_str().into());
        Ok(UserInfo::Signed(self.sign(algorithm, &claims).await?))
    }

    /// The algorithm with which the client wants UserInfo to be signed; `None`: not at all. An
    /// exchanged token may belong to a node, which is no client.
    async fn userinfo_algorithm(
        &self,
        client_id: &str,
        now: Timestamp,
    ) -> Result<Option<Algorithm>, OidcError> {
        let found = self.client(client_id, now).await?;
        let wanted = found.and_then(|(_, metadata)| metadata.userinfo_signed_response_alg);
        Ok(wanted.map(|name| offered_algorithm(&name, &self.keys)))
    }

    /// Who asks, at endpoints that a node may use without a secret. Wrong credentials are an error:
    /// a client that shows some means them.
    pub async fn inspector(
        &self,
        form: &Params,
        authorization: Option<&str>,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<Option<Inspector>, OidcError> {
        let presented = Presented::read(authorization, form)?;
        if let Some(presented) = presented.filter(Presented::has_credentials) {
            let fetching = Fetching::allowed_if(*caller != Caller::Unknown);
            return match self.proven_by(&presented, fetching, now).await? {
                Some(_) => Ok(Some(Inspector::Client(presented.client_id))),
                None => Err(OidcError::invalid_client(StatusCode::UNAUTHORIZED)),
            };
        }
        let node = caller.node().filter(|_| self.settings.nodes_may_inspect);
        Ok(node.map(|node| Inspector::Node(node.to_owned())))
    }

    /// RFC 7662. `None`: the token is not active, or nobody may ask.
    pub async fn introspect(
        &self,
        form: &Params,
        inspector: Option<&Inspector>,
        now: Timestamp,
    ) -> Result<Option<Map<String, Value>>, OidcError> {
        form.check_duplicates()?;
        let token = form.get("token");
        let token = token.ok_or_else(|| OidcError::invalid_request("token is required"))?;
        if inspector.is_none() {
            return Ok(None);
        }
        let Some((token, grant)) = self.access_token(token, now).await? else {
            return Ok(None);
        };
        let held: AccessDetails = serde_json::from_str(&token.details).map_err(written)?;
        let details = details_of(&grant)?;
        let granted = Granted {
            client_id: &token.client_id,
            identity: &details.identity,
            scopes: &held.scopes,
            resources: &held.resources,
            wishes: &details.claims,
        };
        // As at UserInfo, a grant that cannot be read refuses everything.
        let rules = Rules::parse(&details.identity.grants)
            .map_err(|_| OidcError::invalid_request("failed to unmarshal capability"))?;
        let introspected = Introspected {
            issued_at: token.issued_at.as_second(),
            expires_at: token.expires_at.as_second(),
            id: held.id.as_deref(),
            exchanged: held.exchanged,
            act: held.act.as_ref(),
        };
        let mut claims = self.claims().introspection(granted, &rules, introspected);
        if grant.subject.is_none() {
            // A program that acts for itself.
            claims.insert("sub".into(), grant.client_id.into());
            claims.remove("username");
        }
        if !held.told_audiences.is_empty() {
            claims.insert("aud".into(), held.told_audiences.into());
        }
        Ok(Some(claims))
    }

    /// RFC 7009: a token of this client ends, with all that came of it if it is a refresh token. A
    /// token that nobody knows has ended already.
    pub async fn revoke(
        &self,
        form: &Params,
        authorization: Option<&str>,
        now: Timestamp,
    ) -> Result<(), OidcError> {
        form.check_duplicates()?;
        let refused = || OidcError::invalid_client(StatusCode::UNAUTHORIZED);
        let presented = Presented::read(authorization, form)?.ok_or_else(refused)?;
        let token = form.get("token");
        let fetching = match token {
            Some(token) => {
                Fetching::allowed_if(self.is_of(token, &presented.client_id, now).await?)
            }
            None => Fetching::Refused,
        };
        let proven = self.proven_by(&presented, fetching, now).await?;
        proven.ok_or_else(refused)?;
        let token = token.ok_or_else(|| OidcError::invalid_request("token is required"))?;
        if let Some(refresh) = RefreshToken::parse(token) {
            let grace = std::time::Duration::ZERO;
            let known = self.store.present_refresh(&refresh, grace, now).await;
            if let InStore::Valid(grant) = known.map_err(store_failed)?
                && grant.client_id == presented.client_id
            {
                let revoked = self.store.revoke_grant(grant.id, now).await;
                revoked.map_err(store_failed)?;
            }
            return Ok(());
        }
        if let Some((known, _)) = self.access_token(token, now).await?
            && known.client_id == presented.client_id
        {
            let revoked = self.store.revoke_access_token(Digest::of(token), now).await;
            revoked.map_err(store_failed)?;
        }
        Ok(())
    }

    /// Whether a token that lives was given to this client. Asked only about clients of documents.
    async fn is_of(&self, token: &str, client_id: &str, now: Timestamp) -> Result<bool, OidcError> {
        if !ClientUrl::is_meant(client_id) {
            return Ok(false);
        }
        if let Some(refresh) = RefreshToken::parse(token) {
            let grace = std::time::Duration::ZERO;
            let known = self.store.present_refresh(&refresh, grace, now).await;
            let known = known.map_err(store_failed)?;
            return Ok(matches!(known, InStore::Valid(grant) if grant.client_id == client_id));
        }
        let known = self.access_token(token, now).await?;
        Ok(known.is_some_and(|(known, _)| known.client_id == client_id))
    }
}
