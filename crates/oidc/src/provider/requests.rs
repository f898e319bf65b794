//! Where the parameters of an authorization request stand: in the request itself, in an object that
//! the client signed (`request`, `request_uri`), or at a reference that it pushed before.
//!
//! Invariants
//! - Of a request that was pushed only what was pushed counts. It ends with the answer that the
//!   client gets for it.
//! - A client that authenticates may push as many as it likes; of others each caller has a bound.
//! - A page that asks the person carries the parameters of an object as a pushed request: the
//!   object may have ended, or be another one, when the person answers.

use std::time::Instant;

use jiff::Timestamp;
use url::form_urlencoded;

use super::{Caller, Provider, clients::Fetching, device::too_many, store_failed};
use crate::{
    OidcError, Params,
    authorize::{AuthorizationRequest, Refused, destination},
    client::ClientMetadata,
    client_keys::ClientKeys,
    par::{self, PushAnswer, PushError},
    request_object::{self, RequestObject, RequestObjectError, Requester},
    store::Digest,
    token::Presented,
};

/// The parameters of a request, and where they stood.
#[derive(Debug, Clone)]
pub(super) struct Resolved {
    pub(super) params: Params,
    origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Object,
    Pushed(Digest),
    Request,
}

/// Whether the parameters stand elsewhere than in the request.
pub(super) fn is_reference(params: &Params) -> bool {
    params.get("request").is_some() || params.get("request_uri").is_some()
}

