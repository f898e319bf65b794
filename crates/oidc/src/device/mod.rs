//! Login of a device without a browser (RFC 8628): it shows a code, a person types it elsewhere.
//!
//! Invariants
//! - The device code has 128 random bits; both codes are stored as digests. A user code has
//!   [`USER_CODE_LETTERS`] letters of an alphabet without vowels, which makes no words, and without
//!   letters that are mistaken for others.
//! - A user code can be guessed in the end, so each person has few tries ([`Tries`], section 5.1).
//!   That it is a person who tries is for the page to say.
//! - A device that asks too often is told to slow down, and hears nothing else.

mod tries;

use std::time::Duration;

use aws_lc_rs::rand;
use jiff::Timestamp;
use serde::Serialize;
use url::form_urlencoded;

pub use tries::Tries;

use crate::store::{DevicePoll, DeviceRequest, Digest, NoRandom, Store, StoreError, random_token};

/// The grant type with which a device polls.
pub const DEVICE_CODE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// How long a person has.
pub const LIFETIME: Duration = Duration::from_secs(15 * 60);

/// Seconds between two polls.
pub const INTERVAL: u32 = 5;

/// RFC 8628, section 6.1.
const ALPHABET: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";

/// 34 bits, as the RFC's example has.
pub const USER_CODE_LETTERS: usize = 8;

/// Two random codes hardly ever meet.
const TRIES: usize = 8;

/// The answer to a device, with the status 200 (section 3.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceAnswer {
    pub device_code: String,
    pub user_code: String,
    pub verification_uri: String,
    /// With the code in it, for a picture that a phone reads.
    pub verification_uri_complete: String,
    pub expires_in: u64,
    pub interval: u32,
}

/// Begins a login. `details` says what the device asks for, as the store keeps it;
/// `verification_uri` is the page that takes user codes.
pub async fn start(
    store: &dyn Store,
    client_id: &str,
    details: &str,
    verification_uri: &str,
    now: Timestamp,
) -> Result<DeviceAnswer, StoreError> {
    for _ in 0..TRIES {
        let device_code = random_token()?;
        let user_code = random_user_code()?;
        let device = DeviceRequest {
            device_code: Digest::of(&device_code),
            user_code: Digest::of(&user_code),
            client_id: client_id.to_owned(),
            details: details.to_owned(),
            created_at: now,
            expires_at: now.saturating_add(LIFETIME).unwrap_or(Timestamp::MAX),
            interval: INTERVAL,
        };
        if store.start_device(&device, now).await? {
            return Ok(answer(&device_code, &user_code, verification_uri));
        }
    }
    Err(StoreError::Unavailable {
        place: "user codes".to_owned(),
        detail: "all that were tried are taken".to_owned(),
    })
}

fn answer(device_code: &str, user_code: &str, verification_uri: &str) -> DeviceAnswer {
    let shown = shown_user_code(user_code);
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("user_code", &shown);
    let separator = if verification_uri.contains('?') {
        '&'
    } else {
        '?'
    };
    DeviceAnswer {
        device_code: device_code.to_owned(),
        verification_uri: verification_uri.to_owned(),
        verification_uri_complete: format!("{verification_uri}{separator}{}", query.finish()),
        user_code: shown,
        expires_in: LIFETIME.as_secs(),
        interval: INTERVAL,
    }
}

/// Each letter is as likely as the others: a byte beyond the last multiple of 20 is drawn again.
fn random_user_code() -> Result<String, NoRandom> {
    let mut code = String::with_capacity(USER_CODE_LETTERS);
    while code.len() < USER_CODE_LETTERS {
        let mut byte = [0];
        rand::fill(&mut byte).map_err(|_| NoRandom)?;
        let [byte] = byte;
        if usize::from(byte) < 256 / ALPHABET.len() * ALPHABET.len() {
            code.push(ALPHABET[usize::from(byte) % ALPHABET.len()].into());
        }
    }
    Ok(code)
}

/// `WDJBMJHT` as `WDJB-MJHT`.
fn shown_user_code(code: &str) -> String {
    let (first, second) = code.split_at(code.len() / 2);
    format!("{first}-{second}")
}

/// What a person typed, as the device shows it. `None` if it can be no code.
pub fn tidied_user_code(typed: &str) -> Option<String> {
    letters_of(typed).map(|code| shown_user_code(&code))
}

/// What a person typed, as it is stored: case and everything that is no letter do not count.
/// `None` if it can be no code.
pub fn typed_user_code(typed: &str) -> Option<Digest> {
    letters_of(typed).map(|code| Digest::of(&code))
}

fn letters_of(typed: &str) -> Option<String> {
    let letters: String = typed
        .chars()
        .filter(|c| !c.is_whitespace() && !matches!(c, '-' | '.' | '_' | '\u{2010}'..='\u{2015}'))
        .map(|c| c.to_ascii_uppercase())
        .take(USER_CODE_LETTERS + 1)
        .collect();
    let fits = |letter: u8| ALPHABET.contains(&letter);
    let is_code = letters.len() == USER_CODE_LETTERS && letters.bytes().all(fits);
    is_code.then_some(letters)
}

