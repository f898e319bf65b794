//! `tailbone doctor`: checks of everything that commonly keeps a server from working, each with
//! what to do.
//!
//! Checks change nothing, except for a file that is made and removed in a directory and, with
//! `--write`, the published document, which is written back unchanged. A running server is asked at
//! its local socket; without one the checks of the node are skipped. What `server start` makes by
//! itself is no failure.

mod oidc;

use std::{
    fs, io,
    io::Write as _,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

use clap::{Arg, ArgAction, ArgMatches, Command};
use futures_util::future::{BoxFuture, join_all};
use jiff::Timestamp;
use serde::{Serialize, Serializer, ser::SerializeStruct as _};
use serde_json::Value;

use super::{
    args,
    ask::{runtime, target},
    console::Console,
    exit::Failure,
    layout::{Layout, List, Mark, count, quoted},
    output::{self, Output},
};
use crate::{
    admin::{
        AdminClient,
        proto::{self, StatusResponse},
    },
    config::{
        self, Component, Environment, Publish, Settings, TailscaleSettings, WorkloadKeyStorage,
        table::FlagScope,
    },
    jwks::Publisher,
    telemetry::{error_chain, innermost_cause},
};

const SCOPES: &[FlagScope] = &[FlagScope::Root, FlagScope::Server, FlagScope::Start];
/// For each answer from the network.
const TIMEOUT: Duration = Duration::from_secs(10);
const CONTROL: &str = "https://controlplane.tailscale.com";
/// Clocks further apart than this make tokens look not yet valid somewhere.
const SKEW_WARN: Duration = Duration::from_secs(30);
const SKEW_FAIL: Duration = Duration::from_secs(300);
/// Seconds before a node key expires from which on there is a warning.
const EXPIRY_WARN: i64 = 14 * 86_400;

/// The headings, each with the names and titles of its checks.
const SECTIONS: [(&str, &[(&str, &str)]); 7] = [
    (
        "Directories",
        &[
            ("state-dir-writable", "State"),
            ("keys-dir", "Signing keys"),
            ("workload-keys-dir", "Keys of workload tokens"),
        ],
    ),
    (
        "Way to the tailnet",
        &[
            ("auth-key-shape", "Auth key"),
            ("control-reachable", "Control server"),
            ("clock-skew", "Clock"),
        ],
    ),
    (
        "Running server",
        &[
            ("join-state", "Node"),
            ("key-expiry", "Node key"),
            ("whois-works", "Identities"),
            ("readiness", "Readiness"),
        ],
    ),
    (
        "HTTPS",
        &[
            ("https-enabled", "Tailnet"),
            ("certificates", "Certificates"),
            ("funnel-allowed", "Funnel"),
        ],
    ),
    (
        "Published keys (JWKS)",
        &[
            ("jwks-public", "Reading"),
            ("jwks-outside", "Outside"),
            ("bucket-write", "Writing"),
            ("workload-jwks-public", "Reading, for workload tokens"),
            ("workload-bucket-write", "Writing, for workload tokens"),
        ],
    ),
    (
        "OpenID provider",
        &[
            ("oidc-dir", "State and keys"),
            ("oidc-store", "Database"),
            ("oidc-discovery", "Applications"),
        ],
    ),
    ("Limits", &[("descriptors", "File descriptors")]),
];

pub(super) fn command() -> Command {
    Command::new("doctor")
        .about("Check what commonly goes wrong and say what to do; takes the flags of server start")
        .args(
            args::of(FlagScope::Server)
                .chain(args::of(FlagScope::Start))
                .map(|arg| arg.global(false)),
        )
        .arg(
            Arg::new("write")
                .long("write")
                .action(ArgAction::SetTrue)
                .help("Also check that the JWKS can be written, by writing it back unchanged"),
        )
        .arg(
            Arg::new("jwks-url")
                .long("jwks-url")
                .value_name("URL")
                .help("Also read the JWKS at this address, where verifiers are told to read it"),
        )
}

pub(super) fn run(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let raw = args::raw(matches, SCOPES, environment);
    let ((settings, client), _) = console.accept(config::load_all(&raw))?;
    let server = AdminClient::new(target(&client), client.timeout.min(TIMEOUT));
    let write = matches.get_flag("write");
    let jwks_url = matches.get_one::<String>("jwks-url").map(String::as_str);
    let checks = runtime()?.block_on(examine(&settings, &server, write, jwks_url));
    output::print(console, client.output, &checks)?;
    match checks.number(CheckResult::Fail) {
        0 => Ok(()),
        failed => Err(Failure::failed(format!(
            "{} failed",
            count(failed, "check", "checks")
        ))),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum CheckResult {
    Ok,
    Warn,
    Fail,
    /// There is nothing to check.
    Skip,
}

/// The result of a check and, if something is wrong, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    result: CheckResult,
    /// What was found.
    words: String,
    /// What to do, in words.
    hint: String,
    /// What to do, to be pasted into a shell or a browser.
    command: String,
}

#[derive(Debug)]
struct Check {
    /// For programs.
    name: &'static str,
    finding: Finding,
}

/// Programs get the finding and the hint as one text.
impl Serialize for Check {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut check = serializer.serialize_struct("Check", 3)?;
        check.serialize_field("name", self.name)?;
        check.serialize_field("verdict", &self.finding.result)?;
        check.serialize_field("words", &self.finding.one_line())?;
        check.end()
    }
}

#[derive(Debug, Serialize)]
struct Checks(Vec<Check>);

impl Checks {
    fn number(&self, verdict: CheckResult) -> usize {
        let same = |check: &&Check| check.finding.result == verdict;
        self.0.iter().filter(same).count()
    }
}

impl Output for Checks {
    fn text(&self, layout: Layout) -> String {
        let mut list = List::new(layout);
        for (heading, names) in SECTIONS {
            let is_one = |check: &Check| names.iter().any(|(name, _)| check.name == *name);
            if !self.0.iter().any(is_one) {
                continue;
            }
            list.heading(heading);
            for (name, title) in names {
                for check in self.0.iter().filter(|check| check.name == *name) {
                    check.finding.add(title, &mut list);
                }
            }
        }
        list.heading("Result");
        let parts = [
            (CheckResult::Ok, "ok", "ok"),
            (CheckResult::Warn, "warning", "warnings"),
            (CheckResult::Fail, "failure", "failures"),
            (CheckResult::Skip, "skipped", "skipped"),
        ];
        let parts = parts.map(|(verdict, one, many)| (self.number(verdict), one, many));
        let parts = parts.iter().filter(|(number, ..)| *number > 0);
        let parts: Vec<_> = parts
            .map(|(number, one, many)| count(*number, one, many))
            .collect();
        let mark = match (
            self.number(CheckResult::Fail),
            self.number(CheckResult::Warn),
        ) {
            (0, 0) => Mark::Good,
            (0, _) => Mark::Warning,
            _ => Mark::Bad,
        };
        list.sentence(mark, &parts.join(", "));
        list.finish()
    }
}

impl Finding {
    fn new(result: CheckResult, words: impl Into<String>) -> Self {
        Self {
            result,
            words: words.into(),
            hint: String::new(),
            command: String::new(),
        }
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: hint.into(),
            ..self
        }
    }

    fn command(self, command: impl Into<String>) -> Self {
        Self {
            command: command.into(),
            ..self
        }
    }

    fn add(&self, title: &str, list: &mut List) {
        let mark = match self.result {
            CheckResult::Fail => Mark::Bad,
            CheckResult::Ok => Mark::Good,
            CheckResult::Skip => Mark::None,
            CheckResult::Warn => Mark::Warning,
        };
        list.item(mark, &format!("{title}: {}", self.words));
        match (self.hint.is_empty(), self.command.is_empty()) {
            (true, _) => {}
            (false, true) => list.note(&format!("{}.", self.hint)),
            (false, false) => list.note(&format!("{}:", self.hint)),
        }
        if !self.command.is_empty() {
            list.verbatim(&self.command);
        }
    }

    fn one_line(&self) -> String {
        let mut text = self.words.clone();
        for (separator, part) in [(". ", &self.hint), (": ", &self.command)] {
            if !part.is_empty() {
                text.push_str(separator);
                text.push_str(part);
            }
        }
        text
    }
}

