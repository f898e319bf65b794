//! The end of a session: the request to sign out, in `request`; and telling clients (OpenID
//! Connect Back-Channel Logout 1.0): the logout token, and its delivery.
//!
//! Invariants
//! - A logout token has a `typ` of its own, an `events` claim and no `nonce`, so that nobody takes
//!   it for an ID token, and it ends after [`LIFE`].
//! - A delivery goes through the guarded client, is tried a few times while the token lives, and
//!   delays no other client's. A client that answers 400 is not asked again.
//! - What is told to a client names the session, the user, or both: what the client knows of.
//!
//! Which clients are told, and signing, are for the provider; when, for the component.

mod request;

use std::{fmt, future::Future, time::Duration};

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use serde::Serialize;

pub use request::{EndSessionRequest, IdTokenHint};

use crate::fetch::{FetchError, FetchUrl, GuardedClient};

/// The `typ` of the header.
pub const LOGOUT_TYP: &str = "logout+jwt";

/// How long a logout token counts: long enough for all tries.
pub const LIFE: Duration = Duration::from_secs(120);

/// Pauses before the second, third and fourth try.
pub const PAUSES: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(25),
];

/// Deliveries of one logout that run at the same time.
const AT_A_TIME: usize = 16;

/// What a logout token says.
#[derive(Debug, Clone, Copy)]
pub struct LogoutClaims<'a> {
    pub issuer: &'a str,
    pub client_id: &'a str,
    /// As the client knows the user.
    pub subject: Option<&'a str>,
    pub session: Option<&'a str>,
    /// A new id.
    pub id: &'a str,
    pub at: Timestamp,
}

/// Neither a session nor a user is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a logout token names a session or a user")]
pub struct NobodyLoggedOut;

/// What is signed, with the type [`LOGOUT_TYP`].
#[derive(Debug, Serialize)]
pub struct LogoutPayload<'a> {
    iss: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a str>,
    aud: &'a str,
    iat: i64,
    exp: i64,
    jti: &'a str,
    events: Events,
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<&'a str>,
}

#[derive(Debug, Default, Serialize)]
struct Events {
    #[serde(rename = "http://schemas.openid.net/event/backchannel-logout")]
    logout: Empty,
}

#[derive(Debug, Default, Serialize)]
struct Empty {}

impl<'a> LogoutClaims<'a> {
    pub fn payload(&self) -> Result<LogoutPayload<'a>, NobodyLoggedOut> {
        if self.subject.is_none() && self.session.is_none() {
            return Err(NobodyLoggedOut);
        }
        let iat = self.at.as_second();
        let life = i64::try_from(LIFE.as_secs()).unwrap_or(i64::MAX);
        Ok(LogoutPayload {
            iss: self.issuer,
            sub: self.subject,
            aud: self.client_id,
            iat,
            exp: iat.saturating_add(life),
            jti: self.id,
            events: Events::default(),
            sid: self.session,
        })
    }
}

/// A token for the `backchannel_logout_uri` of a client.
#[derive(Clone)]
pub struct LogoutNotice {
    pub client_id: String,
    pub url: FetchUrl,
    pub token: String,
}

/// Without the token.
impl fmt::Debug for LogoutNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogoutNotice")
            .field("client_id", &self.client_id)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// What became of a notice.
#[derive(Debug)]
pub struct Delivered {
    pub client_id: String,
    pub tries: u32,
    pub outcome: Result<(), FetchError>,
}

/// Delivers all notices of one logout, and says what became of each, in the order in which they
/// ended. `pause` waits between two tries.
pub async fn deliver<P: Future<Output = ()>>(
    client: &GuardedClient,
    notices: Vec<LogoutNotice>,
    pause: impl Fn(Duration) -> P,
) -> Vec<Delivered> {
    let deliveries = notices
        .into_iter()
        .map(|notice| deliver_one(client, notice, &pause));
    stream::iter(deliveries)
        .buffer_unordered(AT_A_TIME)
        .collect()
        .await
}

