//! `tailbone doctor`: everything that commonly keeps a server from working, checked side by side, each with what to do.
//!
//! Checks only look, but for a file made and removed in a directory and, with `--write`, the published document written back as
//! it is. A running server is asked at its local socket; without one the checks of the node say so and fail nothing.

use std::{
    fs, io,
    io::Write as _,
    path::Path,
    time::{Duration, SystemTime},
};

use clap::{Arg, ArgAction, ArgMatches, Command};
use futures_util::future::{BoxFuture, join_all};
use jiff::Timestamp;
use serde::Serialize;

use super::{
    args,
    ask::{runtime, target},
    console::Console,
    exit::Failure,
    output::{self, Output, Table},
};
use crate::{
    admin::{AdminClient, proto::StatusResponse},
    config::{self, Environment, Publish, Settings, Tailscale, table::Scope},
    telemetry::chain,
};

const SCOPES: &[Scope] = &[Scope::Root, Scope::Server, Scope::Start];
/// For each thing on the network.
const PATIENCE: Duration = Duration::from_secs(10);
const CONTROL: &str = "https://controlplane.tailscale.com";
/// Clocks further apart than this make tokens look not yet valid somewhere.
const SKEW_WARN: Duration = Duration::from_secs(30);
const SKEW_FAIL: Duration = Duration::from_secs(300);
/// An admin wants to hear of an ending key this long before.
const EXPIRY_WARN: i64 = 14 * 86_400;

pub(super) fn command() -> Command {
    Command::new("doctor")
        .about("Check what commonly goes wrong and say what to do; takes the flags of server start")
        .args(
            args::of(Scope::Server)
                .chain(args::of(Scope::Start))
                .map(|arg| arg.global(false)),
        )
        .arg(
            Arg::new("write")
                .long("write")
                .action(ArgAction::SetTrue)
                .help("Also check that the JWKS can be written, by writing it back unchanged"),
        )
}

pub(super) fn run(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let raw = args::raw(matches, SCOPES, environment);
    let ((settings, client), _) = console.told(config::load_all(&raw))?;
    let server = AdminClient::new(target(&client), client.timeout.min(PATIENCE));
    let checks = runtime()?.block_on(examine(&settings, &server, matches.get_flag("write")));
    let failed = checks
        .0
        .iter()
        .filter(|check| check.verdict == Verdict::Fail)
        .count();
    output::print(console, client.output, &checks)?;
    if failed > 0 {
        return Err(Failure::failed(format!("{failed} of the checks failed")));
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    Warn,
    Fail,
    /// Nothing to look at.
    Skip,
}

/// One check's outcome: what was found and, where something is wrong, what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    pub words: String,
}

#[derive(Debug, Serialize)]
struct Checks(Vec<Check>);

impl Output for Checks {
    fn table(&self) -> Table {
        let mut table = Table::new(["Check", "Verdict", "Words"]);
        for check in &self.0 {
            let verdict = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Fail => "fail",
                Verdict::Skip => "skip",
            };
            table.row([
                check.name.to_owned(),
                verdict.to_owned(),
                check.words.clone(),
            ]);
        }
        table
    }
}

type Found = (Verdict, String);

async fn examine(settings: &Settings, server: &AdminClient, write: bool) -> Checks {
    let status = async { server.status().await.map_err(|error| error.message) };
    let (status, control) = tokio::join!(status, control(&settings.server.tailscale));
    let status = &status;
    let all: Vec<(&'static str, BoxFuture<'_, Found>)> = vec![
        (
            "state-dir-writable",
            Box::pin(directory(&settings.server.tailscale.dir)),
        ),
        ("keys-dir", Box::pin(directory(&settings.keys.dir))),
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
        ("jwks-public", Box::pin(jwks_public(settings))),
        ("bucket-write", Box::pin(bucket_write(settings, write))),
        ("descriptors", Box::pin(async { descriptors() })),
    ];
    let checks = all.into_iter().map(|(name, check)| async move {
        let (verdict, words) = check.await;
        Check {
            name,
            verdict,
            words,
        }
    });
    Checks(join_all(checks).await)
}

