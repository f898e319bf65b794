//! The client side: finds the job's own token, sends it to an exchange, and returns the access
//! token.
//!
//! Invariants: neither token appears in an error or log line, and the token is only sent to the
//! named server (redirects are not followed). Flags and variables are the command line's concern.

use std::{io::Read, path::PathBuf, time::Duration};

use ::http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use tailbone_values::Object;
use url::Url;

use crate::{config::Secret, http::client};

/// Where to find the job's token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// A file; `-` is standard input.
    File(PathBuf),
    /// The token endpoint of GitHub Actions, available to jobs with `permissions: id-token: write`.
    GitHub {
        url: String,
        request_token: Secret,
        audience: String,
    },
    Text(Secret),
}

/// A request, and the exchange to send it to.
#[derive(Debug, Clone)]
pub struct ExchangeRequest {
    pub server: Url,
    pub token: TokenSource,
    pub scopes: Vec<String>,
    pub tags: Vec<String>,
}

/// The exchange's answer.
#[derive(Debug, Clone)]
pub struct ExchangeResponse {
    pub access_token: Secret,
    pub expires_in: Option<u64>,
    pub scope: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the token file {path} cannot be read")]
    File {
        path: String,
        #[source]
        cause: std::io::Error,
    },
    #[error("the token is empty")]
    EmptyToken,
    #[error("GitHub issued no token")]
    GitHub(#[source] reqwest::Error),
    #[error("GitHub issued no token: {0}")]
    GitHubAnswer(String),
    #[error("the exchange at {server} cannot be reached")]
    Unreachable {
        server: String,
        #[source]
        cause: reqwest::Error,
    },
    #[error("the exchange refused: {status}: {message}")]
    Refused { status: StatusCode, message: String },
    #[error("the exchange's answer contains no access token")]
    InvalidAnswer,
}

const TIMEOUT: Duration = Duration::from_secs(60);

/// Sends one request, without retries.
pub async fn exchange(request: ExchangeRequest) -> Result<ExchangeResponse, ClientError> {
    let server = request.server.to_string();
    let unreachable = |cause: reqwest::Error| ClientError::Unreachable {
        server: server.clone(),
        cause: cause.without_url(),
    };
    let client = client::builder(TIMEOUT).build().map_err(unreachable)?;
    let token = find_token(request.token, &client).await?;
    let response = client
        .post(request.server)
        .bearer_auth(token.reveal())
        // TailSTS ignores this header and answers with text.
        .header(header::ACCEPT, "application/json, text/plain;q=0.5")
        .json(&RequestBody {
            scopes: &request.scopes,
            tags: &request.tags,
        })
        .send()
        .await
        .map_err(unreachable)?;
    let status = response.status();
    let body = response.text().await.map_err(unreachable)?;
    if status != StatusCode::OK {
        return Err(ClientError::Refused {
            status,
            message: client::error_message(&body),
        });
    }
    parse_answer(&body).ok_or(ClientError::InvalidAnswer)
}

#[derive(Serialize)]
struct RequestBody<'a> {
    scopes: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    tags: &'a [String],
}

async fn find_token(source: TokenSource, client: &reqwest::Client) -> Result<Secret, ClientError> {
    let text = match source {
        TokenSource::Text(token) => token,
        TokenSource::File(path) => {
            Secret::new(read_token_file(&path).map_err(|cause| ClientError::File {
                path: path.display().to_string(),
                cause,
            })?)
        }
        TokenSource::GitHub {
            url,
            request_token,
            audience,
        } => github(client, &url, &request_token, &audience).await?,
    };
    match text.reveal().trim() {
        "" => Err(ClientError::EmptyToken),
        trimmed => Ok(Secret::new(trimmed)),
    }
}

fn read_token_file(path: &std::path::Path) -> std::io::Result<String> {
    const MAX_BYTES: u64 = 1 << 20;
    let mut text = String::new();
    if path.as_os_str() == "-" {
        std::io::stdin().take(MAX_BYTES).read_to_string(&mut text)?;
    } else {
        std::fs::File::open(path)?
            .take(MAX_BYTES)
            .read_to_string(&mut text)?;
    }
    Ok(text)
}

async fn github(
    client: &reqwest::Client,
    url: &str,
    request_token: &Secret,
    audience: &str,
) -> Result<Secret, ClientError> {
    #[derive(Deserialize)]
    struct GitHubToken {
        value: String,
    }

    let mut url = Url::parse(url).map_err(|_| {
        ClientError::GitHubAnswer("ACTIONS_ID_TOKEN_REQUEST_URL is no address".to_owned())
    })?;
    url.query_pairs_mut().append_pair("audience", audience);
    let transport_error = |cause: reqwest::Error| ClientError::GitHub(cause.without_url());
    let response = client
        .get(url)
        .bearer_auth(request_token.reveal())
        .header(header::ACCEPT, "application/json")
        .send()
        .await
        .map_err(transport_error)?;
    if response.status() != StatusCode::OK {
        return Err(ClientError::GitHubAnswer(response.status().to_string()));
    }
    let Object(token): Object<GitHubToken> = response.json().await.map_err(transport_error)?;
    Ok(Secret::new(token.value))
}

fn parse_answer(body: &str) -> Option<ExchangeResponse> {
    #[derive(Deserialize)]
    struct JsonAnswer {
        #[serde(alias = "token")]
        access_token: String,
        expires_in: Option<u64>,
        scope: Option<String>,
    }

    let json = match serde_json::from_str::<Object<JsonAnswer>>(body) {
        Ok(Object(json)) => json,
        Err(_) => JsonAnswer {
            access_token: body.trim().to_owned(),
            expires_in: None,
            scope: None,
        },
    };
    let token = json.access_token;
    let valid = !token.is_empty() && token.bytes().all(|c| c.is_ascii_graphic());
    // A page or an object must not end up in somebody's script as a token.
    (valid && !token.starts_with(['<', '{'])).then_some(ExchangeResponse {
        access_token: Secret::new(token),
        expires_in: json.expires_in,
        scope: json.scope,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_every_version_are_read() {
        let found = |body| parse_answer(body).map(|answer| answer.access_token.reveal().to_owned());
        assert_eq!(found("tskey-api-x").as_deref(), Some("tskey-api-x"));
        assert_eq!(found(r#"{"token":"a"}"#).as_deref(), Some("a"));
        assert_eq!(
            found(r#"{"access_token":"a","expires_in":3600}"#).as_deref(),
            Some("a")
        );
        for odd in [
            "",
            "<html>",
            "two words",
            r#"{"access_token":""}"#,
            r#"{"x":1}"#,
        ] {
            assert_eq!(found(odd), None, "{odd}");
        }
    }
}
