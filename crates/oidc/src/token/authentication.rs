//! How a client says who it is, at the endpoints for programs.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;
use tailbone_values::Secret;
use url::form_urlencoded;

use crate::{OidcError, Params, client::ClientMetadata};

/// What a request presents.
#[derive(Clone, PartialEq, Eq)]
pub struct Presented {
    pub client_id: String,
    /// `None`: the client only names itself.
    pub secret: Option<Secret>,
}

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presented")
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

impl Presented {
    /// Reads the `Authorization` header and the form. `Ok(None)`: nothing is presented.
    pub fn read(authorization: Option<&str>, form: &Params) -> Result<Option<Self>, OidcError> {
        let refused = || OidcError::invalid_client(StatusCode::UNAUTHORIZED);
        let basic = match authorization.and_then(|value| value.split_once(' ')) {
            Some((scheme, encoded)) if scheme.eq_ignore_ascii_case("basic") => {
                Some(Self::basic(encoded.trim()).ok_or_else(refused)?)
            }
            _ => None,
        };
        let (id, secret) = (form.get("client_id"), form.get("client_secret"));
        match (basic, id, secret) {
            // RFC 6749, section 2.3: one method for one request.
            (Some(_), _, Some(_)) => Err(OidcError::invalid_request(
                "the client authenticates in two ways at once",
            )),
            (Some(basic), Some(id), None) if basic.client_id != id => Err(
                OidcError::invalid_request("client_id differs from the one in Authorization"),
            ),
            (Some(basic), _, None) => Ok(Some(basic)),
            (None, Some(id), secret) => Ok(Some(Self {
                client_id: id.to_owned(),
                secret: secret.map(Secret::new),
            })),
            (None, None, Some(_)) => Err(refused()),
            (None, None, None) => Ok(None),
        }
    }

    /// RFC 6749, section 2.3.1: both halves are encoded as in a form, and then together in base64.
    fn basic(encoded: &str) -> Option<Self> {
        let text = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
        let (id, secret) = text.split_once(':')?;
        let (id, secret) = (decoded(id), decoded(secret));
        (!id.is_empty() && !secret.is_empty()).then(|| Self {
            client_id: id,
            secret: Some(Secret::new(secret)),
        })
    }
}

fn decoded(text: &str) -> String {
    let pair = form_urlencoded::parse(text.as_bytes()).next();
    // A `=` of a client that does not encode would begin a value.
    match pair {
        Some((name, _)) if !text.contains(['=', '&']) => name.into_owned(),
        _ => text.to_owned(),
    }
}

/// How sure it is who the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proven {
    /// It has shown its secret.
    Confidential,
    /// It has none, and only named itself.
    Public,
}

/// Whether the presented secret is one of the client's. `is_secret` compares in a time that tells
/// nothing. The two ways to send a secret are one: tsidp does not tell them apart either.
pub fn prove(
    presented: &Presented,
    client: &ClientMetadata,
    is_secret: impl Fn(&str) -> bool,
) -> Result<Proven, OidcError> {
    let method = client.token_endpoint_auth_method;
    match &presented.secret {
        Some(secret)
            if (method.has_secret() || client.is_public()) && is_secret(secret.reveal()) =>
        {
            Ok(Proven::Confidential)
        }
        None if client.is_public() => Ok(Proven::Public),
        _ => Err(OidcError::invalid_client(StatusCode::UNAUTHORIZED)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::AuthMethod;

    fn read(authorization: Option<&str>, form: &str) -> Result<Option<(String, String)>, u16> {
        Presented::read(authorization, &Params::parse(form.as_bytes()))
            .map(|presented| {
                presented.map(|one| {
                    let secret = one
                        .secret
                        .map_or(String::new(), |one| one.reveal().to_owned());
                    (one.client_id, secret)
                })
            })
            .map_err(|error| error.status.as_u16())
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    #[test]
    fn the_header_or_the_form_and_never_both() {
        let is = |id: &str, secret: &str| Ok(Some((id.to_owned(), secret.to_owned())));
        assert_eq!(read(None, ""), Ok(None));
        assert_eq!(read(Some("Bearer x"), ""), Ok(None));
        assert_eq!(read(Some(&basic("c:s")), ""), is("c", "s"));
        assert_eq!(
            read(Some(&basic("c:s").replace("Basic", "basic")), "client_id=c"),
            is("c", "s")
        );
        assert_eq!(read(Some(&basic("a%3Ab:s%2Bt")), ""), is("a:b", "s+t"));
        assert_eq!(read(Some(&basic("c:s=t&u")), ""), is("c", "s=t&u"));
        assert_eq!(read(None, "client_id=c&client_secret=s"), is("c", "s"));
        assert_eq!(read(None, "client_id=c"), is("c", ""));
        assert_eq!(read(Some(&basic("c:s")), "client_id=d"), Err(400));
        assert_eq!(
            read(Some(&basic("c:s")), "client_id=c&client_secret=s"),
            Err(400)
        );
        for wrong in ["Basic !", &basic("c"), &basic(":s"), &basic("c:")] {
            assert_eq!(read(Some(wrong), ""), Err(401), "{wrong}");
        }
        assert_eq!(read(None, "client_secret=s"), Err(401));
    }

    #[test]
    fn who_proves_what() {
        let present = |secret: Option<&str>| Presented {
            client_id: "c".into(),
            secret: secret.map(Secret::new),
        };
        let prove = |method, secret| {
            let client = ClientMetadata {
                token_endpoint_auth_method: method,
                ..ClientMetadata::default()
            };
            super::prove(&present(secret), &client, |one| one == "right")
                .map_err(|error| error.status.as_u16())
        };
        use AuthMethod::{
            ClientSecretBasic, ClientSecretPost, None as Public, PrivateKeyJwt, Unknown,
        };
        for method in [ClientSecretBasic, ClientSecretPost] {
            assert_eq!(prove(method, Some("right")), Ok(Proven::Confidential));
            assert_eq!(prove(method, Some("wrong")), Err(401));
            assert_eq!(prove(method, None), Err(401));
        }
        assert_eq!(prove(Public, None), Ok(Proven::Public));
        assert_eq!(prove(Public, Some("wrong")), Err(401));
        for method in [PrivateKeyJwt, Unknown] {
            assert_eq!(prove(method, Some("right")), Err(401));
            assert_eq!(prove(method, None), Err(401));
        }
        assert!(!format!("{:?}", present(Some("right"))).contains("right"));
    }
}