fn ok(words: impl Into<String>) -> Found {
    (Verdict::Ok, words.into())
}

fn warn(words: impl Into<String>) -> Found {
    (Verdict::Warn, words.into())
}

fn fail(words: impl Into<String>) -> Found {
    (Verdict::Fail, words.into())
}

fn skip(words: impl Into<String>) -> Found {
    (Verdict::Skip, words.into())
}

/// A file is made and removed, since permissions alone do not tell of a full disk or a read-only file system.
async fn directory(path: &Path) -> Found {
    let path = path.to_owned();
    let looked = tokio::task::spawn_blocking(move || writable(&path)).await;
    looked.unwrap_or_else(|error| fail(error.to_string()))
}

fn writable(path: &Path) -> Found {
    let shown = path.display();
    let mut place = path;
    while !place.exists() {
        match place.parent() {
            Some(parent) if parent != Path::new("") => place = parent,
            _ => place = Path::new("."),
        }
    }
    if !place.is_dir() {
        return fail(format!(
            "{} is not a directory: move it away or set another one",
            place.display()
        ));
    }
    let probe = place.join(format!(".tailbone-doctor-{}", std::process::id()));
    let made = fs::File::create_new(&probe).and_then(|mut file| {
        file.write_all(&[0; 4096])?;
        file.sync_all()
    });
    let removed = fs::remove_file(&probe);
    match made.and(removed) {
        Ok(()) if place == path => ok(format!("{shown} can be written")),
        Ok(()) => ok(format!("{shown} is not there yet and can be made")),
        Err(error) => fail(match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                format!("{shown}: the disk is full. Make room, or set another directory")
            }
            io::ErrorKind::ReadOnlyFilesystem => format!(
                "{shown}: the file system is read-only. Mount a volume there that can be written"
            ),
            io::ErrorKind::PermissionDenied => format!(
                "{shown}: user {} may not write there. Give it the directory (chown), or run as its owner",
                rustix::process::geteuid().as_raw()
            ),
            _ => format!("{shown}: {error}"),
        }),
    }
}

fn auth_key(settings: &Tailscale) -> Found {
    let joined = settings.dir.join("tailscaled.state").exists();
    let Some(key) = &settings.authkey else {
        return if joined {
            ok("none is set and none is needed: the node has joined before")
        } else {
            warn(
                "none is set and the node has not joined before: a person will have to open a login URL. For an unattended start set \
                 server.tailscale.authkey",
            )
        };
    };
    let shapes = [
        ("tskey-auth-", ok("looks like an auth key")),
        (
            "tskey-client-",
            if settings.tags.is_empty() {
                fail("an OAuth client's secret needs server.tailscale.tags")
            } else {
                ok("looks like an OAuth client's secret")
            },
        ),
        (
            "tskey-api-",
            fail("is an API access token, not an auth key: make an auth key in the admin console"),
        ),
        (
            "tskey-webhook-",
            fail("is a webhook's secret, not an auth key: make an auth key in the admin console"),
        ),
    ];
    for (prefix, found) in shapes {
        if key.reveal().starts_with(prefix) {
            return found;
        }
    }
    if settings.control_url.is_some() {
        return ok("is set; its shape is that of another control server");
    }
    warn("does not begin with tskey-auth-, as Tailscale's auth keys do")
}

/// What the control server's answer tells: its clock, if it says.
type Control = Result<(String, Option<SystemTime>), String>;

