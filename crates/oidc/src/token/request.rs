//! Reading a token request.

use http::StatusCode;

use crate::{OidcError, Params, device::DEVICE_CODE_GRANT};

pub const AUTHORIZATION_CODE: &str = "authorization_code";
pub const CLIENT_CREDENTIALS: &str = "client_credentials";
pub const REFRESH_TOKEN: &str = "refresh_token";
pub const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
pub const ACCESS_TOKEN_TYPE: &str = "urn:ietf:params:oauth:token-type:access_token";

/// The grant types that are switched on, beside those that always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offers {
    pub token_exchange: bool,
}

impl Offers {
    /// As discovery tells them, tsidp's first and in its order.
    pub fn grant_types(self) -> Vec<&'static str> {
        let mut names = vec![AUTHORIZATION_CODE, REFRESH_TOKEN];
        names.extend(self.token_exchange.then_some(TOKEN_EXCHANGE));
        names.extend([CLIENT_CREDENTIALS, DEVICE_CODE_GRANT]);
        names
    }
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenRequest<'a> {
    ClientCredentials,
    Code {
        code: &'a str,
        redirect_uri: Option<&'a str>,
        verifier: Option<&'a str>,
        resources: &'a [String],
    },
    Device {
        device_code: &'a str,
        resources: &'a [String],
    },
    Exchange(Exchange<'a>),
    Refresh {
        token: &'a str,
        resources: &'a [String],
    },
}

/// RFC 8693.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange<'a> {
    pub subject_token: &'a str,
    pub audiences: &'a [String],
    pub actor_token: Option<&'a str>,
    pub scope: Option<&'a str>,
}

impl<'a> TokenRequest<'a> {
    pub fn read(params: &'a Params, offers: Offers) -> Result<Self, OidcError> {
        params.check_duplicates()?;
        let unsupported = |words: &'static str| OidcError::bad("unsupported_grant_type", words);
        match params.get("grant_type") {
            Some(AUTHORIZATION_CODE) => Ok(Self::Code {
                code: required(params, "code")?,
                redirect_uri: params.get("redirect_uri"),
                verifier: params.get("code_verifier"),
                resources: params.all("resource"),
            }),
            Some(REFRESH_TOKEN) => Ok(Self::Refresh {
                token: required(params, "refresh_token")?,
                resources: params.all("resource"),
            }),
            Some(CLIENT_CREDENTIALS) => Ok(Self::ClientCredentials),
            Some(DEVICE_CODE_GRANT) => Ok(Self::Device {
                device_code: required(params, "device_code")?,
                resources: params.all("resource"),
            }),
            Some(TOKEN_EXCHANGE) if offers.token_exchange => {
                Exchange::read(params).map(Self::Exchange)
            }
            Some(TOKEN_EXCHANGE) => Err(unsupported("token exchange not enabled")),
            _ => Err(unsupported("unsupported grant type")),
        }
    }
}

impl<'a> Exchange<'a> {
    fn read(params: &'a Params) -> Result<Self, OidcError> {
        let subject_token = required(params, "subject_token")?;
        let unsupported = |name: &str| OidcError::invalid_request(format!("unsupported {name}"));
        if params.get("subject_token_type") != Some(ACCESS_TOKEN_TYPE) {
            return Err(unsupported("subject_token_type"));
        }
        let other = |name: &str| {
            params
                .get(name)
                .is_some_and(|kind| kind != ACCESS_TOKEN_TYPE)
        };
        if other("requested_token_type") {
            return Err(unsupported("requested_token_type"));
        }
        let audiences = params.all("audience");
        if audiences.is_empty() {
            return Err(OidcError::invalid_request("audience is required"));
        }
        if other("actor_token_type") {
            return Err(unsupported("actor_token_type"));
        }
        Ok(Self {
            subject_token,
            audiences,
            actor_token: params.get("actor_token"),
            scope: params.get("scope"),
        })
    }
}

fn required<'a>(params: &'a Params, name: &'static str) -> Result<&'a str, OidcError> {
    let missing = || {
        let status = StatusCode::BAD_REQUEST;
        OidcError::new(status, "invalid_request", format!("{name} is required"))
    };
    params.get(name).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(form: &str, token_exchange: bool) -> (String, String) {
        let params = Params::parse(form.as_bytes());
        let error = TokenRequest::read(&params, Offers { token_exchange }).unwrap_err();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        (error.code.to_owned(), error.description.into_owned())
    }

    #[test]
    fn refusals_in_tsidps_words() {
        let exchange = format!("grant_type={TOKEN_EXCHANGE}");
        let typed = format!("{exchange}&subject_token=t&subject_token_type={ACCESS_TOKEN_TYPE}");
        for (form, code, words) in [
            ("", "unsupported_grant_type", "unsupported grant type"),
            (
                "grant_type=password",
                "unsupported_grant_type",
                "unsupported grant type",
            ),
            (
                "grant_type=implicit",
                "unsupported_grant_type",
                "unsupported grant type",
            ),
            (
                "grant_type=authorization_code",
                "invalid_request",
                "code is required",
            ),
            (
                "grant_type=refresh_token",
                "invalid_request",
                "refresh_token is required",
            ),
            (
                "grant_type=refresh_token&refresh_token=1&refresh_token=2",
                "invalid_request",
                "a parameter occurs twice",
            ),
            (
                &format!("grant_type={DEVICE_CODE_GRANT}"),
                "invalid_request",
                "device_code is required",
            ),
            (&exchange, "invalid_request", "subject_token is required"),
            (
                &format!("{exchange}&subject_token=t"),
                "invalid_request",
                "unsupported subject_token_type",
            ),
            (
                &format!("{typed}&requested_token_type=x"),
                "invalid_request",
                "unsupported requested_token_type",
            ),
            (&typed, "invalid_request", "audience is required"),
            (
                &format!("{typed}&audience=a&actor_token_type=x"),
                "invalid_request",
                "unsupported actor_token_type",
            ),
        ] {
            assert_eq!(
                refusal(form, true),
                (code.to_owned(), words.to_owned()),
                "{form}"
            );
        }
        let off = refusal(&typed, false);
        assert_eq!(off.1, "token exchange not enabled");
    }

    #[test]
    fn an_exchange_may_name_several_audiences() {
        let form = format!(
            "grant_type={TOKEN_EXCHANGE}&subject_token=t&subject_token_type={ACCESS_TOKEN_TYPE}&audience=a&audience=b"
        );
        let params = Params::parse(form.as_bytes());
        let offers = Offers {
            token_exchange: true,
        };
        let Ok(TokenRequest::Exchange(exchange)) = TokenRequest::read(&params, offers) else {
            panic!("no exchange");
        };
        assert_eq!(exchange.audiences, ["a", "b"]);
        assert_eq!(offers.grant_types()[2], TOKEN_EXCHANGE);
    }
}