async fn examine(
    settings: &Settings,
    server: &AdminClient,
    write: bool,
    jwks_url: Option<&str>,
) -> Checks {
    let status = async {
        let status = server.status().await;
        status.map_err(|error| as_sentence(&error.message))
    };
    let (status, control) = tokio::join!(status, control(&settings.server.tailscale));
    let status = &status;
    let workload = settings.components.contains(&Component::Workload);
    let workload = workload.then_some(&settings.workload.keys);
    let mut all: Vec<(&'static str, BoxFuture<'_, Finding>)> = vec![
        (
            "state-dir-writable",
            Box::pin(directory(
                &settings.server.tailscale.dir,
                "server.tailscale.dir",
            )),
        ),
        (
            "keys-dir",
            Box::pin(directory(&settings.keys.dir, "keys.dir")),
        ),
        (
            "auth-key-shape",
            Box::pin(async { auth_key(&settings.server.tailscale) }),
        ),
        ("control-reachable", Box::pin(async { reachable(&control) })),
        ("clock-skew", Box::pin(async { skew(&control) })),
        ("join-state", Box::pin(async move { join_state(status) })),
        (
            "key-expiry",
            Box::pin(async move { key_expiry(status, Timestamp::now()) }),
        ),
        ("whois-works", Box::pin(whois(status, server))),
        ("readiness", Box::pin(async move { readiness(status) })),
        (
            "https-enabled",
            Box::pin(async move {
                https_enabled(status, !settings.node_certificate_ports().is_empty())
            }),
        ),
        (
            "certificates",
            Box::pin(async move { certificates(status, Timestamp::now()) }),
        ),
        (
            "funnel-allowed",
            Box::pin(async move { funnel_allowed(status, &settings.funnel_ports()) }),
        ),
        ("jwks-public", Box::pin(jwks_public(&settings.keys.publish))),
        ("jwks-outside", Box::pin(jwks_outside(status, jwks_url))),
        (
            "bucket-write",
            Box::pin(async move { bucket_write(&*settings.keys.publisher(), write).await }),
        ),
    ];
    if let Some(keys) = workload.filter(|keys| keys.storage != WorkloadKeyStorage::Memory) {
        let dir = directory(&keys.dir, "workload.keys.dir");
        all.insert(2, ("workload-keys-dir", Box::pin(dir)));
        all.push(("workload-jwks-public", Box::pin(jwks_public(&keys.publish))));
        let publisher = keys.publish.publisher(keys.cache_time);
        all.push((
            "workload-bucket-write",
            Box::pin(async move { bucket_write(&*publisher, write).await }),
        ));
    }
    if settings.components.contains(&Component::Oidc) {
        let provider = &settings.oidc;
        all.push(("oidc-dir", Box::pin(directory(&provider.dir, "oidc.dir"))));
        all.push(("oidc-store", Box::pin(oidc::store(provider))));
        let discovery = oidc::discovery(provider, status);
        all.push(("oidc-discovery", Box::pin(discovery)));
    }
    all.push(("descriptors", Box::pin(async { descriptors() })));
    let checks = all.into_iter().map(|(name, check)| async move {
        Check {
            name,
            finding: check.await,
        }
    });
    Checks(join_all(checks).await)
}

