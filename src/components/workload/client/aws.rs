//! Credentials of AWS for a token: `AssumeRoleWithWebIdentity` of its token service.
//!
//! The request is a form without a signature, since the token is the proof. Both directions follow
//! the API reference of AWS STS, version 2011-06-15.

use std::time::Duration;

use ::http::StatusCode;
use serde::Serialize;
use tailbone_values::excerpt;
use url::Url;

use super::issuer::unverified_claims;
use crate::{
    config::{Environment, Secret},
    http::client,
};

/// The audience that AWS SDKs use by convention.
pub const AUDIENCE: &str = "sts.amazonaws.com";
const ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The role to take on.
#[derive(Debug, Clone)]
pub struct RoleRequest {
    pub role_arn: String,
    /// Made of the token's subject if absent.
    pub session_name: Option<String>,
    pub duration_seconds: Option<u32>,
}

/// What a `credential_process` prints.
#[derive(Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RoleCredentials {
    pub version: u8,
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: String,
    /// As AWS writes it: RFC 3339.
    pub expiration: String,
}

impl std::fmt::Debug for RoleCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RoleCredentials")
            .field("expiration", &self.expiration)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    #[error("AWS's token service at {server} cannot be reached")]
    Unreachable {
        server: String,
        #[source]
        cause: reqwest::Error,
    },
    #[error("AWS's token service at {server} did not answer in time")]
    TimedOut { server: String },
    #[error("AWS's token service refused: {status}: {code}: {message}")]
    Refused {
        status: StatusCode,
        code: String,
        message: String,
    },
    #[error("the answer of {server} contains no credentials")]
    InvalidAnswer { server: String },
}

impl RoleError {
    /// SDKs repeat these too. `IDPCommunicationError` says that AWS did not reach the issuer.
    fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } => true,
            Self::Refused { status, code, .. } => {
                status.is_server_error()
                    || *status == StatusCode::TOO_MANY_REQUESTS
                    || ["IDPCommunicationError", "Throttling"].contains(&code.as_str())
            }
            Self::InvalidAnswer { .. } => false,
        }
    }
}

/// Where the service is, as SDKs decide it: a configured address first, then the region's, then the
/// one for the whole world. The error is what is wrong with a variable.
pub fn endpoint(
    region: Option<&str>,
    address: Option<&str>,
    variables: &Environment,
) -> Result<Url, String> {
    let is_true = |name| {
        variables
            .text(name)
            .is_some_and(|v| v.eq_ignore_ascii_case("true"))
    };
    let configured = ["AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"]
        .into_iter()
        .filter(|_| !is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"))
        .find_map(|name| variables.text(name));
    if let Some(text) = address.or(configured) {
        return Url::parse(text)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| format!("{text}: not an address of AWS's token service"));
    }
    let of_variables = || {
        ["AWS_REGION", "AWS_DEFAULT_REGION"]
            .into_iter()
            .find_map(|name| variables.text(name))
    };
    let host = match region.or_else(of_variables) {
        None => "sts.amazonaws.com".to_owned(),
        Some(region) => {
            let right = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            if region.is_empty() || !region.bytes().all(|byte| right(byte) || byte == b'-') {
                return Err(format!("{region}: not a region such as eu-west-1"));
            }
            // In the regions of the US government the usual names are of validated modules.
            let fips = is_true("AWS_USE_FIPS_ENDPOINT") && !region.starts_with("us-gov-");
            let service = if fips { "sts-fips" } else { "sts" };
            format!("{service}.{region}.{}", suffix(region))
        }
    };
    Url::parse(&format!("https://{host}/")).map_err(|_| format!("{host}: not a host name"))
}

/// The domain of a region's partition.
fn suffix(region: &str) -> &'static str {
    const SUFFIXES: [(&str, &str); 6] = [
        ("cn-", "amazonaws.com.cn"),
        ("eu-isoe-", "cloud.adc-e.uk"),
        ("eusc-", "amazonaws.eu"),
        ("us-iso-", "c2s.ic.gov"),
        ("us-isob-", "sc2s.sgov.gov"),
        ("us-isof-", "csp.hci.ic.gov"),
    ];
    SUFFIXES
        .into_iter()
        .find(|(prefix, _)| region.starts_with(prefix))
        .map_or("amazonaws.com", |(_, suffix)| suffix)
}

/// Takes on the role. What may pass is tried again, a few times.
pub async fn assume_role(
    http: &reqwest::Client,
    endpoint: &Url,
    role: &RoleRequest,
    token: &Secret,
) -> Result<RoleCredentials, RoleError> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..ATTEMPTS {
        match attempt(http, endpoint, role, token).await {
            Err(error) if error.is_passing() => tokio::time::sleep(pause).await,
            outcome => return outcome,
        }
        pause *= 2;
    }
    attempt(http, endpoint, role, token).await
}