async fn control(settings: &Tailscale) -> Control {
    let base = settings.control_url.as_deref().unwrap_or(CONTROL);
    let base = base.trim_end_matches('/');
    let client = reqwest::Client::builder()
        .timeout(PATIENCE)
        .build()
        .map_err(|error| chain(&error))?;
    let answer = client
        .get(format!("{base}/key?v=88"))
        .send()
        .await
        .map_err(|error| format!("{base}: {}", chain(&error)))?;
    if answer.status().is_server_error() {
        return Err(format!("{base} answers {}", answer.status()));
    }
    let date = answer
        .headers()
        .get("date")
        .and_then(|date| date.to_str().ok())
        .and_then(|date| jiff::fmt::rfc2822::parse(date).ok())
        .map(|date| SystemTime::from(date.timestamp()));
    Ok((base.to_owned(), date))
}

fn reachable(control: &Control) -> Found {
    match control {
        Ok((base, _)) => ok(format!("{base} answers")),
        Err(words) => fail(format!(
            "{words}. Check the network, DNS, a proxy or firewall in between, and server.tailscale.controlUrl"
        )),
    }
}

fn skew(control: &Control) -> Found {
    let Ok((_, Some(theirs))) = control else {
        return skip("the control server did not tell its time");
    };
    let ours = SystemTime::now();
    let apart = ours
        .duration_since(*theirs)
        .unwrap_or_else(|behind| behind.duration());
    let words = format!(
        "the clock is {} s off the control server's",
        apart.as_secs()
    );
    if apart > SKEW_FAIL {
        fail(format!(
            "{words}: tokens are refused as not yet valid or expired. Set the clock (NTP)"
        ))
    } else if apart > SKEW_WARN {
        warn(format!("{words}. Set the clock (NTP)"))
    } else {
        ok(words)
    }
}

type Asked = Result<StatusResponse, String>;

fn join_state(status: &Asked) -> Found {
    match status {
        Err(words) => skip(format!("no running server to ask: {words}")),
        Ok(status) if status.join_state == "running" => ok(format!(
            "{} at {}",
            status.node_name,
            status.addresses.join(", ")
        )),
        Ok(status) => fail(status.join_words.clone()),
    }
}

fn key_expiry(status: &Asked, now: Timestamp) -> Found {
    let Ok(status) = status else {
        return skip("no running server to ask");
    };
    if status.join_state != "running" {
        return skip("the node is not on the tailnet");
    }
    let left = status.node_key_expiry - now.as_second();
    match status.node_key_expiry {
        0 => ok("the node's key does not expire"),
        _ if left <= 0 => fail("the node's key has expired: extend it in the admin console"),
        _ if left < EXPIRY_WARN => warn(format!(
            "the node's key expires in {} days: extend it in the admin console, switch its expiry off, or give the node a tag",
            left / 86_400
        )),
        _ => ok(format!("the node's key is good for {} days", left / 86_400)),
    }
}

async fn whois(status: &Asked, server: &AdminClient) -> Found {
    let Ok(status) = status else {
        return skip("no running server to ask");
    };
    let Some(own) = status.addresses.first() else {
        return skip("the node has no address yet");
    };
    match server.who_is(own.clone()).await {
        Ok(known) => ok(format!("the node knows itself as {}", known.node_name)),
        Err(error) => fail(format!(
            "the node cannot say who is at {own}: {}. Nobody gets a token like that; restart the server and send a bugreport",
            error.message
        )),
    }
}

fn readiness(status: &Asked) -> Found {
    match status {
        Err(_) => skip("no running server to ask"),
        Ok(status) if status.ready => match super::status::degraded(status) {
            none if none.is_empty() => ok("the server is ready"),
            degraded => warn(format!("the server is ready, but degraded: {degraded}")),
        },
        Ok(status) => fail(super::status::held(status)),
    }
}

/// As a verifier reads it: without credentials.
async fn jwks_public(settings: &Settings) -> Found {
    match &settings.keys.publish {
        Publish::File { path } => match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => skip(format!(
                "{} is not there yet: the first start of a server makes it",
                path.display()
            )),
            Err(error) => fail(format!("{}: {error}", path.display())),
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
                Err(words) => warn(format!(
                    "{words}. Verifiers that read the bucket itself need it public; behind a CDN or proxy this is fine"
                )),
            }
        }
    }
}