fn ok(words: impl Into<String>) -> Finding {
    Finding::new(CheckResult::Ok, words)
}

fn warn(words: impl Into<String>) -> Finding {
    Finding::new(CheckResult::Warn, words)
}

fn fail(words: impl Into<String>) -> Finding {
    Finding::new(CheckResult::Fail, words)
}

fn skip(words: impl Into<String>) -> Finding {
    Finding::new(CheckResult::Skip, words)
}

/// A file is made and removed, since permissions alone tell neither of a full disk nor of a
/// read-only file system.
async fn directory(path: &Path, setting: &'static str) -> Finding {
    let path = path.to_owned();
    let checked = tokio::task::spawn_blocking(move || writable(&path, setting)).await;
    checked.unwrap_or_else(|error| fail(error.to_string()))
}

fn writable(path: &Path, setting: &str) -> Finding {
    // A command in a hint can be pasted anywhere.
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let path = absolute.as_path();
    let shown = path.display();
    // The server makes what is missing below the nearest directory that exists.
    let mut existing = path;
    while !existing.exists()
        && let Some(parent) = existing.parent()
    {
        existing = parent;
    }
    if !existing.is_dir() {
        let file = existing.display();
        return fail(format!("{file} is not a directory"))
            .hint(format!(
                "Set another directory as {setting}, or move the file away"
            ))
            .command(moved_away(existing));
    }
    match write_in(existing) {
        Ok(()) if existing == path => ok(format!("{shown} can be written")),
        Ok(()) => ok(format!("{shown} does not exist yet; server start makes it")),
        Err(error) => {
            let place = quoted(&existing.to_string_lossy());
            match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    fail(format!("the disk of {shown} is full"))
                        .hint(format!("Make room, or set another directory as {setting}"))
                        .command(format!("df -h {place}"))
                }
                io::ErrorKind::ReadOnlyFilesystem => {
                    fail(format!("the file system of {shown} is read-only"))
                        .hint("Mount a volume there that can be written")
                }
                io::ErrorKind::PermissionDenied => {
                    let user = rustix::process::geteuid().as_raw();
                    let command = if existing == path {
                        format!("sudo chown {user} {place}")
                    } else {
                        let path = quoted(&path.to_string_lossy());
                        format!("sudo install -d -m 700 -o {user} {path}")
                    };
                    fail(format!("the user {user} may not write {shown}"))
                        .hint(format!(
                            "Run as its owner, set another directory as {setting}, or give it to \
                             this user"
                        ))
                        .command(command)
                }
                _ => fail(format!("{shown} cannot be written: {error}"))
                    .hint(format!("Set another directory as {setting}")),
            }
        }
    }
}

/// Makes and removes a file. Its name differs between checks, because two of them may end up in the
/// same directory at the same time.
fn write_in(directory: &Path) -> io::Result<()> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let probe = directory.join(format!(".tailbone-doctor-{}-{number}", std::process::id()));
    let made = fs::File::create_new(&probe).and_then(|mut file| {
        file.write_all(&[0; 4096])?;
        file.sync_all()
    });
    let removed = fs::remove_file(&probe);
    made.and(removed)
}

fn moved_away(path: &Path) -> String {
    let path = path.to_string_lossy();
    format!("mv {} {}", quoted(&path), quoted(&format!("{path}.old")))
}

fn auth_key(settings: &TailscaleSettings) -> Finding {
    let has_joined = settings.dir.join("tailscaled.state").exists();
    let Some(key) = &settings.authkey else {
        return if has_joined {
            ok("none is set, and none is needed: the node has joined before")
        } else {
            warn("none is set, so a person has to log the node in at its first start")
                .hint(format!(
                    "To start without a person, make an auth key at {KEYS_PAGE} and set it"
                ))
                .command("export TB_SERVER_TAILSCALE_AUTHKEY=tskey-auth-...")
        };
    };
    let another =
        || format!("Make an auth key at {KEYS_PAGE} and set it as server.tailscale.authkey");
    let shapes = [
        ("tskey-auth-", ok("it looks like an auth key")),
        (
            "tskey-client-",
            if settings.tags.is_empty() {
                fail("an OAuth client's secret needs the tags of the node")
                    .hint("Set one or more of the client's tags as server.tailscale.tags")
                    .command("export TB_SERVER_TAILSCALE_TAGS=tag:...")
            } else {
                ok("it looks like an OAuth client's secret")
            },
        ),
        (
            "tskey-api-",
            fail("this is an API access token and not an auth key").hint(another()),
        ),
        (
            "tskey-webhook-",
            fail("this is a webhook's secret and not an auth key").hint(another()),
        ),
    ];
    for (prefix, finding) in shapes {
        if key.reveal().starts_with(prefix) {
            return finding;
        }
    }
    if settings.control_url.is_some() {
        return ok("it is set, in the form of another control server");
    }
    warn("it does not begin with tskey-auth-, as Tailscale's auth keys do").hint(another())
}

