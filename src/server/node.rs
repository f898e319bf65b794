//! From settings to a joined node, with a line in the log for each change of its state.

use std::{io, sync::Arc};

use jiff::Timestamp;

use super::screen::Screen;
use crate::{
    config::{Binding, Log, LogLevel, Tailscale},
    http::{host::NodeNames, serve::Accept},
    tailnet::{
        self, Config, EmbeddedNode, ListenAddr, Listener, Node, Peer, Stream,
        join::{JoinError, JoinState, NEEDS_LOGIN, Plan, Progress, classify, join},
    },
};

/// Joins the tailnet, or says why it did not.
pub(super) async fn joined(
    settings: &Tailscale,
    log: &Log,
    news: impl Fn(JoinState),
) -> Result<Arc<dyn Node>, JoinError> {
    let config = config(settings, log);
    let plan = Plan::new(settings.join_retry, settings.join_timeout, config.has_key());
    let make = || async { Ok(Arc::new(EmbeddedNode::start(&config).await?) as Arc<dyn Node>) };
    let screen = Screen::of_process(log);
    let node = join(make, plan, |progress| {
        if let Progress::State(state) = &progress {
            news(JoinState::clone(state));
        }
        told(progress, screen.as_ref());
    })
    .await?;
    drop(screen);
    let status = node.watch().borrow().clone();
    let addresses: Vec<_> = status.addresses.iter().map(ToString::to_string).collect();
    tracing::info!(target: "ts", ip = addresses.join(","), name = status.name, "Tailscale server started");
    if status.hostname != settings.hostname
        || !status.name.starts_with(&format!("{}.", settings.hostname))
    {
        tracing::warn!(
            target: "ts",
            wanted = settings.hostname,
            name = status.name,
            "the tailnet knows this node under another name: the wanted one is taken by another node"
        );
    }
    Ok(node)
}

fn config(settings: &Tailscale, log: &Log) -> Config {
    Config {
        log_level: match log.level {
            LogLevel::Trace => tailnet::LogLevel::Trace,
            LogLevel::Debug => tailnet::LogLevel::Debug,
            // The node's own lines say little to people who run it; what matters comes as a state.
            LogLevel::Info | LogLevel::Warn | LogLevel::Error => tailnet::LogLevel::Warn,
        },
        ..Config::from(settings)
    }
}

fn told(progress: Progress<'_>, screen: Option<&Screen>) {
    match progress {
        Progress::State(state) => {
            let below = screen.is_some_and(Screen::tells_the_address);
            match state {
                JoinState::NeedsLogin { .. } if below => {
                    tracing::warn!(target: "ts", state = state.code(), "{NEEDS_LOGIN} Where is told below (or set server.tailscale.authkey)");
                }
                _ => state_line(state),
            }
            if let Some(screen) = screen {
                screen.state(state);
            }
        }
        Progress::StartFailed { error, pause } => {
            tracing::warn!(target: "ts", %error, pause = ?pause, "the node would not start; trying again");
        }
    }
}

fn state_line(state: &JoinState) {
    match state {
        JoinState::Starting => tracing::debug!(target: "ts", state = state.code(), "{state}"),
        JoinState::Running => tracing::info!(target: "ts", state = state.code(), "{state}"),
        _ => tracing::warn!(target: "ts", state = state.code(), "{state}"),
    }
}

/// Tells by which names the node is called now.
pub(super) fn name(node: &Arc<dyn Node>, names: &NodeNames) {
    let watch = node.watch();
    let status = watch.borrow();
    names.set(&status.name, &status.hostname, &status.addresses);
}

/// Tells each later change of the node's state and names, until the node is closed. Callers are refused meanwhile by `identity`.
pub(super) async fn follow(node: Arc<dyn Node>, names: NodeNames) {
    let mut watch = node.watch();
    let mut told = JoinState::Running;
    while watch.changed().await.is_ok() {
        let status = watch.borrow_and_update().clone();
        names.set(&status.name, &status.hostname, &status.addresses);
        let state = classify(&status, false, Timestamp::now());
        if state != told {
            state_line(&state);
            told = state;
        }
    }
}

pub(super) fn listen_addr(binding: Binding, port: u16) -> ListenAddr {
    match binding {
        Binding::Auto => ListenAddr::Port(port),
        Binding::Addr(ip) => ListenAddr::Addr(ip, port),
    }
}

impl Accept for Listener {
    type Io = Stream;
    type Addr = Peer;

    fn peer(peer: &Peer) -> Option<std::net::IpAddr> {
        Some(peer.addr.ip())
    }

    async fn accept(&mut self) -> io::Result<(Stream, Peer)> {
        Self::accept(self).await.map_err(io::Error::other)
    }

    fn home(stream: &Stream) -> Option<crate::http::serve::Place> {
        let home = stream.home()?;
        Some(Box::new(home))
    }

    fn refuse(&mut self) -> bool {
        Self::refuse(self)
    }
}
