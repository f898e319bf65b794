//! Joins the tailnet with the settings' node, and logs each change of its state. A line that
//! repeats while the node joins is logged once, and then every [`QUIET`] with a count.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::screen::Screen;
use crate::{
    config::{Log, LogLevel, Tailscale},
    http::host::NodeNames,
    tailnet::{
        self, Config, EmbeddedNode, Node,
        join::{
            JoinError, JoinState, NEEDS_LOGIN, Plan, Progress, classify, join, make_state_directory,
        },
    },
};

/// Fails if the state directory can never be made.
pub(super) fn state_directory(settings: &Tailscale) -> Result<(), JoinError> {
    if settings.wait_for_dir {
        return Ok(());
    }
    make_state_directory(&settings.dir)
}

/// Joins the tailnet.
pub(super) async fn joined(
    settings: &Tailscale,
    log: &Log,
    news: impl Fn(JoinState),
) -> Result<Arc<dyn Node>, JoinError> {
    let config = config(settings, log);
    let plan = Plan::new(settings.join_retry, settings.join_timeout, config.has_key());
    let make = || async { Ok(Arc::new(EmbeddedNode::start(&config).await?) as Arc<dyn Node>) };
    let screen = Screen::of_process(log);
    let mut repeats = Repeats::default();
    let node = join(make, plan, |progress| {
        if let Progress::State(state) = &progress {
            news(JoinState::clone(state));
        }
        told(progress, screen.as_ref(), &mut repeats);
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
            // The node's own lines mean little to operators; what matters to them is a state.
            LogLevel::Info | LogLevel::Warn | LogLevel::Error => tailnet::LogLevel::Warn,
        },
        ..Config::from(settings)
    }
}

fn told(progress: Progress<'_>, screen: Option<&Screen>, repeats: &mut Repeats) {
    match progress {
        Progress::State(state) => {
            let below = screen.is_some_and(Screen::tells_the_address);
            let times = match state {
                // A new login address is always logged.
                JoinState::NeedsLogin { .. } => Some(None),
                _ => repeats.told(&state.to_string(), Instant::now()),
            };
            if let Some(times) = times {
                match state {
                    JoinState::NeedsLogin { .. } if below => {
                        tracing::warn!(target: "ts", state = state.code(), times, "{NEEDS_LOGIN} Where is told below (or set server.tailscale.authkey)");
                    }
                    _ => state_line(state, times),
                }
            }
            if let Some(screen) = screen {
                screen.state(state);
            }
        }
        Progress::StartFailed { error, pause } => {
            if let Some(times) = repeats.told(&error.to_string(), Instant::now()) {
                tracing::warn!(target: "ts", %error, pause = ?pause, times, "the node would not start; trying again");
            }
        }
    }
}

fn state_line(state: &JoinState, times: Times) {
    match state {
        JoinState::Starting => {
            tracing::debug!(target: "ts", state = state.code(), times, "{state}")
        }
        JoinState::Running => tracing::info!(target: "ts", state = state.code(), times, "{state}"),
        _ => tracing::warn!(target: "ts", state = state.code(), times, "{state}"),
    }
}

/// How often a line came since it was last logged; `None` for once.
type Times = Option<u64>;

/// Lines that may repeat. The first is logged at once; later ones are counted, and one per
/// [`QUIET`] is logged with the count.
#[derive(Default)]
struct Repeats(BTreeMap<String, Repeated>);

struct Repeated {
    told: Instant,
    since: u64,
}

const QUIET: Duration = Duration::from_secs(30);

/// The number of different lines that are remembered. It is only reached if a line differs each
/// time.
const REMEMBERED: usize = 32;

impl Repeats {
    /// Whether to log the line now. Digits are ignored: an error names another port each time.
    fn told(&mut self, line: &str, now: Instant) -> Option<Times> {
        let mut same = line.to_owned();
        same.retain(|letter| !letter.is_ascii_digit());
        if let Some(repeated) = self.0.get_mut(&same) {
            repeated.since += 1;
            if now.duration_since(repeated.told) < QUIET {
                return None;
            }
            repeated.told = now;
            return Some(Some(std::mem::take(&mut repeated.since)));
        }
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        let first = Repeated {
            told: now,
            since: 0,
        };
        self.0.insert(same, first);
        Some(None)
    }
}

/// Updates the names by which the node is known.
pub(super) fn name(node: &Arc<dyn Node>, names: &NodeNames) {
    let watch = node.watch();
    let status = watch.borrow();
    names.set(&status.name, &status.hostname, &status.addresses);
}

/// Logs each later change of the node's state and follows its names, until the node is closed.
/// While the node is not running, `identity` refuses callers.
pub(super) async fn follow(node: Arc<dyn Node>, names: NodeNames) {
    let mut watch = node.watch();
    // They may have changed between the start and now.
    name(&node, &names);
    let mut told = JoinState::Running;
    while watch.changed().await.is_ok() {
        let status = watch.borrow_and_update().clone();
        names.set(&status.name, &status.hostname, &status.addresses);
        let state = classify(&status, false, Timestamp::now());
        if state != told {
            state_line(&state, None);
            told = state;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        http::host::HostRule,
        tailnet::fake::{FakeTailnet, Identity},
        web::Host,
    };

    #[tokio::test]
    async fn a_node_that_is_renamed_is_called_by_its_new_name() {
        let net = FakeTailnet::new();
        let fake = net.join("tailbone", Identity::user("owner@example.com"));
        let node: Arc<dyn Node> = Arc::new(fake.clone());
        let names = NodeNames::default();
        name(&node, &names);
        let rule = HostRule::of_node(names.clone(), &[]);
        let holds = |host: &str| rule.holds(&Host::parse(host).unwrap());
        assert!(holds("tailbone"));
        let following = tokio::spawn(follow(node, names));
        tokio::task::yield_now().await;
        fake.set_status(|status| status.name = "tailbone-1.other.ts.net".to_owned());
        let renamed = async {
            while !holds("tailbone-1") {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), renamed).await;
        assert!(waited.is_ok() && !holds("tailbone"));
        following.abort();
    }

    #[test]
    fn a_line_that_comes_again_is_told_once_and_then_with_a_count() {
        let mut repeats = Repeats::default();
        let began = Instant::now();
        let line = |port: u64| format!("dial tcp 127.0.0.1:{port}: connection refused");
        assert_eq!(repeats.told(&line(1), began), Some(None));
        for tenth in 1..300 {
            let now = began + Duration::from_millis(100 * tenth);
            assert_eq!(repeats.told(&line(tenth), now), None, "{tenth}");
        }
        assert_eq!(repeats.told("another", began + QUIET / 2), Some(None));
        assert_eq!(repeats.told(&line(7), began + QUIET), Some(Some(300)));
        assert_eq!(repeats.told(&line(8), began + QUIET), None);
        assert_eq!(repeats.told(&line(9), began + 2 * QUIET), Some(Some(2)));
    }

    #[test]
    fn lines_that_are_never_the_same_are_not_remembered_for_ever() {
        let mut repeats = Repeats::default();
        for length in 1..1000 {
            assert_eq!(
                repeats.told(&"x".repeat(length), Instant::now()),
                Some(None)
            );
        }
        assert!(repeats.0.len() <= REMEMBERED);
    }
}
