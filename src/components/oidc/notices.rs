//! Tells applications that a session has ended (OpenID Connect Back-Channel Logout 1.0), beside the
//! request that ended it.
//!
//! Invariants
//! - Nobody who signs out waits for an application.
//! - At most [`PENDING`] applications wait to be told. More are not told, and the log says so: they
//!   learn of the end when they refresh.
//! - The client is one of its own, so that applications which do not answer take nothing away from
//!   fetches that logins need.

use std::sync::Arc;

use jiff::Timestamp;
use tailbone_oidc::{
    fetch::GuardedClient,
    logout::{Delivered, LogoutNotice, deliver},
    provider::{Provider, SessionEnds},
    store::EndedSession,
};
use tokio::sync::Semaphore;

use crate::telemetry::{error_chain, meter::Meter};

/// Applications that wait to be told, of all sessions.
const PENDING: usize = 10_000;

/// Delivers logout tokens.
#[derive(Debug)]
pub struct LogoutNotices {
    client: Arc<GuardedClient>,
    meter: Meter,
    pending: Arc<Semaphore>,
}

impl LogoutNotices {
    pub fn new(client: GuardedClient, meter: Meter) -> Self {
        Self::with_limit(client, meter, PENDING)
    }

    /// The same with another number of applications that may wait.
    pub fn with_limit(client: GuardedClient, meter: Meter, pending: usize) -> Self {
        Self {
            client: Arc::new(client),
            meter,
            pending: Arc::new(Semaphore::new(pending)),
        }
    }
}

impl SessionEnds for LogoutNotices {
    fn ended(&self, provider: &Provider, ended: EndedSession) {
        let Ok(clients) = u32::try_from(ended.clients.len()) else {
            return;
        };
        if clients == 0 {
            return;
        }
        let Ok(turn) = self.pending.clone().try_acquire_many_owned(clients) else {
            tracing::warn!(target: "oidc", clients, "applications are not told of a logout: too many wait already");
            for _ in 0..clients {
                self.meter.logout_told("too_many");
            }
            return;
        };
        let (provider, client, meter) = (provider.clone(), self.client.clone(), self.meter.clone());
        tokio::spawn(async move {
            let notices = notices(&provider, &ended, &meter).await;
            for delivered in deliver(&client, notices, tokio::time::sleep).await {
                report(&delivered, &meter);
            }
            drop(turn);
        });
    }
}

/// Signed one after the other, so that logins find room in the queue of signatures.
async fn notices(provider: &Provider, ended: &EndedSession, meter: &Meter) -> Vec<LogoutNotice> {
    let mut notices = Vec::new();
    for client_id in &ended.clients {
        let notice = provider.logout_notice(ended, client_id, Timestamp::now());
        match notice.await {
            Ok(notice) => notices.extend(notice),
            // The log has the cause.
            Err(error) => {
                let reason = error.code;
                tracing::error!(target: "oidc", client_id, reason, "an application is not told of a logout");
                meter.logout_told("not_signed");
            }
        }
    }
    notices
}

fn report(delivered: &Delivered, meter: &Meter) {
    let Delivered {
        client_id,
        tries,
        outcome,
    } = delivered;
    match outcome {
        Ok(()) => {
            meter.logout_told("told");
            tracing::debug!(target: "oidc", client_id, tries, "an application was told of a logout");
        }
        Err(error) => {
            meter.logout_told(error.code());
            let (reason, cause) = (error.code(), error_chain(error));
            tracing::warn!(target: "oidc", client_id, tries, reason, cause, "an application could not be told of a logout");
        }
    }
}
