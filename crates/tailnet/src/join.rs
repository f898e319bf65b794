//! Joining the tailnet, as a state machine that people and scripts can follow.
//!
//! | State           | Code             | Exit | Left by                                         |
//! |-----------------|------------------|------|-------------------------------------------------|
//! | `Running`       | `running`        | 0    |                                                 |
//! | `Starting`      | `starting`       | 10   | the control server's answer                     |
//! | `NeedsLogin`    | `needs-login`    | 11   | a person, at the URL                            |
//! | `NeedsApproval` | `needs-approval` | 12   | an admin of the tailnet                         |
//! | `Expired`       | `expired`        | 13   | an admin, or a new auth key                     |
//! | `BadKey`        | `bad-key`        | 14   | only another key: joining ends at once          |
//! | `NoNetwork`     | `no-network`     | 15   | the control server, once it can be reached      |
//! | `Stopped`       | `stopped`        | 16   | a new node on the same state                    |
//! | (start failed)  | `start-failed`   | 17   | a new node on the same state                    |
//! | `Deleted`       | `deleted`        | 18   | a new node on the same state, if it has a key   |
//! | (no directory)  | `no-state-dir`   | 19   | only another directory: joining ends at once    |
//! | `Refused`       | `refused`        | 20   | an admin of the control server                  |
//!
//! Invariants
//! - [`classify`] is a pure function of the node's status, whether the node has a key, and the
//!   time.
//! - A failed start is final inside tsnet, so the next attempt is a new node on the same state
//!   directory, made only after the previous node is closed.
//! - [`join`] ends within its time-out plus the time limit of closing, reports where it got stuck,
//!   and leaves no node behind, even if its future is dropped.
//!
//! A node that has joined and later leaves `Running` is the server's concern; it uses the same
//! [`classify`].

use std::{
    fmt,
    fs::DirBuilder,
    future::Future,
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use rustix::{fs::Access, io::Errno};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{BackendState, Error, Node, Status};

/// How long a node that cannot reach its control server may go on trying by itself. It keeps using
/// the same new node key, while a new node would make another. A control server that has used up a
/// single-use auth key, but whose answer was lost, would refuse that one.
const REPLACE_AFTER: Duration = Duration::from_secs(3);

/// Why a person has to log the node in. Without the login URL, for callers that print it elsewhere.
pub const NEEDS_LOGIN: &str = "this node has to be logged in by a person: it has no auth key, and no earlier state with a key that \
     is still good.";

/// How far a node has got with joining the tailnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinState {
    /// The control server refuses the auth key, or whatever else we log in with.
    BadKey {
        message: String,
    },
    /// The control server does not know the node any more.
    Deleted,
    /// The key of a node that was running has expired. (A node that starts with an expired key is
    /// asked to log in.)
    Expired,
    /// An admin has to approve the node.
    NeedsApproval,
    /// A person has to log the node in.
    NeedsLogin {
        url: String,
    },
    /// The control server cannot be reached, or has trouble of its own.
    NoNetwork {
        message: String,
    },
    /// The control server does not let this node in, and it was given no key that could be the
    /// cause.
    Refused {
        message: String,
    },
    Running,
    Starting,
    /// Switched off, or closed.
    Stopped,
}

impl JoinState {
    /// Every name that [`Self::code`] returns.
    pub const CODES: [&str; 10] = [
        "bad-key",
        "deleted",
        "expired",
        "needs-approval",
        "needs-login",
        "no-network",
        "refused",
        "running",
        "starting",
        "stopped",
    ];

    /// Stable name for logs, metrics and scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadKey { .. } => "bad-key",
            Self::Deleted => "deleted",
            Self::Expired => "expired",
            Self::NeedsApproval => "needs-approval",
            Self::NeedsLogin { .. } => "needs-login",
            Self::NoNetwork { .. } => "no-network",
            Self::Refused { .. } => "refused",
            Self::Running => "running",
            Self::Starting => "starting",
            Self::Stopped => "stopped",
        }
    }

    /// The exit code of the process if joining ends in this state.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Running => 0,
            Self::Starting => 10,
            Self::NeedsLogin { .. } => 11,
            Self::NeedsApproval => 12,
            Self::Expired => 13,
            Self::BadKey { .. } => 14,
            Self::NoNetwork { .. } => 15,
            Self::Stopped => 16,
            Self::Deleted => 18,
            Self::Refused { .. } => 20,
        }
    }
}