/// Where Tailscale's admin console makes auth keys.
const KEYS_PAGE: &str = "https://login.tailscale.com/admin/settings/keys";
/// Where it extends the keys of nodes.
const MACHINES_PAGE: &str = "https://login.tailscale.com/admin/machines";

/// The control server's address, and its clock if it tells it.
type Control = Result<(String, Option<SystemTime>), Unreachable>;

struct Unreachable {
    address: String,
    cause: String,
}

async fn control(settings: &TailscaleSettings) -> Control {
    let base = settings.control_url.as_deref().unwrap_or(CONTROL);
    let base = base.trim_end_matches('/');
    let address = format!("{base}/key?v=88");
    let unreachable = |cause| Unreachable {
        address: address.clone(),
        cause,
    };
    let client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .build()
        .map_err(|error| unreachable(error_chain(&error)))?;
    let answer = client
        .get(&address)
        .send()
        .await
        .map_err(|error| unreachable(innermost_cause(&error)))?;
    if answer.status().is_server_error() {
        return Err(unreachable(format!("it answers {}", answer.status())));
    }
    let date = answer
        .headers()
        .get("date")
        .and_then(|date| date.to_str().ok())
        .and_then(|date| jiff::fmt::rfc2822::parse(date).ok())
        .map(|date| SystemTime::from(date.timestamp()));
    Ok((base.to_owned(), date))
}

fn reachable(control: &Control) -> Finding {
    match control {
        Ok((base, _)) => ok(format!("{base} answers")),
        Err(Unreachable { address, cause }) => {
            fail(format!("{address} cannot be reached: {cause}"))
                .hint(
                    "Check the network, DNS, a proxy or firewall in between, and \
                     server.tailscale.controlUrl",
                )
                .command(format!("curl -v {}", quoted(address)))
        }
    }
}

fn skew(control: &Control) -> Finding {
    let Ok((_, Some(theirs))) = control else {
        return skip("the control server did not tell its time");
    };
    let ours = SystemTime::now();
    let apart = ours
        .duration_since(*theirs)
        .unwrap_or_else(|behind| behind.duration());
    let seconds = usize::try_from(apart.as_secs()).unwrap_or(usize::MAX);
    let words = format!(
        "it is {} off the control server's",
        count(seconds, "second", "seconds")
    );
    let (finding, hint) = if apart > SKEW_FAIL {
        (
            fail(words),
            "Verifiers refuse tokens as expired or not yet valid. Set the clock (NTP)",
        )
    } else if apart > SKEW_WARN {
        (warn(words), "Set the clock (NTP)")
    } else {
        return ok(words);
    };
    finding.hint(hint).command("sudo timedatectl set-ntp true")
}

fn as_sentence(words: &str) -> String {
    let mut letters = words.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(letters).collect()
}

/// What the running server answered, or why none did.
type Answer = Result<StatusResponse, String>;

const NO_SERVER: &str = "no running server to ask";

fn join_state(status: &Answer) -> Finding {
    match status {
        Err(words) => skip(NO_SERVER).hint(words.as_str()),
        Ok(status) if status.join_state == "running" => ok(format!(
            "{} at {}",
            status.node_name,
            status.addresses.join(", ")
        )),
        Ok(status) if !status.login_url.is_empty() => fail("a person has to log this node in")
            .hint("Open this address, or set server.tailscale.authkey and start again")
            .command(status.login_url.clone()),
        Ok(status) => fail(status.join_words.clone()),
    }
}

fn key_expiry(status: &Answer, now: Timestamp) -> Finding {
    let Ok(status) = status else {
        return skip(NO_SERVER);
    };
    if status.join_state != "running" {
        return skip("the node is not on the tailnet");
    }
    let left = status.node_key_expiry - now.as_second();
    let days = count(
        usize::try_from(left / 86_400).unwrap_or_default(),
        "day",
        "days",
    );
    match status.node_key_expiry {
        0 => ok("it does not expire"),
        _ if left <= 0 => {
            fail("it has expired").hint(format!("Extend it in the admin console, {MACHINES_PAGE}"))
        }
        _ if left < EXPIRY_WARN => warn(format!("it expires in {days}")).hint(format!(
            "Extend it or switch its expiry off in the admin console, {MACHINES_PAGE}, or give the \
             node a tag"
        )),
        _ => ok(format!("it is good for {days}")),
    }
}

async fn whois(status: &Answer, server: &AdminClient) -> Finding {
    let Ok(status) = status else {
        return skip(NO_SERVER);
    };
    let Some(own) = status.addresses.first() else {
        return skip("the node has no address yet");
    };
    match server.who_is(own.clone()).await {
        Ok(answer) => ok(format!("the node knows itself as {}", answer.node_name)),
        Err(error) => fail(format!(
            "the node cannot say who is at {own}: {}",
            error.message
        ))
        .hint("No caller gets a token like this. Restart the server, and send a bug report")
        .command("tailbone bugreport"),
    }
}

fn readiness(status: &Answer) -> Finding {
    match status {
        Err(_) => skip(NO_SERVER),
        Ok(status) if status.ready => match super::status::degraded(status) {
            none if none.is_empty() => ok("the server is ready"),
            degraded => warn(format!("the server is ready, but degraded: {degraded}")),
        },
        Ok(status) => fail(format!(
            "the server is not ready: {}",
            super::status::held(status)
        )),
    }
}