/// Why a device has no tokens yet (section 3.5). Each is 400 with its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotYet {
    #[error("the user has not decided yet")]
    AuthorizationPending,
    #[error("the user refused")]
    AccessDenied,
    #[error("the code has expired, or never was")]
    ExpiredToken,
    #[error("the device asks too often; it must wait {interval} seconds")]
    SlowDown { interval: u32 },
}

impl NotYet {
    pub fn code(&self) -> &'static str {
        match self {
            Self::AuthorizationPending => "authorization_pending",
            Self::AccessDenied => "access_denied",
            Self::ExpiredToken => "expired_token",
            Self::SlowDown { .. } => "slow_down",
        }
    }
}

/// Answers a device that polls. Where the user has approved, the digest of the device code is that
/// of a code of the authorization endpoint, which is then redeemed.
pub async fn poll(
    store: &dyn Store,
    device_code: &str,
    now: Timestamp,
) -> Result<Result<Digest, NotYet>, StoreError> {
    let digest = Digest::of(device_code);
    Ok(match store.poll_device(digest, now).await? {
        DevicePoll::Approved => Ok(digest),
        DevicePoll::Denied => Err(NotYet::AccessDenied),
        DevicePoll::Pending => Err(NotYet::AuthorizationPending),
        DevicePoll::SlowDown { interval } => Err(NotYet::SlowDown { interval }),
        DevicePoll::Unknown => Err(NotYet::ExpiredToken),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        store::{DeviceDecision, Presented},
        store_tests::*,
    };

    #[test]
    fn a_user_code_is_read_however_it_is_typed() {
        let code = random_user_code().unwrap();
        assert_eq!(code.len(), USER_CODE_LETTERS);
        assert_ne!(code, random_user_code().unwrap());
        let stored = Some(Digest::of(&code));
        for typed in [
            code.clone(),
            shown_user_code(&code),
            code.to_lowercase(),
            format!(" {} {} ", &code[..4], &code[4..]),
            format!("{}\u{2013}{}", &code[..4], &code[4..]),
        ] {
            assert_eq!(typed_user_code(&typed), stored, "{typed}");
            assert_eq!(tidied_user_code(&typed), Some(shown_user_code(&code)));
        }
        for bad in ["", "BCDF", "BCDFBCDFB", "AAAAAAAA", "BCDF-BCD1", "ÄCDFBCDF"] {
            assert_eq!(typed_user_code(bad), None, "{bad}");
        }
        assert_eq!(typed_user_code(&"B".repeat(1 << 20)), None);
    }

    #[test]
    fn the_answer_has_the_members_of_the_standard() {
        let answer = answer("d1", "WDJBMJHT", "https://idp.example/device");
        assert_eq!(
            serde_json::to_value(&answer).unwrap(),
            serde_json::json!({
                "device_code": "d1", "user_code": "WDJB-MJHT", "expires_in": 900, "interval": 5,
                "verification_uri": "https://idp.example/device",
                "verification_uri_complete": "https://idp.example/device?user_code=WDJB-MJHT",
            })
        );
        let codes = [
            NotYet::AuthorizationPending,
            NotYet::AccessDenied,
            NotYet::ExpiredToken,
            NotYet::SlowDown { interval: 10 },
        ]
        .map(|not_yet| not_yet.code());
        assert_eq!(
            codes,
            [
                "authorization_pending",
                "access_denied",
                "expired_token",
                "slow_down"
            ]
        );
    }

    #[tokio::test]
    async fn a_device_waits_until_its_user_has_decided() {
        let world = World::new().await;
        let store = &world.store;
        let uri = "https://idp.example/device";
        let begun = async || start(store, "app", "{}", uri, now()).await.unwrap();
        let answer = async |device: &DeviceAnswer, seconds| {
            let polled = poll(store, &device.device_code, after(seconds)).await;
            polled.unwrap().map_err(|not_yet| not_yet.code())
        };
        let device = begun().await;
        assert_eq!(answer(&device, 5).await, Err("authorization_pending"));
        assert_eq!(answer(&device, 6).await, Err("slow_down"));
        let typed = typed_user_code(&device.user_code).unwrap();
        let waiting = store.device(typed, after(7)).await.unwrap().unwrap();
        assert_eq!(
            (waiting.client_id.as_str(), waiting.details.as_str()),
            ("app", "{}")
        );
        let approved = DeviceDecision::Approved(new_grant("app"));
        assert!(
            store
                .decide_device(typed, &approved, after(8))
                .await
                .unwrap()
        );
        let code = answer(&device, 60).await.unwrap();
        assert_eq!(code, Digest::of(&device.device_code));
        let presented = store.present_code(code, after(60)).await.unwrap();
        assert!(matches!(presented, Presented::Valid(grant) if grant.client_id == "app"));

        let refused = begun().await;
        let typed = typed_user_code(&refused.user_code).unwrap();
        let denied = DeviceDecision::Denied;
        assert!(store.decide_device(typed, &denied, after(8)).await.unwrap());
        assert_eq!(answer(&refused, 60).await, Err("access_denied"));
        let late = begun().await;
        assert_eq!(answer(&late, 901).await, Err("expired_token"));
        let unknown = poll(store, "0", now()).await.unwrap();
        assert_eq!(unknown, Err(NotYet::ExpiredToken));
    }
}