/// Says what is wrong, why, and what to do.
impl fmt::Display for JoinState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadKey { message } => write!(
                f,
                "the control server refuses the auth key or what it is to allow: {message}. Make a new key or secret (not used up, \
                 not expired, of this tailnet, with these tags) and set it, for example as server.tailscale.authkey; a node whose \
                 state is still good needs none"
            ),
            Self::Deleted => f.write_str(
                "the control server does not know this node any more: it was deleted. Start it again with an auth key to join as a \
                 new node",
            ),
            Self::Expired => f.write_str(
                "this node's key has expired. Extend it or switch its expiry off in the admin console, or set a new \
                 server.tailscale.authkey and start again. Where the control server takes no new key for the node (headscale), \
                 delete the node there, or move server.tailscale.dir away, before that start",
            ),
            Self::NeedsApproval => f.write_str(
                "this node waits to be approved. An admin of the tailnet has to approve it in the admin console",
            ),
            Self::NeedsLogin { url } => write!(
                f,
                "{NEEDS_LOGIN} login URL: {url} (or set server.tailscale.authkey)"
            ),
            Self::NoNetwork { message } => write!(
                f,
                "the control server cannot be reached: {message}. Check the network, DNS, a proxy or firewall in between, and \
                 server.tailscale.controlUrl"
            ),
            Self::Refused { message } => write!(
                f,
                "the control server was reached and does not let this node in: {message}. Look the node up there (it may have been \
                 removed or belong to somebody else); to join it as a new node, set server.tailscale.authkey and move \
                 server.tailscale.dir away"
            ),
            Self::Running => f.write_str("the node is on the tailnet"),
            Self::Starting => f.write_str(
                "the node is starting and waits for the control server. If this lasts, check the network and \
                 server.tailscale.controlUrl",
            ),
            Self::Stopped => f.write_str(
                "the node is stopped: it was closed or switched off. Start it again",
            ),
        }
    }
}

/// The join state that a node's status stands for. `has_key`: the node was given something to log
/// in with.
pub fn classify(status: &Status, has_key: bool, now: Timestamp) -> JoinState {
    let expired = status.expired || status.key_expiry.is_some_and(|end| end <= now);
    match status.state {
        BackendState::Running if expired => JoinState::Expired,
        BackendState::Running if unknown_to_control(status) => JoinState::Deleted,
        BackendState::Running => JoinState::Running,
        BackendState::Stopped | BackendState::InUseOtherUser => JoinState::Stopped,
        BackendState::NeedsMachineAuth => JoinState::NeedsApproval,
        BackendState::NoState
        | BackendState::NeedsLogin
        | BackendState::Starting
        | BackendState::Unknown => {
            let refusal = refusal(status);
            if has_key && let Some(message) = refusal {
                JoinState::BadKey {
                    message: one_line(message),
                }
            } else if expired || status.control_error.contains(NEW_KEY_EXPIRED) {
                JoinState::Expired
            } else if unknown_to_control(status) {
                JoinState::Deleted
            } else if status.state == BackendState::NeedsLogin && !status.auth_url.is_empty() {
                JoinState::NeedsLogin {
                    url: one_line(&status.auth_url),
                }
            } else if let Some(message) = refusal
                && !status.control_error.is_empty()
            {
                JoinState::Refused {
                    message: one_line(message),
                }
            } else if !status.control_error.is_empty() {
                JoinState::NoNetwork {
                    message: one_line(&status.control_error),
                }
            } else if !status.error.is_empty() {
                // tsnet trades a client secret or an id token for a key in the background while it
                // starts. This is how a failure of that shows.
                JoinState::NoNetwork {
                    message: one_line(&status.error),
                }
            } else {
                JoinState::Starting
            }
        }
    }
}

/// What tsnet reports when it registers a new node key and is told that this one has expired as
/// well. headscale does so: it expires the node, not the key.
const NEW_KEY_EXPIRED: &str = "server says NodeKeyExpired";

/// The message with which a server that was reached refused us or our key. Network trouble is not a
/// refusal.
fn refusal(status: &Status) -> Option<&str> {
    let (error, control_error) = (status.error.as_str(), status.control_error.as_str());
    match status.state {
        // The control server's own message to the user; it was asked with the key.
        BackendState::NeedsLogin if !error.is_empty() => Some(error),
        BackendState::NoState if !error.is_empty() && !control_error.is_empty() => Some(error),
        // tsnet first trades a client secret or an id token for a key, and that was refused.
        BackendState::NoState if !error.is_empty() => {
            let no = EXCHANGE_REFUSED.iter().any(|code| error.contains(code))
                || BEFORE_EXCHANGE_STATUS
                    .iter()
                    .any(|before| has_final_status(error, before));
            no.then_some(error)
        }
        // Some control servers refuse with an HTTP status instead of a message.
        BackendState::NeedsLogin | BackendState::NoState => {
            has_final_status(control_error, "register request: http ").then_some(control_error)
        }
        _ => None,
    }
}

