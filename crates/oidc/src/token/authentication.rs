//! How a client says who it is, at the endpoints for programs.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;
use tailbone_values::{Secret, excerpt};
use url::form_urlencoded;

use crate::{OidcError, Params, assertion::ClientAssertion, client::ClientMetadata};

/// What a request presents.
#[derive(Clone)]
pub struct Presented {
    pub client_id: String,
    pub credentials: Credentials,
}

/// By what a client shows who it is. Not verified.
#[derive(Clone)]
pub enum Credentials {
    Assertion(Box<ClientAssertion>),
    /// The client only names itself.
    None,
    Secret(Secret),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Assertion(_) => "Assertion(hidden)",
            Self::None => "None",
            Self::Secret(_) => "Secret(hidden)",
        })
    }
}

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presented")
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

impl Presented {
    /// Whether the client does more than name itself.
    pub fn has_credentials(&self) -> bool {
        !matches!(self.credentials, Credentials::None)
    }

    /// Reads the `Authorization` header and the form. `Ok(None)`: nothing is presented.
    pub fn read(authorization: Option<&str>, form: &Params) -> Result<Option<Self>, OidcError> {
        let refused = || OidcError::invalid_client(StatusCode::UNAUTHORIZED);
        let two_ways =
            || OidcError::invalid_request("the client authenticates in two ways at once");
        let basic = match authorization.and_then(|value| value.split_once(' ')) {
            Some((scheme, encoded)) if scheme.eq_ignore_ascii_case("basic") => {
                Some(Self::basic(encoded.trim()).ok_or_else(refused)?)
            }
            _ => None,
        };
        let (id, secret) = (form.get("client_id"), form.get("client_secret"));
        let kind = form.get("client_assertion_type");
        match (form.get("client_assertion"), kind) {
            (None, None) => {}
            // RFC 6749, section 2.3: one method for one request.
            _ if basic.is_some() || secret.is_some() => return Err(two_ways()),
            (Some(assertion), Some(kind)) => {
                return Self::asserted(kind, assertion, id).map(Some);
            }
            _ => {
                return Err(OidcError::invalid_request(
                    "client_assertion and client_assertion_type are given together",
                ));
            }
        }
        match (basic, id, secret) {
            (Some(_), _, Some(_)) => Err(two_ways()),
            (Some(basic), Some(id), None) if basic.client_id != id => Err(
                OidcError::invalid_request("client_id differs from the one in Authorization"),
            ),
            (Some(basic), _, None) => Ok(Some(basic)),
            (None, Some(id), secret) => Ok(Some(Self {
                client_id: id.to_owned(),
                credentials: secret.map_or(Credentials::None, |secret| {
                    Credentials::Secret(Secret::new(secret))
                }),
            })),
            (None, None, Some(_)) => Err(refused()),
            (None, None, None) => Ok(None),
        }
    }

    /// RFC 7523, section 2.2.
    fn asserted(kind: &str, assertion: &str, client_id: Option<&str>) -> Result<Self, OidcError> {
        let assertion = ClientAssertion::read(kind, assertion, client_id).map_err(|error| {
            let client_id = client_id.map(excerpt);
            tracing::warn!(target: "oidc", client_id, reason = error.code(), error = %error, "an assertion of a client cannot be read");
            OidcError::invalid_client(StatusCode::UNAUTHORIZED)
        })?;
        Ok(Self {
            client_id: assertion.client_id().to_owned(),
            credentials: Credentials::Assertion(Box::new(assertion)),
        })
    }

    /// RFC 6749, section 2.3.1: both halves are encoded as in a form, and then together in base64.
    fn basic(encoded: &str) -> Option<Self> {
        let text = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
        let (id, secret) = text.split_once(':')?;
        let (id, secret) = (decoded(id), decoded(secret));
        (!id.is_empty() && !secret.is_empty()).then(|| Self {
            client_id: id,
            credentials: Credentials::Secret(Secret::new(secret)),
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
/// nothing. The two ways to send a secret are one: tsidp does not tell them apart either. An
/// assertion proves nothing here: it takes keys and a store.
pub fn prove(
    presented: &Presented,
    client: &ClientMetadata,
    is_secret: impl Fn(&str) -> bool,
) -> Result<Proven, OidcError> {
    let method = client.token_endpoint_auth_method;
    match &presented.credentials {
        Credentials::Secret(secret)
            if (method.has_secret() || client.is_public()) && is_secret(secret.reveal()) =>
        {
            Ok(Proven::Confidential)
        }
        Credentials::None if client.is_public() => Ok(Proven::Public),
        _ => Err(OidcError::invalid_client(StatusCode::UNAUTHORIZED)),
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;
    use crate::client::AuthMethod;

    fn read(authorization: Option<&str>, form: &str) -> Result<Option<(String, String)>, u16> {
        Presented::read(authorization, &Params::parse(form.as_bytes()))
            .map(|presented| {
                presented.map(|one| {
                    let shown = match one.credentials {
                        Credentials::Assertion(_) => "assertion".to_owned(),
                        Credentials::None => String::new(),
                        Credentials::Secret(secret) => secret.reveal().to_owned(),
                    };
                    (one.client_id, shown)
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
    fn an_assertion_is_the_only_way_of_its_request() {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let token = format!(
            "{}.{}.{}",
            part(r#"{"alg":"RS256"}"#),
            part(r#"{"iss":"c","sub":"c"}"#),
            part("signature")
        );
        let kind = format!("client_assertion_type={}", crate::assertion::JWT_BEARER);
        let form = format!("{kind}&client_assertion={token}");
        let is = Ok(Some(("c".to_owned(), "assertion".to_owned())));
        assert_eq!(read(None, &form), is);
        assert_eq!(read(None, &format!("{form}&client_id=c")), is);
        assert_eq!(read(None, &format!("{form}&client_id=d")), Err(401));
        assert_eq!(read(None, &format!("{form}&client_secret=s")), Err(400));
        assert_eq!(read(Some(&basic("c:s")), &form), Err(400));
        assert_eq!(read(None, &kind), Err(400));
        assert_eq!(read(None, &format!("client_assertion={token}")), Err(400));
        let other = "client_assertion_type=urn:x&client_assertion=";
        assert_eq!(read(None, &format!("{other}{token}")), Err(401));
        assert_eq!(
            read(None, &format!("{kind}&client_assertion=a.b.c")),
            Err(401)
        );
    }

    #[test]
    fn who_proves_what() {
        let present = |secret: Option<&str>| Presented {
            client_id: "c".into(),
            credentials: secret.map_or(Credentials::None, |secret| {
                Credentials::Secret(Secret::new(secret))
            }),
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
