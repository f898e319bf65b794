//! Joins the tailnet with the settings' node, and logs each change of its state. A line that
//! repeats while the node joins is logged once, and then every [`REPEAT_INTERVAL`] with a count.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::join_screen::JoinScreen;
use crate::{
    config::{Log, LogLevel, TailscaleSettings},
    http::host::NodeNames,
    tailnet::{
        self, Config, EmbeddedNode, Node,
        join::{
            JoinError, JoinLimits, JoinState, NEEDS_LOGIN, Progress, classify, join,
            make_state_directory,
        },
    },
};

/// Fails if the state directory can never be made.
pub(super) fn prepare_state_directory(settings: &TailscaleSettings) -> Result<(), JoinError> {
    if settings.wait_for_dir {
        return Ok(());
    }
    make_state_directory(&settings.dir)
}

/// Joins the tailnet.
pub(super) async fn join_tailnet(
    settings: &TailscaleSettings,
    log: &Log,
    on_state: impl Fn(JoinState),
) -> Result<Arc<dyn Node>, JoinError> {
    let config = node_config(settings, log);
    let limits = JoinLimits::new(settings.join_retry, settings.join_timeout, config.has_key());
    let make = || async { Ok(Arc::new(EmbeddedNode::start(&config).await?) as Arc<dyn Node>) };
    let screen = JoinScreen::of_terminal(log);
    let mut repeated = RepeatedLines::default();
    let node = join(make, limits, |progress| {
        if let Progress::State(state) = &progress {
            on_state(JoinState::clone(state));
        }
        report_progress(progress, screen.as_ref(), &mut repeated);
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
            "the tailnet knows this node under another name: another node has the wanted one"
        );
    }
    Ok(node)
}

fn node_config(settings: &TailscaleSettings, log: &Log) -> Config {
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

fn report_progress(
    progress: Progress<'_>,
    screen: Option<&JoinScreen>,
    repeated: &mut RepeatedLines,
) {
    match progress {
        Progress::State(state) => {
            let on_screen = screen.is_some_and(JoinScreen::shows_login_address);
            let due = match state {
                // A new login address is always logged.
                JoinState::NeedsLogin { .. } => Some(None),
                _ => repeated.due(&state.to_string(), Instant::now()),
            };
            if let Some(times) = due {
                match state {
                    JoinState::NeedsLogin { .. } if on_screen => {
                        tracing::warn!(target: "ts", state = state.code(), times, "{NEEDS_LOGIN} The address is below (or set server.tailscale.authkey)");
                    }
                    _ => log_state(state, times),
                }
            }
            if let Some(screen) = screen {
                screen.show_state(state);
            }
        }
        Progress::StartFailed { error, pause } => {
            if let Some(times) = repeated.due(&error.to_string(), Instant::now()) {
                tracing::warn!(target: "ts", %error, pause = ?pause, times, "the node did not start; trying again");
            }
        }
    }
}

fn log_state(state: &JoinState, times: Occurrences) {
    match state {
        JoinState::Starting => {
            tracing::debug!(target: "ts", state = state.code(), times, "{state}")
        }
        JoinState::Running => tracing::info!(target: "ts", state = state.code(), times, "{state}"),
        _ => tracing::warn!(target: "ts", state = state.code(), times, "{state}"),
    }
}

/// How often a line came since it was last logged; `None` for once.
type Occurrences = Option<u64>;

/// Lines that may repeat. The first is logged at once; later ones are counted, and one per
/// [`REPEAT_INTERVAL`] is logged with the count.
#[derive(Default)]
struct RepeatedLines(BTreeMap<String, LineCount>);

struct LineCount {
    logged_at: Instant,
    unlogged: u64,
}

const REPEAT_INTERVAL: Duration = Duration::from_secs(30);

/// The number of different lines that are remembered. It is only reached if a line differs each
/// time.
const MAX_REMEMBERED_LINES: usize = 32;

impl RepeatedLines {
    /// Whether to log the line now. Digits are ignored: an error names another port each time.
    fn due(&mut self, line: &str, now: Instant) -> Option<Occurrences> {
        let mut without_digits = line.to_owned();
        without_digits.retain(|letter| !letter.is_ascii_digit());
        if let Some(count) = self.0.get_mut(&without_digits) {
            count.unlogged += 1;
            if now.duration_since(count.logged_at) < REPEAT_INTERVAL {
                return None;
            }
            count.logged_at = now;
            return Some(Some(std::mem::take(&mut count.unlogged)));
        }
        if self.0.len() >= MAX_REMEMBERED_LINES {
            self.0.clear();
        }
        let count = LineCount {
            logged_at: now,
            unlogged: 0,
        };
        self.0.insert(without_digits, count);
        Some(None)
    }
}

/// Updates the names by which the node is known.
pub(super) fn update_names(node: &Arc<dyn Node>, names: &NodeNames) {
    let watch = node.watch();
    let status = watch.borrow();
    names.set(&status.name, &status.hostname, &status.addresses);
}

/// Logs each later change of the node's state and follows its names, until the node is closed.
/// While the node is not running, `identity` refuses callers.
pub(super) async fn follow_node(node: Arc<dyn Node>, names: NodeNames) {
    let mut watch = node.watch();
    // They may have changed between the start and now.
    update_names(&node, &names);
    let mut logged = JoinState::Running;
    while watch.changed().await.is_ok() {
        let status = watch.borrow_and_update().clone();
        names.set(&status.name, &status.hostname, &status.addresses);
        let state = classify(&status, false, Timestamp::now());
        if state != logged {
            log_state(&state, None);
            logged = state;
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
        update_names(&node, &names);
        let rule = HostRule::of_node(names.clone(), &[]);
        let holds = |host: &str| rule.accepts(&Host::parse(host).unwrap());
        assert!(holds("tailbone"));
        let following = tokio::spawn(follow_node(node, names));
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
    fn a_repeated_line_is_logged_once_and_then_with_a_count() {
        let mut repeated = RepeatedLines::default();
        let began = Instant::now();
        let line = |port: u64| format!("dial tcp 127.0.0.1:{port}: connection refused");
        assert_eq!(repeated.due(&line(1), began), Some(None));
        for tenth in 1..300 {
            let now = began + Duration::from_millis(100 * tenth);
            assert_eq!(repeated.due(&line(tenth), now), None, "{tenth}");
        }
        assert_eq!(
            repeated.due("another", began + REPEAT_INTERVAL / 2),
            Some(None)
        );
        assert_eq!(
            repeated.due(&line(7), began + REPEAT_INTERVAL),
            Some(Some(300))
        );
        assert_eq!(repeated.due(&line(8), began + REPEAT_INTERVAL), None);
        assert_eq!(
            repeated.due(&line(9), began + 2 * REPEAT_INTERVAL),
            Some(Some(2))
        );
    }

    #[test]
    fn a_bounded_number_of_different_lines_is_remembered() {
        let mut repeated = RepeatedLines::default();
        for length in 1..1000 {
            assert_eq!(
                repeated.due(&"x".repeat(length), Instant::now()),
                Some(None)
            );
        }
        assert!(repeated.0.len() <= MAX_REMEMBERED_LINES);
    }
}
