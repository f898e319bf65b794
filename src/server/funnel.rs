//! Listeners for the internet, through Funnel.
//!
//! Whether the tailnet allows them is for its policy to say, and that may change at any time. So a
//! listener that is not allowed waits: the server runs on, the log and the latch `funnel` say what
//! is missing, and the listener opens as soon as it may.
//!
//! Invariants
//! - What the tailnet lacks never ends the server; everything else that a listener fails with does.
//! - The log has one line for each change, however often the node is asked.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    http::serve::{Accept, PollInPlace},
    identity::TailnetListener,
    part::ServerState,
    tailnet::{self, FunnelLack, ListenAddr, Listener, Node, Peer, Status, Stream},
    telemetry::readiness::LatchState,
};

/// How long a listener waits for news of the node before it asks again all the same.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// A listener of Funnel, open or waiting.
#[derive(Debug)]
pub(super) struct FunnelListener {
    name: &'static str,
    port: u16,
    node: Arc<dyn Node>,
    status: watch::Receiver<Arc<Status>>,
    open: Option<TailnetListener>,
    access: Arc<FunnelAccess>,
}

/// Whether one port of Funnel may be used. The listener writes it, and the latch reads it.
#[derive(Debug)]
struct FunnelAccess {
    port: u16,
    /// What is missing and what to do, in one sentence.
    missing: Mutex<Option<String>>,
}

/// The ports of Funnel that the server uses or would like to. Clones share one list.
#[derive(Debug, Clone, Default)]
pub(super) struct FunnelPorts(Arc<Mutex<Vec<Arc<FunnelAccess>>>>);

impl FunnelPorts {
    /// Opens a port, if the tailnet allows it. Otherwise the listener waits until it does.
    pub(super) async fn listen(
        &self,
        state: &ServerState,
        node: Arc<dyn Node>,
        name: &'static str,
        port: u16,
    ) -> Result<FunnelListener, tailnet::Error> {
        let access = Arc::new(FunnelAccess {
            port,
            missing: Mutex::default(),
        });
        let mut listener = FunnelListener {
            name,
            port,
            status: node.watch(),
            node,
            open: None,
            access: access.clone(),
        };
        listener.try_open().await?;
        self.0.lock().push(access);
        let ports = self.clone();
        state.readiness.latch("funnel", move |_| ports.latch());
        Ok(listener)
    }

    /// A port that is not open does not hold the latch: callers on the tailnet are served.
    fn latch(&self) -> LatchState {
        let ports = self.0.lock();
        let missing: Vec<_> = ports
            .iter()
            .filter_map(|access| {
                let missing = access.missing.lock().clone()?;
                Some(format!("port {} of Funnel waits: {missing}", access.port))
            })
            .collect();
        if missing.is_empty() {
            LatchState::Released
        } else {
            LatchState::Degraded(missing.join("; "))
        }
    }
}

