//! Checks again whether admitted callers still have access, as long as what they were admitted to
//! goes on: the wait for an answer, endless answers, downloads, tunnels.
//!
//! The check is repeated when the tailnet or the policy changes, when the key of the caller's node
//! expires, and at regular intervals. A caller without access gets no more data.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, Bytes, HttpBody};
use futures_util::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Frame, SizeHint};
use jiff::Timestamp;

use super::{error::Denial, guard::Guard};
use crate::{
    identity::Connection,
    policy::{Rules, Target},
};

/// The interval if none is set.
pub(super) const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);

/// What a request was admitted to. Create it before looking up the caller, so that no later change
/// is missed.
pub(super) struct Recheck {
    guard: Arc<Guard>,
    connection: Arc<Connection>,
    target: Target,
    interval: Duration,
    /// What the first decision was based on.
    generation: u64,
    rules: Arc<Rules>,
}

impl Recheck {
    pub(super) fn new(
        guard: Arc<Guard>,
        connection: Arc<Connection>,
        target: Target,
        interval: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            generation: connection.generation(),
            rules: guard.policy().rules(),
            guard,
            connection,
            target,
            interval,
        })
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Resolves when the caller loses access.
    pub(super) async fn until_denied(&self) -> Denial {
        let mut checked = Some((self.generation, self.rules.clone()));
        loop {
            let mut identity = pin!(self.connection.changed());
            let mut policy = pin!(self.guard.policy().changed());
            // Both are registered before the check, so no change after it is missed.
            policy.as_mut().enable();
            let unchanged = checked.take().is_some_and(|(generation, rules)| {
                generation == self.connection.generation()
                    && Arc::ptr_eq(&rules, &self.guard.policy().rules())
            });
            if !unchanged {
                let caller = self.connection.visitor().await;
                if let Err(denied) = self.guard.recheck(caller, &self.target) {
                    return denied;
                }
            }
            let expiry = self.connection.key_expiry();
            let wait = expiry.map_or(self.interval, |expiry| {
                self.interval.min(time_until(expiry))
            });
            tokio::select! {
                () = identity.as_mut() => {}
                () = policy => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

/// Never zero, since clocks differ.
fn time_until(moment: Timestamp) -> Duration {
    let remaining = Duration::try_from(moment.duration_since(Timestamp::now())).unwrap_or_default();
    remaining.max(Duration::from_millis(1))
}

/// A body that breaks off when its reader loses access. A body that is complete at once is returned
/// as it is.
pub(super) struct RecheckedBody {
    body: UnsyncBoxBody<Bytes, axum::Error>,
    recheck: Arc<Recheck>,
    denied: Option<BoxFuture<'static, Denial>>,
    started: bool,
}

impl RecheckedBody {
    pub(super) fn wrap<B>(body: B, recheck: Arc<Recheck>) -> Body
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        if body.is_end_stream() {
            return Body::new(body);
        }
        Body::new(Self {
            body: UnsyncBoxBody::new(http_body_util::BodyExt::map_err(body, axum::Error::new)),
            recheck,
            denied: None,
            started: false,
        })
    }

    fn poll_denied(&mut self, cx: &mut Context<'_>) -> Poll<Denial> {
        let recheck = &self.recheck;
        self.denied
            .get_or_insert_with(|| {
                let recheck = recheck.clone();
                Box::pin(async move { recheck.until_denied().await })
            })
            .as_mut()
            .poll(cx)
    }
}

impl HttpBody for RecheckedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let had_started = std::mem::replace(&mut this.started, true);
        if had_started && this.poll_denied(cx).is_ready() {
            return Poll::Ready(Some(Err(axum::Error::new(AccessLost))));
        }
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if frame.is_pending() && !had_started && this.poll_denied(cx).is_ready() {
            return Poll::Ready(Some(Err(axum::Error::new(AccessLost))));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the caller no longer has access")]
struct AccessLost;