/// Error codes of RFC 6749, section 5.2, as Go's OAuth library prints them.
const EXCHANGE_REFUSED: [&str; 3] = [
    "oauth2: \"invalid_",
    "oauth2: \"unauthorized_",
    "oauth2: \"access_denied",
];

/// The text before an HTTP status where trading for a key fails.
const BEFORE_EXCHANGE_STATUS: [&str; 3] = [
    "oauth2: cannot fetch token: ",
    "token exchange failed with status ",
    "Status: ",
];

/// True if the text holds, right after `before`, an HTTP status that trying again does not change.
fn has_final_status(message: &str, before: &str) -> bool {
    let status = message
        .split_once(before)
        .and_then(|(_, answer)| answer.get(..3)?.parse::<u16>().ok());
    status.is_some_and(|code| (400..500).contains(&code) && !matches!(code, 408 | 425 | 429))
}

/// Text from elsewhere, put on one line.
fn one_line(message: &str) -> String {
    message
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// True if the control server no longer knows a node that it knew. The node itself goes on with its
/// last network map for ever.
fn unknown_to_control(status: &Status) -> bool {
    !status.in_map_poll
        && status
            .control_error
            .contains("PollNetMap: initial fetch failed 404")
}

/// Times and limits of joining.
#[derive(Debug, Clone, Copy)]
pub struct JoinLimits {
    /// Pause between a failed start and the next, varied by a fifth either way.
    pub retry: Duration,
    /// How long a node without network may go on trying before it is replaced by a new one.
    pub replace_after: Duration,
    pub timeout: Duration,
    /// The node was given something to log in with.
    pub has_key: bool,
}

impl JoinLimits {
    pub fn new(retry: Duration, timeout: Duration, has_key: bool) -> Self {
        Self {
            retry,
            replace_after: retry.max(REPLACE_AFTER),
            timeout,
            has_key,
        }
    }
}

/// Reports of [`join`] to its caller.
#[derive(Debug)]
pub enum Progress<'a> {
    /// Reported once for each change.
    State(&'a JoinState),
    /// A node failed to start; the next attempt follows after the pause.
    StartFailed { error: &'a Error, pause: Duration },
}

/// Why there is no node.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Waiting longer would not help.
    #[error("{0}")]
    Refused(JoinState),
    /// The settings are invalid; trying again would not help.
    #[error("the node's settings are wrong: {0}")]
    Settings(Error),
    /// The state directory cannot be made or written, and waiting does not change that.
    #[error(
        "user {user} cannot make or write the state directory {}: {error}. Name another one with server.tailscale.dir or give \
         that user this one; where a volume comes later, set server.tailscale.waitForDir",
        dir.display()
    )]
    StateDirectory {
        dir: PathBuf,
        user: u32,
        error: io::Error,
    },
    #[error("the node did not join the tailnet within {}: {last}", human_duration(*.after))]
    TimedOut { last: LastProgress, after: Duration },
}

/// Where joining was when its time ran out.
#[derive(Debug, thiserror::Error)]
pub enum LastProgress {
    #[error("{0}")]
    State(JoinState),
    #[error(
        "{0}. Check that the state directory can be written and belongs to this node; a damaged one can be moved away and the \
         node joined anew"
    )]
    StartFailed(Error),
}

impl JoinError {
    /// Stable name for logs and scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(state)
            | Self::TimedOut {
                last: LastProgress::State(state),
                ..
            } => state.code(),
            Self::Settings(_) => "bad-settings",
            Self::StateDirectory { .. } => "no-state-dir",
            Self::TimedOut {
                last: LastProgress::StartFailed(_),
                ..
            } => "start-failed",
        }
    }

    /// The exit code of the process; the table is at the top of this module.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(state)
            | Self::TimedOut {
                last: LastProgress::State(state),
                ..
            } => state.exit_code(),
            // The code of every other mistake in the settings.
            Self::Settings(_) => 64,
            Self::StateDirectory { .. } => 19,
            Self::TimedOut {
                last: LastProgress::StartFailed(_),
                ..
            } => 17,
        }
    }
}

/// Makes a node's state directory if it is missing, and checks that this process may keep files in
/// it. A failure that may pass by itself, such as a full disk, is left to [`join`].
pub fn make_state_directory(dir: &Path) -> Result<(), JoinError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    let outcome = made.and_then(|()| {
        rustix::fs::access(dir, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)?;
        Ok(())
    });
    let Err(error) = outcome else {
        return Ok(());
    };
    let lasting = matches!(
        Errno::from_io_error(&error),
        Some(
            Errno::ACCESS
                | Errno::EXIST
                | Errno::LOOP
                | Errno::NAMETOOLONG
                | Errno::NOENT
                | Errno::NOTDIR
                | Errno::PERM
                | Errno::ROFS
        )
    );
    if !lasting {
        return Ok(());
    }
    Err(JoinError::StateDirectory {
        dir: dir.to_owned(),
        user: rustix::process::geteuid().as_raw(),
        error,
    })
}