async fn attempt(
    http: &reqwest::Client,
    endpoint: &Url,
    role: &RoleRequest,
    token: &Secret,
) -> Result<RoleCredentials, RoleError> {
    let server = || endpoint.as_str().trim_end_matches('/').to_owned();
    let failed = |error: reqwest::Error| {
        if error.is_timeout() {
            RoleError::TimedOut { server: server() }
        } else {
            RoleError::Unreachable {
                server: server(),
                cause: error.without_url(),
            }
        }
    };
    let session = match &role.session_name {
        Some(name) => name.clone(),
        None => session_name(token),
    };
    let duration = role.duration_seconds.map(|seconds| seconds.to_string());
    let mut form = vec![
        ("Action", "AssumeRoleWithWebIdentity"),
        ("Version", "2011-06-15"),
        ("RoleArn", &role.role_arn),
        ("RoleSessionName", &session),
        ("WebIdentityToken", token.reveal()),
    ];
    form.extend(
        duration
            .as_deref()
            .map(|seconds| ("DurationSeconds", seconds)),
    );
    let response = http
        .post(endpoint.clone())
        .form(&form)
        .send()
        .await
        .map_err(failed)?;
    let status = response.status();
    let body = client::read_body(response).await.map_err(failed)?;
    let body = String::from_utf8(body.unwrap_or_default()).unwrap_or_default();
    if status != StatusCode::OK {
        let text = |name| excerpt(&element(&body, name).unwrap_or_default());
        return Err(RoleError::Refused {
            status,
            code: text("Code"),
            message: text("Message"),
        });
    }
    credentials(&body).ok_or_else(|| RoleError::InvalidAnswer { server: server() })
}

fn credentials(xml: &str) -> Option<RoleCredentials> {
    let inside = |name| element(xml, name).filter(|text| !text.is_empty());
    Some(RoleCredentials {
        version: 1,
        access_key_id: inside("AccessKeyId")?,
        secret_access_key: inside("SecretAccessKey")?,
        session_token: inside("SessionToken")?,
        expiration: inside("Expiration")?,
    })
}

/// The text of the first element with this name. The answer has each of these names once, without a
/// prefix and without attributes.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, after) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = after.split_once(&format!("</{name}>"))?;
    let text = text.trim();
    let entities = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&amp;", "&"),
    ];
    Some(
        entities
            .iter()
            .fold(text.to_owned(), |text, (name, c)| text.replace(name, c)),
    )
}

/// The token's subject in the characters that a session's name may have, so that AWS's log names
/// the machine.
fn session_name(token: &Secret) -> String {
    let claims = unverified_claims(token.reveal()).unwrap_or_default();
    let subject = claims.get("sub").and_then(|sub| sub.as_str());
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    let name: String = subject
        .unwrap_or_default()
        .chars()
        .map(|c| if allowed(c) { c } else { '-' })
        .take(64)
        .collect();
    if name.len() < 2 {
        "tailbone".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

    use super::*;

    #[test]
    fn the_service_is_found_as_sdks_find_it() {
        let at = |region, address, variables: &[(&str, &str)]| {
            endpoint(region, address, &variables.iter().copied().collect()).map(String::from)
        };
        let region = ("AWS_REGION", "eu-west-1");
        let address = ("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:5");
        let ok = |text: &str| Ok(text.to_owned());
        assert_eq!(at(None, None, &[]), ok("https://sts.amazonaws.com/"));
        assert_eq!(
            at(None, None, &[region, ("AWS_DEFAULT_REGION", "us-east-2")]),
            ok("https://sts.eu-west-1.amazonaws.com/")
        );
        assert_eq!(
            at(Some("cn-north-1"), None, &[region]),
            ok("https://sts.cn-north-1.amazonaws.com.cn/")
        );
        assert_eq!(
            at(None, None, &[region, ("AWS_USE_FIPS_ENDPOINT", "true")]),
            ok("https://sts-fips.eu-west-1.amazonaws.com/")
        );
        assert_eq!(
            at(
                None,
                None,
                &[region, address, ("AWS_ENDPOINT_URL", "http://x")]
            ),
            ok("http://127.0.0.1:5/")
        );
        let ignored = ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "TRUE");
        assert_eq!(
            at(None, None, &[region, address, ignored]),
            ok("https://sts.eu-west-1.amazonaws.com/")
        );
        assert_eq!(
            at(None, Some("https://y"), &[region, address]),
            ok("https://y/")
        );
        assert!(at(Some("evil.example/"), None, &[]).is_err());
        assert!(at(None, Some("y"), &[]).is_err());
    }

    #[test]
    fn the_answer_is_read() {
        let xml = "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/\">\n\
             <AssumeRoleWithWebIdentityResult><Credentials>\n<AccessKeyId>AKIA</AccessKeyId>\
             <SecretAccessKey>s&amp;lt;</SecretAccessKey><SessionToken>\n  t=\n</SessionToken>\
             <Expiration>2026-11-30T12:00:00Z</Expiration></Credentials>";
        let read = credentials(xml).unwrap();
        assert_eq!(read.secret_access_key, "s&lt;");
        assert_eq!(
            serde_json::to_string(&read).unwrap(),
            r#"{"Version":1,"AccessKeyId":"AKIA","SecretAccessKey":"s&lt;","SessionToken":"t=","Expiration":"2026-11-30T12:00:00Z"}"#
        );
        assert!(!format!("{read:?}").contains("s&lt;"));
        assert!(credentials("<html>").is_none());
        assert!(credentials(&xml.replace("AKIA", "")).is_none());
    }

    #[test]
    fn a_session_is_named_after_the_subject() {
        let token = |sub: &str| {
            let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"sub":"{sub}"}}"#));
            Secret::new(format!("e30.{claims}.c2ln"))
        };
        assert_eq!(
            session_name(&token("web.tail1234.ts.net")),
            "web.tail1234.ts.net"
        );
        assert_eq!(session_name(&token("spiffe://t/a b")), "spiffe---t-a-b");
        assert_eq!(session_name(&token(&"x".repeat(100))).len(), 64);
        assert_eq!(session_name(&token("x")), "tailbone");
    }
}