async fn deliver_one<P: Future<Output = ()>>(
    client: &GuardedClient,
    notice: LogoutNotice,
    pause: &impl Fn(Duration) -> P,
) -> Delivered {
    let mut tries = 0;
    let mut pauses = PAUSES.iter();
    let outcome = loop {
        tries += 1;
        let form = [("logout_token", notice.token.as_str())];
        let outcome = client.post_form(&notice.url, &form).await;
        let again = outcome.as_ref().is_err_and(FetchError::is_transient);
        match pauses.next() {
            Some(wait) if again => pause(*wait).await,
            _ => break outcome,
        }
    };
    Delivered {
        client_id: notice.client_id,
        tries,
        outcome,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fetch::tests::HostileServer;

    #[test]
    fn a_logout_token_says_what_the_standard_asks_for() {
        let claims = LogoutClaims {
            issuer: "https://idp.example",
            client_id: "app",
            subject: Some("userid:1"),
            session: Some("s1"),
            id: "j1",
            at: Timestamp::from_second(1_800_000_000).unwrap(),
        };
        let payload = serde_json::to_value(claims.payload().unwrap()).unwrap();
        assert_eq!(
            payload,
            json!({
                "iss": "https://idp.example", "sub": "userid:1", "aud": "app", "jti": "j1",
                "iat": 1_800_000_000, "exp": 1_800_000_120, "sid": "s1",
                "events": {"http://schemas.openid.net/event/backchannel-logout": {}},
            })
        );
        let of_session = LogoutClaims {
            subject: None,
            ..claims
        };
        let payload = serde_json::to_value(of_session.payload().unwrap()).unwrap();
        assert!(payload.get("sub").is_none() && payload["sid"] == "s1");
        let of_nobody = LogoutClaims {
            session: None,
            ..of_session
        };
        assert_eq!(of_nobody.payload().err(), Some(NobodyLoggedOut));
        // What the suite and clients refuse.
        assert!(payload.get("nonce").is_none());
    }

    fn notice(server: &HostileServer, client_id: &str, path: &str) -> LogoutNotice {
        LogoutNotice {
            client_id: client_id.to_owned(),
            url: server.url(path),
            token: "h.p.s".to_owned(),
        }
    }

    #[tokio::test]
    async fn every_client_is_told_and_one_that_fails_delays_nobody() {
        let server = HostileServer::start().await;
        server.answer("/ok", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        server.answer("/refuses", "HTTP/1.1 400 no\r\ncontent-length: 0\r\n\r\n");
        server.answer("/broken", "HTTP/1.1 503 no\r\ncontent-length: 0\r\n\r\n");
        server.answer(
            "/elsewhere",
            "HTTP/1.1 307 go\r\nlocation: /ok\r\ncontent-length: 0\r\n\r\n",
        );
        let client = server.client();
        let notices = ["/ok", "/refuses", "/broken", "/elsewhere"];
        let notices = notices.map(|path| notice(&server, path, path)).to_vec();
        let mut told = deliver(&client, notices, |_| std::future::ready(())).await;
        told.sort_by(|a, b| a.client_id.cmp(&b.client_id));
        let summary: Vec<_> = (told.iter())
            .map(|one| (one.client_id.as_str(), one.tries, one.outcome.is_ok()))
            .collect();
        assert_eq!(
            summary,
            [
                ("/broken", 4, false),
                ("/elsewhere", 1, false),
                ("/ok", 1, true),
                ("/refuses", 1, false),
            ]
        );
        assert_eq!(server.bodies("/ok"), ["logout_token=h.p.s"]);
    }

    #[tokio::test]
    async fn a_client_that_comes_back_is_told_at_the_next_try() {
        let server = HostileServer::start().await;
        server.answer("/app", "HTTP/1.1 502 no\r\ncontent-length: 0\r\n\r\n");
        let client = server.client();
        let waits = parking_lot::Mutex::new(Vec::new());
        let told = deliver(&client, vec![notice(&server, "app", "/app")], |wait| {
            waits.lock().push(wait);
            if waits.lock().len() == 2 {
                server.answer("/app", "HTTP/1.1 204 ok\r\n\r\n");
            }
            std::future::ready(())
        })
        .await;
        assert!(told[0].outcome.is_ok() && told[0].tries == 3);
        assert_eq!(*waits.lock(), PAUSES[..2]);
        // All tries lie within the life of the token.
        let longest = PAUSES.iter().sum::<Duration>() + 4 * Duration::from_secs(5);
        assert!(longest < LIFE);
        assert!(!format!("{:?}", notice(&server, "app", "/app")).contains("h.p.s"));
    }
}