/// Makes nodes until one is `Running`. Dropping the future closes the current one.
pub async fn join<F, Fut>(
    make: F,
    limits: JoinLimits,
    report: impl FnMut(Progress<'_>),
) -> Result<Arc<dyn Node>, JoinError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Arc<dyn Node>, Error>>,
{
    let mut attempts = Attempts {
        make,
        limits,
        report,
        last: LastProgress::State(JoinState::Starting),
        reported: None,
        node: None,
    };
    // A time-out beyond the range of the clock means none.
    let deadline = Instant::now()
        .checked_add(limits.timeout)
        .unwrap_or_else(|| Instant::now() + Duration::from_secs(u32::MAX.into()));
    let outcome = timeout_at(deadline, attempts.run()).await;
    if let Ok(Ok(node)) = outcome {
        return Ok(node);
    }
    attempts.close().await;
    match outcome {
        Ok(outcome) => outcome,
        Err(_) => Err(JoinError::TimedOut {
            last: attempts.last,
            after: limits.timeout,
        }),
    }
}

struct Attempts<F, R> {
    make: F,
    limits: JoinLimits,
    report: R,
    last: LastProgress,
    reported: Option<JoinState>,
    /// Held here and not in a future, so that it can still be closed after a time-out.
    node: Option<Arc<dyn Node>>,
}

/// How following a node ended.
enum FollowOutcome {
    Joined,
    Refused(JoinState),
    /// A new node may succeed.
    Failed,
}

impl<F, Fut, R> Attempts<F, R>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Arc<dyn Node>, Error>>,
    R: FnMut(Progress<'_>),
{
    async fn run(&mut self) -> Result<Arc<dyn Node>, JoinError> {
        loop {
            let node = match (self.make)().await {
                Ok(node) => node,
                Err(error @ Error::Invalid(_)) => return Err(JoinError::Settings(error)),
                Err(error) => {
                    let pause = jittered(self.limits.retry);
                    (self.report)(Progress::StartFailed {
                        error: &error,
                        pause,
                    });
                    self.last = LastProgress::StartFailed(error);
                    sleep(pause).await;
                    continue;
                }
            };
            self.node = Some(Arc::clone(&node));
            match self.follow(&*node).await {
                FollowOutcome::Joined => {
                    self.node = None;
                    return Ok(node);
                }
                FollowOutcome::Refused(state) => return Err(JoinError::Refused(state)),
                FollowOutcome::Failed => self.close().await,
            }
        }
    }

    async fn follow(&mut self, node: &dyn Node) -> FollowOutcome {
        let mut watch = node.watch();
        // When to give up on a state that the node may never leave by itself.
        let mut give_up_at: Option<Instant> = None;
        loop {
            let status = Arc::clone(&watch.borrow_and_update());
            let state = classify(&status, self.limits.has_key, Timestamp::now());
            self.report_state(&state);
            match state {
                JoinState::Running => return FollowOutcome::Joined,
                JoinState::BadKey { .. } => return FollowOutcome::Refused(state),
                JoinState::Deleted | JoinState::NoNetwork { .. } | JoinState::Stopped => {
                    let now = Instant::now();
                    give_up_at.get_or_insert_with(|| {
                        now + jittered(match state {
                            JoinState::NoNetwork { .. } => self.limits.replace_after,
                            _ => self.limits.retry,
                        })
                    });
                }
                _ => give_up_at = None,
            }
            let changed = async {
                match give_up_at {
                    Some(end) => tokio::select! {
                        changed = watch.changed() => changed.is_ok(),
                        () = sleep_until(end) => false,
                    },
                    None => watch.changed().await.is_ok(),
                }
            };
            if !changed.await {
                return FollowOutcome::Failed;
            }
        }
    }

    fn report_state(&mut self, state: &JoinState) {
        if self.reported.as_ref() != Some(state) {
            (self.report)(Progress::State(state));
            self.reported = Some(state.clone());
        }
        // That a new node is starting does not tell why the previous one failed.
        if *state != JoinState::Starting || matches!(self.last, LastProgress::StartFailed(_)) {
            self.last = LastProgress::State(state.clone());
        }
    }

    async fn close(&mut self) {
        // Kept until it is closed: if a time-out cuts this short, closing it again waits for the
        // same close.
        if let Some(node) = &self.node {
            node.close().await;
            self.node = None;
        }
    }
}

/// Varies a pause by a fifth either way, so that many nodes that lost the same control server do
/// not come back at the same moment.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without random bytes there is no variation, which does no harm.
    if rustix::rand::getrandom(&mut byte, rustix::rand::GetRandomFlags::NONBLOCK).is_err() {
        return pause;
    }
    let [byte] = byte;
    pause.mul_f64(0.8 + 0.4 * f64::from(byte) / 255.0)
}

/// Formats a time as the settings do: `1m5s`.
fn human_duration(time: Duration) -> String {
    let millis = time.as_millis();
    if millis < 1000 {
        return format!("{millis}ms");
    }
    match (time.as_secs() / 60, time.as_secs() % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, 0) => format!("{minutes}m"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use proptest::prelude::*;

    use super::*;
    use crate::fake::{FakeNode, FakeTailnet, Identity};

    fn now() -> Timestamp {
        "2030-01-01T00:00:00Z".parse().unwrap()
    }

    fn at(state: BackendState) -> Status {
        Status {
            state,
            ..Status::default()
        }
    }

    fn login_url() -> Status {
        Status {
            auth_url: "https://login/a/1".into(),
            ..at(BackendState::NeedsLogin)
        }
    }

    #[test]
    fn each_backend_state_alone() {
        for (state, meaning) in [
            (BackendState::NoState, "starting"),
            (BackendState::InUseOtherUser, "stopped"),
            (BackendState::NeedsLogin, "starting"),
            (BackendState::NeedsMachineAuth, "needs-approval"),
            (BackendState::Stopped, "stopped"),
            (BackendState::Starting, "starting"),
            (BackendState::Running, "running"),
            (BackendState::Unknown, "starting"),
        ] {
            for has_key in [true, false] {
                assert_eq!(
                    classify(&at(state), has_key, now()).code(),
                    meaning,
                    "{state:?}"
                );
            }
        }
    }

    #[test]
    fn text_of_the_control_server_cannot_move_the_cursor() {
        let hostile = "a\u{1b}[2J\nb".to_owned();
        for status in [
            Status {
                auth_url: hostile.clone(),
                ..at(BackendState::NeedsLogin)
            },
            Status {
                control_error: hostile.clone(),
                ..at(BackendState::Starting)
            },
            Status {
                error: hostile,
                ..at(BackendState::NeedsLogin)
            },
        ] {
            for has_key in [true, false] {
                let reported = classify(&status, has_key, now()).to_string();
                assert!(reported.contains("a [2J b"), "{reported:?}");
                assert!(!reported.chars().any(char::is_control), "{reported:?}");
            }
        }
    }

    #[test]
    fn control_that_refuses_the_key_is_a_bad_key() {
        let refused = Status {
            error: "invalid key: not found".into(),
            control_error: "invalid key: not found".into(),
            ..at(BackendState::NeedsLogin)
        };
        let message = "invalid key: not found".to_owned();
        assert_eq!(
            classify(&refused, true, now()),
            JoinState::BadKey { message }
        );
        // Without a key, no key can be bad, and the network is not the cause either.
        let message = "invalid key: not found".to_owned();
        assert_eq!(
            classify(&refused, false, now()),
            JoinState::Refused { message }
        );
        // A node that has joined needs no key.
        let joined = Status {
            state: BackendState::Running,
            ..refused
        };
        assert_eq!(classify(&joined, true, now()), JoinState::Running);
    }

    #[test]
    fn a_refusal_by_status_is_a_bad_key_but_trouble_is_not() {
        for (message, code) in [
            ("register request: http 401: unauthorized", "bad-key"),
            ("register request: http 403: no", "bad-key"),
            ("register request: http 408: later", "no-network"),
            ("register request: http 429: slow down", "no-network"),
            ("register request: http 500: oops", "no-network"),
            ("register request: http 4", "no-network"),
            ("register request: http \u{20ac}\u{20ac}", "no-network"),
            ("dial tcp 127.0.0.1:1: connection refused", "no-network"),
        ] {
            let status = Status {
                control_error: message.into(),
                ..at(BackendState::NeedsLogin)
            };
            assert_eq!(classify(&status, true, now()).code(), code, "{message}");
            let without = match code {
                "bad-key" => "refused",
                other => other,
            };
            assert_eq!(classify(&status, false, now()).code(), without, "{message}");
        }
    }

    #[test]
    fn a_new_node_key_that_is_told_to_have_expired_is_an_expired_node() {
        let status = Status {
            control_error: "weird: regen=true but server says NodeKeyExpired: nodekey:6f0c1b4e"
                .into(),
            ..at(BackendState::NeedsLogin)
        };
        for has_key in [true, false] {
            let state = classify(&status, has_key, now());
            assert_eq!(state, JoinState::Expired);
            assert!(
                state.to_string().contains("server.tailscale.dir"),
                "{state}"
            );
        }
    }

    #[test]
    fn a_state_directory_is_made_or_refused_for_good() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("a/b");
        make_state_directory(&dir).unwrap();
        assert!(dir.is_dir());
        make_state_directory(&dir).unwrap();

        let file = place.path().join("file");
        std::fs::write(&file, "").unwrap();
        for bad in [
            Path::new("/proc/1/nope"),
            Path::new("/proc/self/fd/nope/deeper"),
            &file,
            &file.join("below"),
            &place.path().join("x".repeat(300)),
        ] {
            let error = make_state_directory(bad).unwrap_err();
            assert_eq!((error.code(), error.exit_code()), ("no-state-dir", 19));
            let message = error.to_string();
            assert!(message.contains(bad.to_str().unwrap()), "{message}");
            assert!(message.contains("server.tailscale.waitForDir"), "{message}");
        }
    }

    #[test]
    fn a_secret_that_cannot_be_exchanged() {
        for (message, code) in [
            ("x: oauth2: \"invalid_client\"", "bad-key"),
            ("x: oauth2: \"temporarily_unavailable\"", "no-network"),
            ("x: oauth2: cannot fetch token: 401 Unauthorized", "bad-key"),
            (
                "x: oauth2: cannot fetch token: 502 Bad Gateway",
                "no-network",
            ),
            ("token exchange failed with status 403: no", "bad-key"),
            ("token exchange failed with status 429: slow", "no-network"),
            (
                "creating authkey: Status: 403, Message: \"tags\"",
                "bad-key",
            ),
            ("dial tcp: lookup api: no such host", "no-network"),
        ] {
            let status = Status {
                error: message.into(),
                ..at(BackendState::NoState)
            };
            assert_eq!(classify(&status, true, now()).code(), code);
        }
    }

    #[test]
    fn a_url_without_a_key_needs_a_person() {
        let url = "https://login/a/1".to_owned();
        assert_eq!(
            classify(&login_url(), false, now()),
            JoinState::NeedsLogin { url }
        );
        assert_eq!(classify(&login_url(), true, now()).code(), "needs-login");
    }

    #[test]
    fn expiry_is_seen_by_mark_and_by_clock() {
        let marked = Status {
            expired: true,
            ..login_url()
        };
        assert_eq!(classify(&marked, false, now()), JoinState::Expired);
        let running = Status {
            key_expiry: Some(now()),
            ..at(BackendState::Running)
        };
        assert_eq!(classify(&running, false, now()), JoinState::Expired);
        let before = now() - Duration::from_secs(1);
        assert_eq!(classify(&running, false, before), JoinState::Running);
    }

    #[test]
    fn a_node_that_control_forgot_is_deleted_not_running() {
        let deleted = Status {
            control_error: "PollNetMap: initial fetch failed 404: node not found".into(),
            ..at(BackendState::Running)
        };
        assert_eq!(classify(&deleted, true, now()), JoinState::Deleted);
        // The error is left over from before the contact was restored.
        let polling = Status {
            in_map_poll: true,
            ..deleted.clone()
        };
        assert_eq!(classify(&polling, true, now()), JoinState::Running);
        // Trouble of the control server is no reason to stop.
        let trouble = Status {
            control_error: "PollNetMap: initial fetch failed 500: oops".into(),
            ..deleted
        };
        assert_eq!(classify(&trouble, true, now()), JoinState::Running);
    }

    fn any_status() -> impl Strategy<Value = Status> {
        let states = prop_oneof![
            Just(BackendState::NoState),
            Just(BackendState::InUseOtherUser),
            Just(BackendState::NeedsLogin),
            Just(BackendState::NeedsMachineAuth),
            Just(BackendState::Stopped),
            Just(BackendState::Starting),
            Just(BackendState::Running),
            Just(BackendState::Unknown),
        ];
        let message = prop_oneof![Just(String::new()), "\\PC*", "register request: http \\PC*"];
        let expiry = proptest::option::of(-10i64..10);
        (
            states,
            message.clone(),
            message.clone(),
            message,
            any::<bool>(),
            expiry,
        )
            .prop_map(
                |(state, auth_url, error, control_error, expired, expiry)| Status {
                    state,
                    auth_url,
                    error,
                    control_error,
                    expired,
                    key_expiry: expiry.map(|s| now() + jiff::SignedDuration::from_secs(s)),
                    ..Status::default()
                },
            )
    }

    proptest! {
        #[test]
        fn nothing_but_a_running_node_with_a_living_key_is_running(status in any_status(), has_key: bool) {
            let state = classify(&status, has_key, now());
            let running = status.state == BackendState::Running
                && !status.expired
                && status.key_expiry.is_none_or(|end| end > now());
            prop_assert_eq!(state == JoinState::Running, running);
        }

        #[test]
        fn a_bad_key_takes_a_key(status in any_status()) {
            let state = classify(&status, false, now());
            prop_assert_ne!(state.code(), "bad-key");
        }

        #[test]
        fn classification_depends_on_its_arguments_alone(status in any_status(), has_key: bool) {
            prop_assert_eq!(classify(&status, has_key, now()), classify(&status.clone(), has_key, now()));
        }

        #[test]
        fn jitter_stays_within_a_fifth(millis in 0u64..1_000_000) {
            let pause = Duration::from_millis(millis);
            let jittered = jittered(pause);
            prop_assert!(jittered >= pause.mul_f64(0.799) && jittered <= pause.mul_f64(1.201));
        }
    }

    #[test]
    fn codes_and_exit_codes_are_distinct() {
        let message = || "w".to_owned();
        let all = [
            JoinState::BadKey { message: message() },
            JoinState::Deleted,
            JoinState::Expired,
            JoinState::NeedsApproval,
            JoinState::NeedsLogin { url: message() },
            JoinState::NoNetwork { message: message() },
            JoinState::Refused { message: message() },
            JoinState::Running,
            JoinState::Starting,
            JoinState::Stopped,
        ];
        let codes: std::collections::BTreeSet<_> = all.iter().map(JoinState::code).collect();
        let exits: std::collections::BTreeSet<_> = all.iter().map(JoinState::exit_code).collect();
        assert_eq!((codes.len(), exits.len()), (all.len(), all.len()));
        assert!(
            exits
                .iter()
                .all(|code| *code == 0 || (10..=20).contains(code) && ![17, 19].contains(code))
        );
    }

    #[test]
    fn times_as_people_write_them() {
        for (millis, text) in [(1, "1ms"), (1000, "1s"), (60_000, "1m"), (65_400, "1m5s")] {
            assert_eq!(human_duration(Duration::from_millis(millis)), text);
        }
    }

    const MS: Duration = Duration::from_millis(1);

    fn limits(has_key: bool) -> JoinLimits {
        JoinLimits {
            retry: 5 * MS,
            replace_after: 5 * MS,
            timeout: 200 * MS,
            has_key,
        }
    }

    /// Makes one fake node for each step, whose status from the start is that of the step.
    struct Script {
        net: FakeTailnet,
        steps: Mutex<VecDeque<Result<Status, Error>>>,
        made: AtomicUsize,
        nodes: Mutex<Vec<FakeNode>>,
    }

    impl Script {
        fn new(steps: impl IntoIterator<Item = Result<Status, Error>>) -> Self {
            Self {
                net: FakeTailnet::new(),
                steps: Mutex::new(steps.into_iter().collect()),
                made: AtomicUsize::new(0),
                nodes: Mutex::default(),
            }
        }

        /// The last step is repeated.
        async fn make(&self) -> Result<Arc<dyn Node>, Error> {
            self.made.fetch_add(1, Ordering::SeqCst);
            let mut steps = self.steps.lock().unwrap();
            let step = match steps.len() {
                1 => steps[0].clone(),
                _ => steps.pop_front().unwrap(),
            };
            let node = self.net.join("script", Identity::user("a@example.com"));
            node.set_status(|s| s.state = BackendState::NoState);
            let step = step?;
            node.set_status(|s| *s = step);
            self.nodes.lock().unwrap().push(node.clone());
            Ok(Arc::new(node))
        }

        async fn join(
            &self,
            limits: JoinLimits,
        ) -> (Result<Arc<dyn Node>, JoinError>, Vec<String>) {
            let mut reported = Vec::new();
            let outcome = join(
                || self.make(),
                limits,
                |progress| {
                    reported.push(match progress {
                        Progress::State(state) => state.code().into(),
                        Progress::StartFailed { error, .. } => error.to_string(),
                    });
                },
            )
            .await;
            (outcome, reported)
        }

        fn assert_all_closed(&self, but: usize) {
            let nodes = self.nodes.lock().unwrap();
            let open = nodes
                .iter()
                .filter(|n| n.watch().borrow().state != BackendState::Stopped)
                .count();
            assert_eq!(open, but);
        }
    }

    #[tokio::test]
    async fn a_node_that_runs_is_joined() {
        let script = Script::new([Ok(at(BackendState::Running))]);
        let (outcome, reported) = script.join(limits(true)).await;
        let _node = outcome.unwrap();
        assert_eq!(reported, ["running"]);
        script.assert_all_closed(1);
    }

    #[tokio::test]
    async fn failed_starts_are_retried_and_reported() {
        let script = Script::new([
            Err(Error::Start("no state".into())),
            Err(Error::Io("disk".into())),
            Ok(at(BackendState::Running)),
        ]);
        let (outcome, reported) = script.join(limits(true)).await;
        let _node = outcome.unwrap();
        assert_eq!(
            reported,
            ["the node would not start: no state", "disk", "running"]
        );
    }

    #[tokio::test]
    async fn without_network_the_node_is_built_anew() {
        let no_network = Status {
            control_error: "dial tcp: refused".into(),
            ..at(BackendState::NoState)
        };
        let script = Script::new([
            Ok(no_network.clone()),
            Ok(no_network),
            Ok(at(BackendState::Stopped)),
            Ok(at(BackendState::Running)),
        ]);
        let (outcome, reported) = script.join(limits(true)).await;
        let _node = outcome.unwrap();
        assert_eq!(reported, ["no-network", "stopped", "running"]);
        assert_eq!(script.made.load(Ordering::SeqCst), 4);
        script.assert_all_closed(1);
    }

    #[tokio::test]
    async fn a_bad_key_ends_it_at_once() {
        let refused = Status {
            error: "key expired".into(),
            ..at(BackendState::NeedsLogin)
        };
        let script = Script::new([Ok(refused)]);
        let began = Instant::now();
        let (outcome, _) = script
            .join(JoinLimits {
                timeout: 3_600_000 * MS,
                ..limits(true)
            })
            .await;
        let error = outcome.unwrap_err();
        assert!(began.elapsed() < 1000 * MS);
        assert_eq!((error.code(), error.exit_code()), ("bad-key", 14));
        assert!(error.to_string().contains("key expired"), "{error}");
        script.assert_all_closed(0);
    }

    #[tokio::test]
    async fn wrong_settings_end_it_at_once() {
        let script = Script::new([Err(Error::Invalid("hostname: too long".into()))]);
        let (outcome, _) = script.join(limits(true)).await;
        let error = outcome.unwrap_err();
        assert_eq!((error.code(), error.exit_code()), ("bad-settings", 64));
        assert_eq!(script.made.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_login_is_waited_for_with_one_node() {
        let script = Script::new([Ok(login_url())]);
        let (outcome, reported) = script.join(limits(false)).await;
        let error = outcome.unwrap_err();
        assert_eq!((error.code(), error.exit_code()), ("needs-login", 11));
        assert!(error.to_string().contains("https://login/a/1"), "{error}");
        assert!(error.to_string().contains("within 200ms"), "{error}");
        assert_eq!(reported, ["needs-login"]);
        assert_eq!(script.made.load(Ordering::SeqCst), 1);
        script.assert_all_closed(0);
    }

    #[tokio::test]
    async fn states_are_left_when_their_cause_goes() {
        let script = Script::new([Ok(login_url())]);
        let steps = async {
            let node = loop {
                if let Some(node) = script.nodes.lock().unwrap().first().cloned() {
                    break node;
                }
                sleep(MS).await;
            };
            for state in [
                BackendState::NeedsMachineAuth,
                BackendState::Starting,
                BackendState::Running,
            ] {
                sleep(10 * MS).await;
                node.set_status(|s| *s = at(state));
            }
        };
        let ((outcome, reported), ()) = tokio::join!(script.join(limits(false)), steps);
        let _node = outcome.unwrap();
        assert_eq!(
            reported,
            ["needs-login", "needs-approval", "starting", "running"]
        );
    }

    #[tokio::test]
    async fn the_time_out_tells_the_last_state() {
        for (step, code, exit) in [
            (Ok(at(BackendState::NoState)), "starting", 10),
            (Ok(at(BackendState::NeedsMachineAuth)), "needs-approval", 12),
            (
                Ok(Status {
                    expired: true,
                    ..at(BackendState::NeedsLogin)
                }),
                "expired",
                13,
            ),
            (
                Ok(Status {
                    control_error: "refused".into(),
                    ..at(BackendState::NoState)
                }),
                "no-network",
                15,
            ),
            (Ok(at(BackendState::Stopped)), "stopped", 16),
            (
                Err(Error::Start("half-written state".into())),
                "start-failed",
                17,
            ),
        ] {
            let script = Script::new([step]);
            let (outcome, _) = script
                .join(JoinLimits {
                    timeout: 40 * MS,
                    ..limits(true)
                })
                .await;
            let error = outcome.unwrap_err();
            assert_eq!((error.code(), error.exit_code()), (code, exit), "{error}");
            script.assert_all_closed(0);
        }
    }

    #[tokio::test]
    async fn dropping_closes_the_node() {
        let script = Script::new([Ok(login_url())]);
        {
            let joining = join(|| script.make(), limits(false), |_| {});
            assert!(tokio::time::timeout(20 * MS, joining).await.is_err());
        }
        let nodes = std::mem::take(&mut *script.nodes.lock().unwrap());
        assert_eq!(nodes.len(), 1);
        let watch = nodes[0].watch();
        // The script's own handle was the last one.
        drop(nodes);
        assert_eq!(watch.borrow().state, BackendState::Stopped);
    }
}
