//! One token from an issuer: `POST /token?resource=AUDIENCE` with `X-Tsiam: 1`, as tsiam answers it
//! and the component `workload` does.

use std::time::Duration;

use ::http::{StatusCode, header};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};
use tailbone_values::Object;
use url::Url;

use crate::{
    config::Secret,
    http::client::{self, Reach, ReachError},
};

/// An issuer and the way to it. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Issuer {
    http: reqwest::Client,
    base: Url,
}

/// A token and how long it is good for.
#[derive(Debug, Clone)]
pub struct IssuedToken {
    pub token: Secret,
    pub expires: Timestamp,
    /// The whole life, which does not depend on our clock.
    pub life: Duration,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("the issuer at {server} cannot be reached")]
    Unreachable {
        server: String,
        #[source]
        cause: reqwest::Error,
    },
    #[error("the issuer at {server} did not answer in time")]
    TimedOut { server: String },
    #[error("the issuer at {server} refused: {status}: {message}")]
    Refused {
        server: String,
        status: StatusCode,
        message: String,
        retry_after: Option<Duration>,
    },
    #[error("the answer of {server} is no token: {reason}")]
    InvalidAnswer {
        server: String,
        reason: &'static str,
    },
}

impl TokenError {
    /// The least time after which the issuer wants to be asked again.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl Issuer {
    /// `base` is the issuer's address, without `/token`.
    pub fn new(base: Url, timeout: Duration, reach: &Reach) -> Result<Self, ReachError> {
        let http = client::build(timeout, reach)?;
        Ok(Self { http, base })
    }

    /// The address as it was given, without a final slash.
    pub fn address(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    pub fn host(&self) -> &str {
        self.base.host_str().unwrap_or_default()
    }

    /// Asks for one token, without retries.
    pub async fn token(&self, audience: &str, now: Timestamp) -> Result<IssuedToken, TokenError> {
        let mut url = self.below("token");
        url.query_pairs_mut().append_pair("resource", audience);
        let request = self
            .http
            .post(url)
            .header("X-Tsiam", "1")
            .header(header::ACCEPT, "application/json");
        let body = self.answer(request).await?;
        parse_answer(&body, now).map_err(|reason| self.invalid(reason))
    }

    /// The text of a public document of the issuer, such as its JWKS.
    pub async fn document(&self, path: &str) -> Result<String, TokenError> {
        let request = self
            .http
            .get(self.below(path))
            .header(header::ACCEPT, "application/json");
        self.answer(request).await
    }

    pub(super) fn invalid(&self, reason: &'static str) -> TokenError {
        TokenError::InvalidAnswer {
            server: self.address().to_owned(),
            reason,
        }
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<String, TokenError> {
        let response = request.send().await.map_err(|error| self.failed(error))?;
        let status = response.status();
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let body = client::read_body(response)
            .await
            .map_err(|error| self.failed(error))?
            .ok_or_else(|| self.invalid("it is larger than 1 MiB"))?;
        if status != StatusCode::OK {
            return Err(TokenError::Refused {
                server: self.address().to_owned(),
                status,
                message: client::error_message(&String::from_utf8_lossy(&body)),
                retry_after,
            });
        }
        String::from_utf8(body).map_err(|_| self.invalid("it is not UTF-8"))
    }

    fn below(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/{path}"));
        url
    }

    fn failed(&self, error: reqwest::Error) -> TokenError {
        let server = self.address().to_owned();
        if error.is_timeout() {
            TokenError::TimedOut { server }
        } else {
            TokenError::Unreachable {
                server,
                cause: error.without_url(),
            }
        }
    }
}

/// Takes numbers as numbers, and as texts as tsiam and Azure's metadata service write them.
fn parse_answer(body: &str, now: Timestamp) -> Result<IssuedToken, &'static str> {
    #[derive(Deserialize)]
    struct Answer {
        access_token: String,
        expires_in: Option<Value>,
        expires_on: Option<Value>,
    }

    let Object(answer) = serde_json::from_str::<Object<Answer>>(body)
        .map_err(|_| "it is no JSON object with an access_token")?;
    let claims =
        unverified_claims(&answer.access_token).ok_or("the access_token is no JSON Web Token")?;
    let of_answer = |value: Option<&Value>| value.and_then(number);
    let expires = of_answer(answer.expires_on.as_ref())
        .or_else(|| of_answer(claims.get("exp")))
        .ok_or("neither the answer nor the token says when the token ends")?;
    let seconds = of_answer(answer.expires_in.as_ref())
        .or_else(|| Some(expires - of_answer(claims.get("iat"))?))
        .unwrap_or_else(|| expires - now.as_second());
    let life = u64::try_from(seconds)
        .ok()
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
        .ok_or("the token has expired already")?;
    Ok(IssuedToken {
        token: Secret::new(answer.access_token),
        expires: Timestamp::from_second(expires).map_err(|_| "the token's end is no time")?,
        life,
    })
}

fn number(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_i64(),
    }
}

/// The claims of a token whose signature nobody has checked: the verifier does that.
pub(super) fn unverified_claims(token: &str) -> Option<Map<String, Value>> {
    let mut parts = token.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(claims).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// The algorithm that a token's header names.
pub(super) fn algorithm(token: &str) -> Option<String> {
    let (header, _) = token.split_once('.')?;
    let bytes = URL_SAFE_NO_PAD.decode(header).ok()?;
    let header: Map<String, Value> = serde_json::from_slice(&bytes).ok()?;
    Some(header.get("alg")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_319_465;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    fn parse(body: &str) -> Result<(i64, u64), &'static str> {
        let now = Timestamp::from_second(NOW).unwrap();
        parse_answer(body, now).map(|token| (token.expires.as_second(), token.life.as_secs()))
    }

    #[test]
    fn numbers_may_be_texts() {
        let token = token("{}");
        let with = |members: &str| parse(&format!(r#"{{"access_token":"{token}",{members}}}"#));
        assert_eq!(
            with(r#""expires_in":"300","expires_on":"1795319765""#),
            Ok((NOW + 300, 300))
        );
        assert_eq!(
            with(r#""expires_in":300,"expires_on":1795319765"#),
            Ok((NOW + 300, 300))
        );
        assert!(with(r#""expires_in":300"#).is_err());
        assert!(with(r#""expires_in":"0","expires_on":"1795319765""#).is_err());
    }

    #[test]
    fn the_token_says_what_the_answer_does_not() {
        let body = |claims| format!(r#"{{"access_token":"{}"}}"#, token(claims));
        // The clock of the issuer is a minute ahead.
        assert_eq!(
            parse(&body(r#"{"exp":1795319825,"iat":1795319525}"#)),
            Ok((NOW + 360, 300))
        );
        assert_eq!(parse(&body(r#"{"exp":1795319765}"#)), Ok((NOW + 300, 300)));
        assert!(parse(&body("{}")).is_err());
        assert!(parse(&body(r#"{"exp":1795319465}"#)).is_err());
    }

    #[test]
    fn a_page_is_no_token() {
        for odd in [
            "<html>",
            "",
            "[]",
            r#"{"token":"a.b.c"}"#,
            r#"{"access_token":"","expires_in":5,"expires_on":1795319765}"#,
            r#"{"access_token":"opaque","expires_in":5,"expires_on":1795319765}"#,
        ] {
            assert!(parse(odd).is_err(), "{odd}");
        }
    }
}
