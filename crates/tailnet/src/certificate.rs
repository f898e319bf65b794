//! Certificates of the node's own names, as the node hands them out or refuses them.

use std::time::Duration;

use serde::Deserialize;
use tailbone_values::Secret;

use super::{Error, ffi};

/// The longest message about a certificate, in bytes (`tailscale_cert` in `tailscale.h`).
pub(super) const MAX_MESSAGE: usize = 64 * 1024;

/// A certificate chain, the leaf first, and its private key, both as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificatePair {
    pub chain: String,
    pub key: Secret,
}

/// Why there is no certificate. A pair that the node keeps is not touched by it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CertificateError {
    pub reason: CertificateRefusal,
    /// One sentence for people, without a final dot.
    pub message: String,
    /// How long the node refuses to order again. It remembers that over restarts.
    pub retry_after: Option<Duration>,
}

/// The reasons why there may be no certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateRefusal {
    /// The certificate authority refused, with this HTTP status if it gave one. 429 is a rate
    /// limit.
    Authority { status: Option<u16> },
    /// The control server did not publish the DNS record that proves whose name it is.
    Control,
    /// The last order was interrupted, by the end of the process for instance. The node waits
    /// before the next one, since the authority may have counted it.
    Interrupted,
    /// HTTPS is not enabled in the tailnet.
    NoHttps,
    /// The node is closed.
    NodeGone,
    /// The node cannot order now, because it is not on the tailnet.
    NotRunning,
    /// Not a name of this node.
    OtherName,
    /// The node's state cannot be read or written, or something else went wrong in this process.
    Own,
    /// The authority or the control server cannot be reached, or does not answer in time.
    Unreachable,
}

impl CertificateError {
    pub(super) fn new(reason: CertificateRefusal, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            retry_after: None,
        }
    }
}

/// What a call into the node may fail with before anything is ordered.
impl From<Error> for CertificateError {
    fn from(error: Error) -> Self {
        let reason = match &error {
            Error::Canceled => CertificateRefusal::Interrupted,
            Error::Closed => CertificateRefusal::NodeGone,
            Error::State(_) => CertificateRefusal::NotRunning,
            Error::Invalid(_) => CertificateRefusal::OtherName,
            _ => CertificateRefusal::Own,
        };
        Self::new(reason, error.to_string())
    }
}

/// The one message that arrives for a call.
#[derive(Deserialize)]
#[serde(untagged)]
enum Outcome {
    Pair {
        cert: String,
        key: String,
    },
    Failure {
        code: i64,
        message: String,
        acme_status: Option<u16>,
        retry_after: Option<u64>,
    },
}

pub(super) fn parse(message: &[u8]) -> Result<CertificatePair, CertificateError> {
    match serde_json::from_slice(message) {
        Ok(Outcome::Pair { cert, key }) => Ok(CertificatePair {
            chain: cert,
            key: Secret::new(key),
        }),
        Ok(Outcome::Failure {
            code,
            message,
            acme_status,
            retry_after,
        }) => Err(CertificateError {
            reason: ffi::certificate_refusal(code, acme_status),
            message,
            retry_after: retry_after.map(Duration::from_secs),
        }),
        // The text may hold a key, so an error must not repeat it.
        Err(_) => Err(CertificateError::new(
            CertificateRefusal::Own,
            "a message about a certificate that is not ours",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_read_and_its_key_is_not_shown() {
        let pair = parse(br#"{"cert":"CHAIN","key":"SECRET"}"#).unwrap();
        assert_eq!(
            (pair.chain.as_str(), pair.key.reveal()),
            ("CHAIN", "SECRET")
        );
        assert!(!format!("{pair:?}").contains("SECRET"));
    }

    #[test]
    fn each_refusal_is_told_apart() {
        let refusal = |code: i64| {
            let message = format!(
                r#"{{"code":{code},"message":"why","acme_status":null,"retry_after":null}}"#
            );
            parse(message.as_bytes()).unwrap_err().reason
        };
        for (code, reason) in [
            (1, CertificateRefusal::OtherName),
            (2, CertificateRefusal::NodeGone),
            (3, CertificateRefusal::NotRunning),
            (6, CertificateRefusal::Unreachable),
            (7, CertificateRefusal::Interrupted),
            (8, CertificateRefusal::Control),
            (9, CertificateRefusal::Unreachable),
            (10, CertificateRefusal::Own),
            (15, CertificateRefusal::NoHttps),
            (16, CertificateRefusal::Authority { status: None }),
            (99, CertificateRefusal::Own),
        ] {
            assert_eq!(refusal(code), reason, "{code}");
        }
    }

    #[test]
    fn a_rate_limit_comes_with_its_status_and_its_wait() {
        let limit = br#"{"code":16,"message":"too many","acme_status":429,"retry_after":120}"#;
        let error = parse(limit).unwrap_err();
        assert_eq!(
            error.reason,
            CertificateRefusal::Authority { status: Some(429) }
        );
        assert_eq!(error.retry_after, Some(Duration::from_secs(120)));
        assert_eq!(error.to_string(), "too many");
    }

    #[test]
    fn a_message_that_is_not_ours_is_an_error_without_its_text() {
        for message in [&b""[..], b"{}", b"{\"key\":\"SECRET\"}", b"\xff"] {
            let error = parse(message).unwrap_err();
            assert_eq!(error.reason, CertificateRefusal::Own);
            assert!(!error.message.contains("SECRET"));
        }
    }
}