/// Whether the node can have the certificate that listeners need.
fn https_enabled(status: &Answer, is_needed: bool) -> Finding {
    match status {
        _ if !is_needed => skip("no listener uses the certificate of the node's name"),
        Err(_) => skip(NO_SERVER),
        Ok(status) if status.join_state != "running" => skip("the node is not on the tailnet"),
        Ok(status) if status.certificate_names.is_empty() => {
            fail("HTTPS is not enabled in this tailnet")
                .hint("Enable \"HTTPS Certificates\" on the DNS page of the admin console")
                .command("https://login.tailscale.com/admin/dns")
        }
        Ok(status) => ok(format!(
            "the node can have a certificate for {}",
            status.certificate_names.join(", ")
        )),
    }
}

/// Whether each certificate is valid, and renewed in time.
fn certificates(status: &Answer, now: Timestamp) -> Finding {
    let Ok(status) = status else {
        return skip(NO_SERVER);
    };
    let mut all: Vec<&proto::Certificate> = Vec::new();
    for listener in &status.listeners {
        // Listeners may share one.
        all.extend(
            listener
                .certificate
                .as_ref()
                .filter(|certificate| !all.contains(certificate)),
        );
    }
    if all.is_empty() {
        return skip("no listener uses TLS");
    }
    let troubles: Vec<_> = all
        .iter()
        .map(|certificate| certificate.trouble.as_str())
        .filter(|trouble| !trouble.is_empty())
        .collect();
    if troubles.is_empty() {
        let each = all.iter().map(|certificate| {
            let end = Timestamp::from_second(certificate.not_after).unwrap_or_default();
            let (names, issuer) = (certificate.names.join(", "), &certificate.issuer);
            format!("{names} by {issuer} until {end}")
        });
        return ok(each.collect::<Vec<_>>().join("; "));
    }
    let is_usable = |certificate: &&proto::Certificate| certificate.not_after > now.as_second();
    let words = troubles.join("; ");
    if all.iter().all(is_usable) {
        warn(words)
    } else {
        fail(words)
    }
}

/// Whether the tailnet lets the node use Funnel at these ports.
fn funnel_allowed(status: &Answer, ports: &[u16]) -> Finding {
    match status {
        _ if ports.is_empty() => skip("no listener is on Funnel"),
        Err(_) => skip(NO_SERVER),
        Ok(status) => match status.latches.iter().find(|latch| latch.name == "funnel") {
            None => warn("the server runs without its Funnel listeners").hint("Start it again"),
            Some(latch) if latch.reason.is_empty() => {
                let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
                ok(format!(
                    "the node is on the internet at {}",
                    ports.join(", ")
                ))
            }
            Some(latch) => fail(latch.reason.clone()),
        },
    }
}

/// Reads the document as a verifier does: without credentials.
async fn jwks_public(publish: &Publish) -> Finding {
    match publish {
        Publish::File { path } => match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => skip(format!(
                "{} does not exist yet; server start makes it",
                path.display()
            )),
            Err(error) => fail(format!("{} cannot be read: {error}", path.display()))
                .hint("Give this user the right to read it")
                .command(format!("ls -l {}", quoted(&path.to_string_lossy()))),
            Ok(bytes) => jwks(&bytes, &path.display().to_string()),
        },
        Publish::S3 {
            bucket,
            key_path,
            endpoint,
            path_style,
        } => {
            let address = public_address(bucket, key_path, endpoint.as_deref(), *path_style);
            match fetched(&address).await {
                Ok(bytes) => jwks(&bytes, &address),
                Err(words) => warn(words).hint(
                    "Verifiers that read the bucket itself need it public; behind a CDN or proxy \
                     this is fine",
                ),
            }
        }
    }
}

/// Reads the document at an address that verifiers were given: through Funnel, a bucket or a CDN.
async fn jwks_outside(status: &Answer, address: Option<&str>) -> Finding {
    let Some(address) = address else {
        return skip("not checked without --jwks-url");
    };
    let bytes = match fetched(address).await {
        Ok(bytes) => bytes,
        Err(words) => {
            return fail(words).hint(
                "Verifiers that were told to read the keys there take no token; see whether the \
                 name resolves in the public DNS, and what serves it",
            );
        }
    };
    let Some(keys) = keys_of(&bytes) else {
        return fail(format!("{address} holds no JWKS"));
    };
    let has = |kid: &&String| keys.iter().any(|key| key["kid"] == **kid);
    let signing = status.as_ref().map(signing_keys).unwrap_or_default();
    // Every set has a document of its own.
    if !signing.iter().any(|kids| kids.iter().all(has))
        && let Some(missing) = signing.iter().flatten().find(|kid| !has(kid))
    {
        return fail(format!(
            "{address} does not have the key {missing}, with which the server signs"
        ))
        .hint("Another server's keys are there, or a copy that is not renewed");
    }
    ok(format!(
        "{address} has {}",
        count(keys.len(), "key", "keys")
    ))
}

/// The ids of the keys that sign, those of issuer and gate and those of each set by themselves.
fn signing_keys(status: &StatusResponse) -> Vec<Vec<&String>> {
    let issuer = vec![&status.signing_key];
    let sets = status.key_sets.iter().map(|set| {
        let keys = status.keys.iter();
        let signing = keys.filter(|key| key.set == set.name && key.signs_since != 0);
        signing.map(|key| &key.key_id).collect()
    });
    let mut all: Vec<Vec<_>> = [issuer].into_iter().chain(sets).collect();
    all.retain(|kids| kids.iter().any(|kid| !kid.is_empty()));
    all
}