impl Provider {
    /// Keeps a request of a client that is good but for the person (RFC 9126).
    pub async fn push(
        &self,
        form: &Params,
        authorization: Option<&str>,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<PushAnswer, OidcError> {
        form.check_duplicates()?;
        let refused = || OidcError::invalid_client(http::StatusCode::UNAUTHORIZED);
        let presented = Presented::read(authorization, form)?.ok_or_else(refused)?;
        let fetching = Fetching::allowed_if(*caller != Caller::Unknown);
        let client = self.proven_by(&presented, fetching, now).await?;
        let client = client.ok_or_else(refused)?;
        let client_id = presented.client_id.as_str();
        if !presented.has_credentials() {
            let who = caller.owner().unwrap_or_else(|| client_id.to_owned());
            if !self.pushed_requests.take(&who, now) {
                return Err(too_many("more requests are pushed than may be"));
            }
        }
        let given = par::parameters(form.encode().as_bytes(), client_id).map_err(push_failed)?;
        let told = |refused: Refused| OidcError::bad(refused.code, refused.description);
        let given = Params::parse(given.as_bytes());
        let params = match self.object_of(&given, client_id, &client, now).await {
            Ok(inside) => inside.unwrap_or(given),
            Err(refused) => return Err(told(refused)),
        };
        destination(&params)?.reply_to(&client, &params)?;
        AuthorizationRequest::read(&params, &client, self.read_rules()).map_err(told)?;
        let pushed = par::push(&*self.store, params.encode(), client_id, now).await;
        pushed.map_err(push_failed)
    }

    /// The parameters of a request of this client. The outer error is for the person, the inner one
    /// for the client.
    pub(super) async fn resolved(
        &self,
        params: &Params,
        client_id: &str,
        client: &ClientMetadata,
        now: Timestamp,
    ) -> Result<Result<Resolved, Refused>, OidcError> {
        if let Some(reference) = params.get("request_uri").and_then(par::reference) {
            let pushed = par::peek(&*self.store, reference, client_id, now).await;
            let pushed = pushed.map_err(store_failed)?.ok_or_else(reference_ended)?;
            return Ok(Ok(Resolved {
                params: Params::parse(pushed.as_bytes()),
                origin: Origin::Pushed(reference),
            }));
        }
        if client.require_pushed_authorization_requests == Some(true) {
            let sentence = "the client must push its requests";
            return Ok(Err(Refused::new("invalid_request", sentence)));
        }
        Ok(match self.object_of(params, client_id, client, now).await {
            Ok(Some(params)) => Ok(Resolved {
                params,
                origin: Origin::Object,
            }),
            Ok(None) => Ok(Resolved {
                params: params.clone(),
                origin: Origin::Request,
            }),
            Err(refused) => Err(refused),
        })
    }

    /// The parameters of a request with those of its object; `None` if it has no object.
    async fn object_of(
        &self,
        params: &Params,
        client_id: &str,
        client: &ClientMetadata,
        now: Timestamp,
    ) -> Result<Option<Params>, Refused> {
        let only_object = client.require_signed_request_object == Some(true);
        let (request, request_uri) = (params.get("request"), params.get("request_uri"));
        if request.is_some() && request_uri.is_some() {
            let sentence = "request and request_uri exclude each other";
            return Err(Refused::new("invalid_request", sentence));
        }
        if request.is_none() && request_uri.is_none() {
            let sentence = "the client must sign its requests";
            return match only_object {
                true => Err(Refused::new("invalid_request", sentence)),
                false => Ok(None),
            };
        }
        let read = self.read_object(params, client_id, client, now).await;
        let (object, merged) = read.map_err(|error| {
            tracing::info!(target: "oidc", client_id, error = %error, "a request object does not count");
            Refused::new(error.code(), error.to_string())
        })?;
        if !only_object {
            return Ok(Some(Params::parse(merged.as_bytes())));
        }
        let mut signed = form_urlencoded::Serializer::new(String::new());
        signed.extend_pairs(object.parameters());
        if !object
            .parameters()
            .iter()
            .any(|(name, _)| name == "client_id")
        {
            signed.append_pair("client_id", client_id);
        }
        Ok(Some(Params::parse(signed.finish().as_bytes())))
    }

    /// The object, and the request with its parameters.
    async fn read_object(
        &self,
        params: &Params,
        client_id: &str,
        client: &ClientMetadata,
        now: Timestamp,
    ) -> Result<(RequestObject, String), RequestObjectError> {
        let keys = ClientKeys::of(client.jwks.as_ref(), client.jwks_uri.as_deref())?;
        let algorithm = client.request_object_signing_alg.as_deref();
        let algorithm = algorithm.map(|name| {
            let unknown = |_| RequestObjectError::Algorithm(name.to_owned());
            name.parse().map_err(unknown)
        });
        let requester = Requester {
            client_id,
            algorithm: algorithm.transpose()?,
            request_uris: &client.request_uris,
            keys: &keys,
        };
        let text = match params.get("request_uri") {
            Some(uri) => request_object::fetch(&self.foreign.client, uri, &requester).await?,
            None => params.get("request").unwrap_or_default().to_owned(),
        };
        let (issuer, cache) = (self.settings.issuer.as_str(), &self.foreign.keys);
        let at = Instant::now();
        let object = RequestObject::verify(&text, &requester, cache, issuer, now, at).await?;
        let merged = object.merged(params.encode().as_bytes())?;
        Ok((object, merged))
    }

    /// The request for the form of a page that asks the person.
    pub(super) async fn to_confirm(
        &self,
        resolved: &Resolved,
        asked: &Params,
        client_id: &str,
        now: Timestamp,
    ) -> Result<String, OidcError> {
        if resolved.origin != Origin::Object {
            return Ok(asked.encode());
        }
        let parameters = resolved.params.encode();
        let pushed = par::push(&*self.store, parameters, client_id, now).await;
        let pushed = pushed.map_err(push_failed)?;
        let mut request = form_urlencoded::Serializer::new(String::new());
        request.append_pair("client_id", client_id);
        request.append_pair("request_uri", &pushed.request_uri);
        Ok(request.finish())
    }

    /// Ends a pushed request, before its answer is given. Of those who race for it one goes on.
    pub(super) async fn end_pushed(
        &self,
        resolved: &Resolved,
        client_id: &str,
        now: Timestamp,
    ) -> Result<(), OidcError> {
        let Origin::Pushed(reference) = resolved.origin else {
            return Ok(());
        };
        let taken = par::take(&*self.store, reference, client_id, now).await;
        taken.map_err(store_failed)?.ok_or_else(reference_ended)?;
        Ok(())
    }
}

fn reference_ended() -> OidcError {
    let sentence = "request_uri is unknown, was used, or has ended: begin the login again";
    OidcError::bad("invalid_request_uri", sentence)
}

fn push_failed(error: PushError) -> OidcError {
    match error {
        PushError::Store(error) => store_failed(error),
        error => OidcError::invalid_request(error.to_string()),
    }
}
