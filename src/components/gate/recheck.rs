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

use super::{error::Denied, guard::Guard};
use crate::{
    identity::Connection,
    policy::{Rules, What},
};

/// The interval if none is set.
pub(super) const EVERY: Duration = Duration::from_secs(10);

/// What a request was admitted to. Create it before looking up the caller, so that no later change
/// is missed.
pub(super) struct Recheck {
    guard: Arc<Guard>,
    connection: Arc<Connection>,
    what: What,
    every: Duration,
    /// What the first decision was based on.
    generation: u64,
    rules: Arc<Rules>,
}

impl Recheck {
    pub(super) fn new(
        guard: Arc<Guard>,
        connection: Arc<Connection>,
        what: What,
        every: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            generation: connection.generation(),
            rules: guard.policy().rules(),
            guard,
            connection,
            what,
            every,
        })
    }

    pub(super) fn what(&self) -> &What {
        &self.what
    }

    /// Resolves when the caller loses access.
    pub(super) async fn denied(&self) -> Denied {
        let mut seen = Some((self.generation, self.rules.clone()));
        loop {
            let mut identity = pin!(self.connection.changed());
            let mut policy = pin!(self.guard.policy().changed());
            // Both are registered before the check, so no change after it is missed.
            policy.as_mut().enable();
            let same = seen.take().is_some_and(|(generation, rules)| {
                generation == self.connection.generation()
                    && Arc::ptr_eq(&rules, &self.guard.policy().rules())
            });
            if !same {
                let caller = self.connection.visitor().await;
                if let Err(denied) = self.guard.still_admits(caller, &self.what) {
                    return denied;
                }
            }
            let expiry = self.connection.key_expiry();
            let pause = expiry.map_or(self.every, |expiry| self.every.min(until(expiry)));
            tokio::select! {
                () = identity.as_mut() => {}
                () = policy => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// Never zero, since clocks differ.
fn until(moment: Timestamp) -> Duration {
    let left = Duration::try_from(moment.duration_since(Timestamp::now())).unwrap_or_default();
    left.max(Duration::from_millis(1))
}

/// A body that breaks off when its reader loses access. A body that is complete at once is returned
/// as it is.
pub(super) struct Watched {
    body: UnsyncBoxBody<Bytes, axum::Error>,
    recheck: Arc<Recheck>,
    denied: Option<BoxFuture<'static, Denied>>,
    frames: bool,
}

impl Watched {
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
            frames: false,
        })
    }

    fn poll_denied(&mut self, cx: &mut Context<'_>) -> Poll<Denied> {
        let recheck = &self.recheck;
        self.denied
            .get_or_insert_with(|| {
                let recheck = recheck.clone();
                Box::pin(async move { recheck.denied().await })
            })
            .as_mut()
            .poll(cx)
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let begun = std::mem::replace(&mut this.frames, true);
        if begun && this.poll_denied(cx).is_ready() {
            return Poll::Ready(Some(Err(axum::Error::new(NoLonger))));
        }
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if frame.is_pending() && !begun && this.poll_denied(cx).is_ready() {
            return Poll::Ready(Some(Err(axum::Error::new(NoLonger))));
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
#[error("the caller is no longer let through")]
struct NoLonger;