impl FunnelListener {
    /// Opens the port if it may. An error means that it never will.
    async fn try_open(&mut self) -> Result<(), tailnet::Error> {
        let status = self.status.borrow_and_update().clone();
        let addr = ListenAddr::Funnel(self.port);
        match self.node.listen(addr).await {
            Ok(listener) => self.opened(listener, &status),
            Err(tailnet::Error::NoFunnel { lack, message }) => {
                self.refused(advice(lack, &message, &status));
            }
            Err(tailnet::Error::State(message)) => self.refused(message),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn opened(&mut self, listener: Listener, status: &Status) {
        if self.access.missing.lock().take().is_some() {
            tracing::info!(target: "server", component = self.name, port = self.port, node = status.name, "listening on Funnel, which is allowed now");
        }
        self.open = Some(TailnetListener(listener));
    }

    fn refused(&mut self, missing: String) {
        self.open = None;
        let mut known = self.access.missing.lock();
        if known.as_ref() != Some(&missing) {
            tracing::warn!(target: "server", component = self.name, port = self.port, missing, "cannot listen on Funnel yet");
        }
        *known = Some(missing);
    }
}

impl Accept for FunnelListener {
    type Io = Stream;
    type Addr = Peer;

    fn peer(peer: &Peer) -> Option<IpAddr> {
        TailnetListener::peer(peer)
    }

    fn poll_in_place(stream: &Stream) -> Option<PollInPlace> {
        TailnetListener::poll_in_place(stream)
    }

    fn refuse(&mut self) -> bool {
        self.open.as_mut().is_some_and(Accept::refuse)
    }

    async fn accept(&mut self) -> io::Result<(Stream, Peer)> {
        loop {
            if let Some(TailnetListener(listener)) = &mut self.open {
                match listener.accept().await {
                    Ok(connection) => return Ok(connection),
                    Err(tailnet::Error::NoFunnel { lack, message }) => {
                        let status = self.status.borrow().clone();
                        self.refused(advice(lack, &message, &status));
                    }
                    Err(error) => return Err(io::Error::other(error)),
                }
            }
            // The end of the node shows when it is asked.
            let _ = tokio::time::timeout(ASK_AGAIN, self.status.changed()).await;
            self.try_open().await.map_err(io::Error::other)?;
        }
    }
}

/// What the tailnet lacks and what its owner has to do, in one sentence.
fn advice(lack: FunnelLack, message: &str, status: &Status) -> String {
    match lack {
        FunnelLack::Https => {
            "HTTPS is not enabled in the tailnet; enable it at https://login.tailscale.com/admin/dns"
                .to_owned()
        }
        FunnelLack::Attribute => {
            let target = status.tags.first().map_or("autogroup:member", String::as_str);
            format!(
                "the tailnet's policy does not give this node the attribute \"funnel\"; add \
                 \"nodeAttrs\": [{{\"target\": [\"{target}\"], \"attr\": [\"funnel\"]}}] to it"
            )
        }
        FunnelLack::Port => format!("{message}; choose another port"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tailnet::fake::{FakeNode, FakeTailnet, Identity};

    fn latch(state: &ServerState) -> (bool, String) {
        let latches = state.readiness.check(jiff::Timestamp::now());
        let latch = latches.iter().find(|latch| latch.name == "funnel");
        let latch = latch.unwrap();
        assert!(latch.ready, "the server is ready all the same");
        (latch.degraded, latch.reason.clone())
    }

    async fn listen(
        node: &FakeNode,
        port: u16,
    ) -> Result<(ServerState, FunnelListener), tailnet::Error> {
        let state = ServerState::default();
        let ports = FunnelPorts::default();
        let node = Arc::new(node.clone());
        let listener = ports.listen(&state, node, "issuer", port).await?;
        Ok((state, listener))
    }

    #[tokio::test]
    async fn a_listener_opens_when_the_tailnet_allows_it_and_waits_again_when_it_does_not() {
        let node = FakeTailnet::new().join("tailbone", Identity::tagged(["tag:keys"]));
        let (state, mut listener) = listen(&node, 443).await.unwrap();
        assert!(!listener.refuse(), "nothing is accepted while it waits");
        let (accepted, mut callers) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((_, peer)) = listener.accept().await {
                accepted.send(peer).unwrap();
            }
        });
        for (lack, says) in [
            (FunnelLack::Https, "HTTPS is not enabled"),
            (
                FunnelLack::Attribute,
                r#""nodeAttrs": [{"target": ["tag:keys"], "attr": ["funnel"]}]"#,
            ),
            (FunnelLack::Port, "choose another port"),
        ] {
            node.set_funnel_lack(Some(lack));
            testkit::until("the latch to say why", || {
                let (degraded, reason) = latch(&state);
                degraded && reason.contains("port 443 of Funnel waits") && reason.contains(says)
            })
            .await;
        }
        for allowed in [true, false, true] {
            node.set_funnel_lack((!allowed).then_some(FunnelLack::Attribute));
            testkit::until("the latch to follow", || latch(&state).0 != allowed).await;
            assert_eq!(node.dial_as_funnel(443).await.is_ok(), allowed);
            if allowed {
                let caller = testkit::soon("a caller", callers.recv()).await.unwrap();
                assert_eq!(caller.via, tailnet::Via::Funnel);
            }
        }
        node.close().await;
        assert_eq!(testkit::soon("the end", callers.recv()).await, None);
    }

    #[tokio::test]
    async fn what_waiting_does_not_help_against_ends_the_start() {
        let node = FakeTailnet::new().join("tailbone", Identity::user("owner@example.com"));
        assert!(matches!(
            listen(&node, 80).await,
            Err(tailnet::Error::Invalid(_))
        ));
        node.close().await;
        assert!(matches!(
            listen(&node, 443).await,
            Err(tailnet::Error::Closed)
        ));
    }
}