fn jwks(bytes: &[u8], place: &str) -> Found {
    let document: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    match document
        .as_ref()
        .and_then(|document| document["keys"].as_array())
    {
        None => fail(format!(
            "{place} holds no JWKS. It is left alone: move it away and the server publishes anew"
        )),
        Some(keys) => ok(format!("{place}: {} keys", keys.len())),
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
    let told = |error: reqwest::Error| format!("{address}: {}", chain(&error));
    let client = reqwest::Client::builder()
        .timeout(PATIENCE)
        .build()
        .map_err(told)?;
    let answer = client.get(address).send().await.map_err(told)?;
    if !answer.status().is_success() {
        return Err(format!("{address} answers {}", answer.status()));
    }
    answer
        .bytes()
        .await
        .map(|bytes| bytes.to_vec())
        .map_err(told)
}

/// The document is written over itself under its own version, so that nothing changes and nobody else's change is lost.
async fn bucket_write(settings: &Settings, asked: bool) -> Found {
    if !asked {
        return skip("only with --write");
    }
    let publisher = settings.keys.publisher();
    let read = match publisher.read().await {
        Ok(Some(read)) => read,
        Ok(None) => {
            return skip(format!(
                "{}: there is no JWKS yet, and an empty one is not made for a check",
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

fn descriptors() -> Found {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    match limit {
        Some(limit) if limit < 4096 => warn(format!(
            "the process may have {limit} descriptors, enough for about {} connections: raise the limit (LimitNOFILE, --ulimit nofile)",
            limit / 4
        )),
        Some(limit) => ok(format!("{limit} descriptors")),
        None => ok("no limit"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_is_tried_and_left_as_it_was() {
        let dir = tempfile::TempDir::new().unwrap();
        assert_eq!(writable(dir.path()).0, Verdict::Ok);
        assert_eq!(writable(&dir.path().join("a/b")).0, Verdict::Ok);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(writable(&file).0, Verdict::Fail);
    }

    #[test]
    fn each_trouble_of_a_directory_has_its_sentence() {
        // Root may write wherever the file system lets it.
        let (verdict, words) = writable(Path::new("/proc/1"));
        assert_eq!(verdict, Verdict::Fail, "{words}");
        if !rustix::process::geteuid().is_root() {
            let dir = tempfile::TempDir::new().unwrap();
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
            let (_, words) = writable(dir.path());
            assert!(words.contains("may not write"), "{words}");
        }
    }

    fn running(expiry: i64) -> Asked {
        Ok(StatusResponse {
            join_state: "running".into(),
            node_key_expiry: expiry,
            ..StatusResponse::default()
        })
    }

    #[test]
    fn an_ending_key_is_told_before_it_ends() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let verdict = |expiry| key_expiry(&running(expiry), now).0;
        assert_eq!(verdict(0), Verdict::Ok);
        assert_eq!(verdict(999_999), Verdict::Fail);
        assert_eq!(verdict(1_000_000 + 13 * 86_400), Verdict::Warn);
        assert_eq!(verdict(1_000_000 + 15 * 86_400), Verdict::Ok);
        assert_eq!(key_expiry(&Err("gone".into()), now).0, Verdict::Skip);
    }

    #[test]
    fn a_clock_that_is_off_is_told() {
        let at = |apart: u64| {
            let theirs = SystemTime::now() - Duration::from_secs(apart);
            skew(&Ok((String::new(), Some(theirs)))).0
        };
        assert_eq!(at(1), Verdict::Ok);
        assert_eq!(at(60), Verdict::Warn);
        assert_eq!(at(86_400), Verdict::Fail);
        assert_eq!(skew(&Err(String::new())).0, Verdict::Skip);
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