fn keys_of(document: &[u8]) -> Option<Vec<Value>> {
    match serde_json::from_slice::<Value>(document)
        .ok()?
        .get_mut("keys")?
        .take()
    {
        Value::Array(keys) => Some(keys),
        _ => None,
    }
}

fn jwks(bytes: &[u8], place: &str) -> Finding {
    match keys_of(bytes) {
        None => fail(format!("{place} holds no JWKS"))
            .hint("The server leaves it alone. Move it away, and the server publishes a new one"),
        Some(keys) => ok(format!("{place} has {}", count(keys.len(), "key", "keys"))),
    }
}

fn public_address(bucket: &str, key: &str, endpoint: Option<&str>, path_style: bool) -> String {
    match endpoint {
        None => format!("https://{bucket}.s3.amazonaws.com/{key}"),
        Some(endpoint) => {
            let endpoint = endpoint.trim_end_matches('/');
            match endpoint.split_once("://") {
                Some((scheme, host)) if !path_style => format!("{scheme}://{bucket}.{host}/{key}"),
                _ => format!("{endpoint}/{bucket}/{key}"),
            }
        }
    }
}

async fn fetched(address: &str) -> Result<Vec<u8>, String> {
    let words =
        |error: reqwest::Error| format!("{address} cannot be read: {}", innermost_cause(&error));
    let client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .build()
        .map_err(words)?;
    let answer = client.get(address).send().await.map_err(words)?;
    if !answer.status().is_success() {
        return Err(format!("{address} answers {}", answer.status()));
    }
    answer
        .bytes()
        .await
        .map(|bytes| bytes.to_vec())
        .map_err(words)
}

/// The document is written over itself on condition of its version, so that nothing changes and no
/// change of another server is lost.
async fn bucket_write(publisher: &dyn Publisher, asked: bool) -> Finding {
    if !asked {
        return skip("not checked without --write");
    }
    let read = match publisher.read().await {
        Ok(Some(read)) => read,
        Ok(None) => {
            return skip(format!(
                "{}: there is no JWKS yet, and no empty one is made for a check",
                publisher.place()
            ));
        }
        Err(error) => return fail(error.to_string()),
    };
    match publisher.write(&read.document, Some(&read.etag)).await {
        Ok(_) => ok(format!("{} can be written", publisher.place())),
        Err(error) => fail(error.to_string()),
    }
}

