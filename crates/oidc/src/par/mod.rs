//! Pushed authorization requests (RFC 9126): a client sends its request to us first, and the
//! browser brings a reference to it. The caller has authenticated the client, and judges the
//! request as that of a browser.
//!
//! Invariants
//! - A reference has 128 random bits, is stored as a digest, lives for [`LIFETIME`] and belongs to
//!   the client that pushed it.
//! - What authenticates a client is not part of the request, and is not stored.
//! - A pushed request names no other one.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use url::form_urlencoded;

use crate::store::{Digest, PushedRequest, Store, StoreError, random_token};

/// RFC 9126, section 2.2: "relatively short". The person may have to read a page meanwhile.
pub const LIFETIME: Duration = Duration::from_secs(600);

const PREFIX: &str = "urn:ietf:params:oauth:request_uri:";

/// The largest request.
pub const MAX_REQUEST_BYTES: usize = 64 << 10;

/// What authenticates the client at this endpoint.
const OF_AUTHENTICATION: [&str; 3] = ["client_assertion", "client_assertion_type", "client_secret"];

/// Why a request cannot be pushed. Each is 400 `invalid_request`.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error("client_id is not that of the client that authenticated itself")]
    OtherClient,
    #[error("request_uri must not be in a request that is pushed")]
    RequestUri,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the request is larger than {MAX_REQUEST_BYTES} bytes")]
    TooLarge,
}

/// The answer, with the status 201.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PushAnswer {
    pub request_uri: String,
    pub expires_in: u64,
}

/// The parameters of a pushed request without those that authenticate the client, encoded as a
/// form, for the judgement that each authorization request needs.
pub fn parameters(form: &[u8], client_id: &str) -> Result<String, PushError> {
    if form.len() > MAX_REQUEST_BYTES {
        return Err(PushError::TooLarge);
    }
    let mut kept = form_urlencoded::Serializer::new(String::new());
    let mut names_client = false;
    for (name, value) in form_urlencoded::parse(form) {
        match name.as_ref() {
            _ if value.is_empty() => continue,
            "request_uri" => return Err(PushError::RequestUri),
            "client_id" if value != client_id => return Err(PushError::OtherClient),
            "client_id" => names_client = true,
            name if OF_AUTHENTICATION.contains(&name) => continue,
            _ => {}
        }
        kept.append_pair(&name, &value);
    }
    // A client that authenticated itself in a header need not repeat who it is.
    if !names_client {
        kept.append_pair("client_id", client_id);
    }
    Ok(kept.finish())
}

/// Keeps a request whose [`parameters`] were judged to be right.
pub async fn push(
    store: &dyn Store,
    parameters: String,
    client_id: &str,
    now: Timestamp,
) -> Result<PushAnswer, PushError> {
    let reference = random_token().map_err(StoreError::from)?;
    let request = PushedRequest {
        reference: Digest::of(&reference),
        client_id: client_id.to_owned(),
        parameters,
        expires_at: now.saturating_add(LIFETIME).unwrap_or(Timestamp::MAX),
    };
    store.push_request(&request).await?;
    Ok(PushAnswer {
        request_uri: format!("{PREFIX}{}", reference.as_str()),
        expires_in: LIFETIME.as_secs(),
    })
}

/// The reference in a `request_uri`; `None` if that is an address.
pub fn reference(request_uri: &str) -> Option<Digest> {
    request_uri.strip_prefix(PREFIX).map(Digest::of)
}

/// The parameters of a reference, for the client that the browser's request names. The request
/// stays, as the page that asks the user may be loaded again; [`take`] ends it.
pub async fn peek(
    store: &dyn Store,
    reference: Digest,
    client_id: &str,
    now: Timestamp,
) -> Result<Option<String>, StoreError> {
    let found = store.pushed_request(reference, now).await?;
    Ok(of_client(found, client_id))
}

/// The same, for the last time.
pub async fn take(
    store: &dyn Store,
    reference: Digest,
    client_id: &str,
    now: Timestamp,
) -> Result<Option<String>, StoreError> {
    // Looked at first, so that another client's request does not end it.
    if peek(store, reference, client_id, now).await?.is_none() {
        return Ok(None);
    }
    let found = store.take_pushed_request(reference, now).await?;
    Ok(of_client(found, client_id))
}

fn of_client(found: Option<PushedRequest>, client_id: &str) -> Option<String> {
    found
        .filter(|request| request.client_id == client_id)
        .map(|request| request.parameters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store_tests::*;

    #[test]
    fn a_pushed_request_is_that_of_its_client_without_what_authenticates_it() {
        let kept = parameters(
            b"client_id=app&client_secret=word&scope=openid&client_assertion=a.b.c\
              &client_assertion_type=x&state=a%26b&empty=&resource=1&resource=2",
            "app",
        );
        assert_eq!(
            kept.unwrap(),
            "client_id=app&scope=openid&state=a%26b&resource=1&resource=2"
        );
        assert_eq!(
            parameters(b"scope=openid", "a b").unwrap(),
            "scope=openid&client_id=a+b"
        );
        let other = parameters(b"client_id=other", "app");
        assert!(matches!(other, Err(PushError::OtherClient)));
        let nested = parameters(b"request_uri=urn%3Ax", "app");
        assert!(matches!(nested, Err(PushError::RequestUri)));
        let large = vec![b'a'; MAX_REQUEST_BYTES + 1];
        assert!(matches!(
            parameters(&large, "app"),
            Err(PushError::TooLarge)
        ));
    }

    #[test]
    fn a_reference_is_told_from_an_address() {
        let known = reference("urn:ietf:params:oauth:request_uri:0123").unwrap();
        assert_eq!(known, Digest::of("0123"));
        assert_eq!(reference("https://app.example/r"), None);
        assert_eq!(reference("urn:IETF:params:oauth:request_uri:0123"), None);
    }

    #[tokio::test]
    async fn a_pushed_request_is_taken_once_by_the_client_that_pushed_it() {
        let world = World::new().await;
        let store = &world.store;
        let form = parameters(b"scope=openid", "app").unwrap();
        let answer = push(store, form.clone(), "app", now()).await.unwrap();
        assert_eq!(answer.expires_in, 600);
        let reference = reference(&answer.request_uri).unwrap();
        let peeked = async |client, at| peek(store, reference, client, at).await.unwrap();
        let taken = async |client, at| take(store, reference, client, at).await.unwrap();
        assert_eq!(peeked("app", now()).await.as_deref(), Some(form.as_str()));
        assert_eq!(peeked("other", now()).await, None);
        assert_eq!(taken("other", now()).await, None);
        assert_eq!(
            peeked("app", after(599)).await.as_deref(),
            Some(form.as_str())
        );
        assert_eq!(peeked("app", after(600)).await, None, "its time is over");
        assert_eq!(
            taken("app", after(599)).await.as_deref(),
            Some(form.as_str())
        );
        assert_eq!(taken("app", after(599)).await, None, "once");
        let unknown = Digest::of("0");
        assert_eq!(take(store, unknown, "app", now()).await.unwrap(), None);
    }
}
