//! Tokens that are given again until half of their life is over, for callers that ask often.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::Mutex;

use super::issuer::{IssuedToken, Issuer, TokenError};

/// More audiences than that are forgotten, oldest token first.
const MAX_AUDIENCES: usize = 256;

#[derive(Debug)]
pub(super) struct CachedTokens {
    pub(super) issuer: Issuer,
    tokens: Mutex<HashMap<String, (IssuedToken, Instant)>>,
}

impl CachedTokens {
    pub(super) fn new(issuer: Issuer) -> Self {
        Self {
            issuer,
            tokens: Mutex::default(),
        }
    }

    /// A token and the rest of its life. Callers wait for each other, so that a burst of them asks
    /// the issuer once.
    pub(super) async fn get(&self, audience: &str) -> Result<(IssuedToken, Duration), TokenError> {
        let mut tokens = self.tokens.lock().await;
        if let Some((token, since)) = tokens.get(audience) {
            let age = since.elapsed();
            // A machine that slept has a timer that stood still.
            let by_clock = token.expires.duration_since(Timestamp::now());
            if age < token.life / 2 && by_clock.is_positive() {
                return Ok((token.clone(), token.life - age));
            }
        }
        let token = self.issuer.token(audience, Timestamp::now()).await?;
        if tokens.len() >= MAX_AUDIENCES && !tokens.contains_key(audience) {
            let oldest = tokens.iter().min_by_key(|(_, (_, since))| *since);
            if let Some(oldest) = oldest.map(|(audience, _)| audience.clone()) {
                tokens.remove(&oldest);
            }
        }
        tokens.insert(audience.to_owned(), (token.clone(), Instant::now()));
        let life = token.life;
        Ok((token, life))
    }
}