fn descriptors() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    match limit {
        Some(limit) if limit < 4096 => warn(format!(
            "the process may have {limit}, enough for about {} connections",
            limit / 4
        ))
        .hint(
            "Raise the limit, with LimitNOFILE=65536 in a unit of systemd, or with --ulimit \
             nofile=65536 for a container",
        ),
        Some(limit) => ok(format!("the process may have {limit}")),
        None => ok("no limit"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SETTING: &str = "keys.dir";

    #[test]
    fn a_directory_is_tried_and_left_as_it_was() {
        let dir = tempfile::TempDir::new().unwrap();
        assert_eq!(writable(dir.path(), SETTING).result, CheckResult::Ok);
        let missing = writable(&dir.path().join("a/b"), SETTING);
        assert_eq!(missing.result, CheckResult::Ok);
        assert!(
            missing.words.ends_with("server start makes it"),
            "{missing:?}"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let file = dir.path().join("a file");
        fs::write(&file, "").unwrap();
        let finding = writable(&file, SETTING);
        assert_eq!(finding.result, CheckResult::Fail);
        let path = file.display();
        assert_eq!(finding.command, format!("mv '{path}' '{path}.old'"));
    }

    #[test]
    fn two_checks_of_one_directory_at_the_same_time_do_not_disturb_each_other() {
        let dir = tempfile::TempDir::new().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let finding = writable(&dir.path().join("missing"), SETTING);
                        assert_eq!(finding.result, CheckResult::Ok, "{finding:?}");
                    }
                });
            }
        });
    }

    #[test]
    fn each_trouble_of_a_directory_has_its_sentence_and_its_command() {
        // Root may write wherever the file system lets it.
        let finding = writable(Path::new("/proc/1"), SETTING);
        assert_eq!(finding.result, CheckResult::Fail, "{finding:?}");
        assert!(finding.hint.contains(SETTING), "{finding:?}");
        if !rustix::process::geteuid().is_root() {
            let dir = tempfile::TempDir::new().unwrap();
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
            let finding = writable(dir.path(), SETTING);
            assert!(finding.words.contains("may not write"), "{finding:?}");
            assert!(finding.command.starts_with("sudo chown"), "{finding:?}");
            let finding = writable(&dir.path().join("below"), SETTING);
            assert!(
                finding.command.starts_with("sudo install -d"),
                "{finding:?}"
            );
        }
    }

    fn examined() -> Checks {
        let check = |name, finding| Check { name, finding };
        Checks(vec![
            check(
                "state-dir-writable",
                ok("/var/lib/tailbone/.tsnet can be written"),
            ),
            check(
                "keys-dir",
                fail("the user 1000 may not write /var/lib/tailbone/keys")
                    .hint("Set another directory as keys.dir, or give it to this user")
                    .command("sudo chown 1000 /var/lib/tailbone/keys"),
            ),
            check(
                "auth-key-shape",
                warn("none is set, so a person has to log the node in at its first start")
                    .hint("Set one"),
            ),
            check("join-state", skip(NO_SERVER)),
            check("jwks-public", jwks(br#"{"keys":[{}]}"#, "keys/jwks.json")),
            check("descriptors", ok("the process may have 524288")),
        ])
    }

    #[test]
    fn the_list_fits_80_columns_and_puts_the_hint_below() {
        assert_eq!(
            examined().text(Layout::terminal(80)),
            "\
Directories
  ✓ State: /var/lib/tailbone/.tsnet can be written
  ✗ Signing keys: the user 1000 may not write /var/lib/tailbone/keys
      Set another directory as keys.dir, or give it to this user:
        sudo chown 1000 /var/lib/tailbone/keys

Way to the tailnet
  ! Auth key: none is set, so a person has to log the node in at its first start
      Set one.

Running server
  - Node: no running server to ask

Published keys (JWKS)
  ✓ Reading: keys/jwks.json has 1 key

Limits
  ✓ File descriptors: the process may have 524288

Result
  ✗ 3 ok, 1 warning, 1 failure, 1 skipped
"
        );
    }

    #[test]
    fn the_list_fits_40_columns_but_for_what_is_to_be_pasted() {
        let text = examined().text(Layout::terminal(40));
        for line in text.lines() {
            let whole = line.trim().starts_with("sudo") || line.trim().split(' ').count() == 1;
            assert!(whole || line.chars().count() <= 40, "{line}\n{text}");
        }
        assert!(
            text.contains("      sudo chown 1000 /var/lib/tailbone/keys\n"),
            "{text}"
        );
    }

    #[test]
    fn on_a_pipe_words_stand_for_marks() {
        let text = examined().text(Layout::PIPE);
        assert!(!text.contains(['✓', '✗', '!', '\x1b']), "{text}");
        assert!(text.contains("  ok   State: /var/lib"), "{text}");
        assert!(text.contains("  fail Signing keys: the user"), "{text}");
        assert!(
            text.ends_with("Result\n  3 ok, 1 warning, 1 failure, 1 skipped\n"),
            "{text}"
        );
    }

    #[test]
    fn colours_are_for_terminals_that_want_them() {
        let plain = examined().text(Layout::terminal(80));
        let coloured = examined().text(Layout::terminal(80).coloured());
        assert!(
            coloured.contains("\x1b[31m✗ \x1b[0mSigning keys"),
            "{coloured}"
        );
        let mut bare = coloured.clone();
        for code in ["0", "1", "2", "31", "32", "33"] {
            bare = bare.replace(&format!("\x1b[{code}m"), "");
        }
        assert_eq!(bare, plain);
    }

    #[test]
    fn json_has_name_verdict_and_words_with_the_hint() {
        let json = serde_json::to_value(examined()).unwrap();
        assert_eq!(
            json[1],
            serde_json::json!({
                "name": "keys-dir",
                "verdict": "fail",
                "words": "the user 1000 may not write /var/lib/tailbone/keys. Set another \
                          directory as keys.dir, or give it to this user: sudo chown 1000 \
                          /var/lib/tailbone/keys",
            })
        );
    }

    #[tokio::test]
    async fn every_check_has_its_place_in_the_list() {
        let raw =
            config::RawSettings::collect(config::Flags::default(), &Environment::default(), None);
        let ((settings, client), ..) = config::load_all(&raw).unwrap();
        let mut settings = settings;
        // Nothing listens there, so nothing outside of this machine is asked.
        settings.server.tailscale.control_url = Some("http://127.0.0.1:1".into());
        let server = AdminClient::new(target(&client), TIMEOUT);
        let listed = SECTIONS.iter().flat_map(|(_, names)| names.iter());
        let mut listed: Vec<_> = listed.map(|(name, _)| *name).collect();
        let names = async |settings: &Settings| {
            let checks = examine(settings, &server, false, None).await;
            checks.0.iter().map(|check| check.name).collect::<Vec<_>>()
        };
        for component in [Component::Workload, Component::Oidc] {
            settings.components.insert(component);
        }
        assert_eq!(names(&settings).await, listed);
        // What is switched off is not checked.
        for component in [Component::Workload, Component::Oidc] {
            settings.components.remove(&component);
            let prefix = format!("{component}-");
            listed.retain(|name| !name.starts_with(&prefix));
            assert_eq!(names(&settings).await, listed);
        }
    }

    fn running(expiry: i64) -> Answer {
        Ok(StatusResponse {
            join_state: "running".into(),
            node_key_expiry: expiry,
            ..StatusResponse::default()
        })
    }

    #[test]
    fn an_ending_key_is_told_before_it_ends() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let verdict = |expiry| key_expiry(&running(expiry), now).result;
        assert_eq!(verdict(0), CheckResult::Ok);
        assert_eq!(verdict(999_999), CheckResult::Fail);
        assert_eq!(verdict(1_000_000 + 13 * 86_400), CheckResult::Warn);
        assert_eq!(verdict(1_000_000 + 15 * 86_400), CheckResult::Ok);
        let soon = key_expiry(&running(1_000_000 + 86_400), now);
        assert_eq!(soon.words, "it expires in 1 day");
        let unknown = key_expiry(&Err("gone".into()), now);
        assert_eq!(unknown.result, CheckResult::Skip);
    }

    #[test]
    fn https_that_is_not_enabled_is_told_with_what_to_click() {
        let mut status = running(0);
        let verdict = |status: &Answer, needed| https_enabled(status, needed).result;
        assert_eq!(verdict(&status, false), CheckResult::Skip);
        let missing = https_enabled(&status, true);
        assert_eq!(missing.result, CheckResult::Fail);
        assert!(missing.one_line().contains("admin/dns"), "{missing:?}");
        status.as_mut().unwrap().certificate_names = vec!["a.b.ts.net".into()];
        assert_eq!(verdict(&status, true), CheckResult::Ok);
        assert_eq!(verdict(&Err("gone".into()), true), CheckResult::Skip);
    }

    #[test]
    fn a_certificate_that_is_not_renewed_is_a_warning_and_one_that_has_ended_a_failure() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let found = |not_after, trouble: &str| {
            let certificate = proto::Certificate {
                names: vec!["a.b.ts.net".into()],
                issuer: "CN=test".into(),
                not_after,
                trouble: trouble.into(),
            };
            let listener = proto::Listener {
                certificate: Some(certificate),
                ..proto::Listener::default()
            };
            let mut status = running(0);
            status.as_mut().unwrap().listeners = vec![listener.clone(), listener];
            certificates(&status, now)
        };
        let good = found(2_000_000, "");
        assert_eq!(good.result, CheckResult::Ok);
        assert_eq!(
            good.words,
            "a.b.ts.net by CN=test until 1970-01-24T03:33:20Z"
        );
        let late = found(2_000_000, "it could not be renewed");
        assert_eq!(
            (late.result, late.words.as_str()),
            (CheckResult::Warn, "it could not be renewed")
        );
        assert_eq!(found(999_999, "it ended").result, CheckResult::Fail);
        assert_eq!(found(0, "there is none").result, CheckResult::Fail);
        assert_eq!(certificates(&running(0), now).result, CheckResult::Skip);
    }

    #[test]
    fn a_clock_that_is_off_is_told() {
        let at = |apart: u64| {
            let theirs = SystemTime::now() - Duration::from_secs(apart);
            skew(&Ok((String::new(), Some(theirs)))).result
        };
        assert_eq!(at(1), CheckResult::Ok);
        assert_eq!(at(60), CheckResult::Warn);
        assert_eq!(at(86_400), CheckResult::Fail);
        let unknown = skew(&Ok((String::new(), None)));
        assert_eq!(unknown.result, CheckResult::Skip);
    }

    #[tokio::test]
    async fn keys_outside_are_those_with_which_the_server_signs() {
        let address = served(r#"{"keys": [{"kid": "tb-1"}, {"kid": "tb-2"}]}"#).await;
        let signing = |kid: &str| {
            Ok(StatusResponse {
                signing_key: kid.to_owned(),
                ..StatusResponse::default()
            })
        };
        let check = async |status: Answer| jwks_outside(&status, Some(&address)).await;
        let found = check(signing("tb-2")).await;
        assert_eq!(found, ok(format!("{address} has 2 keys")));
        let unknown = check(Err("not running".into())).await;
        assert_eq!(unknown.result, CheckResult::Ok, "{unknown:?}");
        // Those of a component with its own keys count as well.
        let mut both = signing("tb-3");
        let status = both.as_mut().unwrap();
        status.key_sets = vec![proto::KeySet {
            name: "workload".into(),
            ..proto::KeySet::default()
        }];
        let of_set = |kid: &str, since| proto::Key {
            key_id: kid.into(),
            set: "workload".into(),
            signs_since: since,
            ..proto::Key::default()
        };
        status.keys = vec![of_set("tb-1", 1), of_set("tb-2", 1), of_set("tb-9", 0)];
        assert_eq!(check(both.clone()).await.result, CheckResult::Ok);
        both.as_mut().unwrap().keys[2].signs_since = 1;
        assert_eq!(check(both).await.result, CheckResult::Fail);
        let other = check(signing("tb-3")).await;
        assert_eq!(other.result, CheckResult::Fail);
        assert!(other.words.contains("does not have the key tb-3"));

        for page in ["<html>", "[[]]", r#"{"keys": {}}"#] {
            let page = served(page).await;
            let page = jwks_outside(&signing("tb-1"), Some(&page)).await;
            assert!(page.words.ends_with("holds no JWKS"), "{page:?}");
        }
        for nowhere in ["http://127.0.0.1:1/jwks.json", "jwks.json"] {
            let found = jwks_outside(&signing("tb-1"), Some(nowhere)).await;
            assert_eq!(found.result, CheckResult::Fail);
            assert!(found.words.starts_with(nowhere), "{found:?}");
        }
    }

    /// The address of a server on loopback that answers every request with this text.
    async fn served(text: &'static str) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/jwks.json", listener.local_addr().unwrap());
        let app = axum::Router::new().fallback(move || async move { text });
        tokio::spawn(async move { axum::serve(listener, app).await });
        address
    }

    #[test]
    fn a_bucket_is_read_where_verifiers_read_it() {
        assert_eq!(
            public_address("b", ".well-known/jwks.json", None, false),
            "https://b.s3.amazonaws.com/.well-known/jwks.json"
        );
        assert_eq!(
            public_address("b", "k", Some("http://s3.local:9/"), true),
            "http://s3.local:9/b/k"
        );
        assert_eq!(
            public_address("b", "k", Some("https://s3.example"), false),
            "https://b.s3.example/k"
        );
    }
}
