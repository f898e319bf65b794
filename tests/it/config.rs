//! Settings from the outside, through the command line: the contract's names, precedence, quirks,
//! mistakes and secrets.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on may panic, and so may what it calls"
)]

mod otlp;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{Read, Write},
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use proptest::prelude::*;
use serde_json::{Value as Json, json};
use tailbone::{
    cli::{self, console::Console},
    config::{
        self, Authorization, ClientSettings, Component, Environment, Flags, KeySpec, Listen,
        LogFormat, LogLevel, Mistakes, Origin, OutputFormat, Publish, Purpose, Raw, Settings,
        Value, sections, table,
    },
};
use tempfile::TempDir;

// ---- running the program

/// The result of a command line.
struct Ran {
    code: u8,
    out: String,
    err: String,
}

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    let environment: Environment = variables.iter().copied().collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = cli::execute(
        std::iter::once("tailbone")
            .chain(arguments.iter().copied())
            .map(OsString::from),
        &environment,
        &mut Console {
            out: &mut out,
            err: &mut err,
            person: None,
        },
    );
    Ran {
        code,
        out: String::from_utf8(out).unwrap(),
        err: String::from_utf8(err).unwrap(),
    }
}

/// `config show --origin` as a map from key to value and origin.
fn show(arguments: &[&str], variables: &[(&str, &str)]) -> BTreeMap<String, (Json, String)> {
    let mut all = vec!["config", "show", "--origin", "-o", "json"];
    all.extend(arguments);
    let ran = run(&all, variables);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let lines: Vec<Json> = serde_json::from_str(&ran.out).unwrap();
    lines
        .into_iter()
        .map(|line| {
            (
                line["key"].as_str().unwrap().to_owned(),
                (
                    line["value"].clone(),
                    line["origin"].as_str().unwrap().to_owned(),
                ),
            )
        })
        .collect()
}

fn raw(variables: &[(&str, &str)]) -> Raw {
    Raw::collect(Flags::default(), &variables.iter().copied().collect(), None)
}

fn load(variables: &[(&str, &str)]) -> Result<Settings, Mistakes> {
    config::load(&raw(variables), Purpose::Start).map(|(settings, _, _)| settings)
}

fn client(variables: &[(&str, &str)]) -> ClientSettings {
    config::load_client(&raw(variables)).unwrap().0
}

/// The warnings and mistakes for some variables.
fn remarks(variables: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let told = |list: &[config::Remark]| list.iter().map(ToString::to_string).collect();
    match config::load_all(&raw(variables)) {
        Ok((_, _, warnings)) => (told(&warnings), Vec::new()),
        Err(mistakes) => (told(&mistakes.warnings), told(&mistakes.mistakes)),
    }
}

fn warning(name: &str, value: &str) -> String {
    let (warnings, mistakes) = remarks(&[(name, value)]);
    assert_eq!(mistakes, [""; 0]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    warnings.into_iter().next().unwrap()
}

fn mistake(name: &str, value: &str) -> String {
    let (_, mistakes) = remarks(&[(name, value)]);
    assert_eq!(mistakes.len(), 1, "{name}={value}: {mistakes:?}");
    mistakes.into_iter().next().unwrap()
}

fn file(name: &str, text: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

fn with_file(name: &str, text: &str, arguments: &[&str]) -> Ran {
    let (_directory, path) = file(name, text);
    let mut all = arguments.to_vec();
    all.extend(["--config", path.to_str().unwrap()]);
    let mut ran = run(&all, &[]);
    ran.err = ran.err.replace(path.to_str().unwrap(), "PATH");
    ran.out = ran.out.replace(path.to_str().unwrap(), "PATH");
    ran
}

// ---- names, defaults, precedence

/// A row of the contract, independent of the program's own table.
struct Row {
    flag: &'static str,
    key: &'static str,
    variable: &'static str,
    default: Json,
    /// Three other values: for the flag, the variable and the file.
    others: [&'static str; 3],
}

fn contract() -> Vec<Row> {
    let row = |flag, key, variable, default, others| Row {
        flag,
        key,
        variable,
        default,
        others,
    };
    vec![
        row(
            "--log-level",
            "log.level",
            "TB_LOG_LEVEL",
            json!("info"),
            ["warn", "error", "debug"],
        ),
        row(
            "--log-format",
            "log.format",
            "TB_LOG_FORMAT",
            json!("console"),
            ["json", "console", "json"],
        ),
        row(
            "--dir",
            "keys.dir",
            "TB_KEYS_DIR",
            json!("keys"),
            ["a", "b", "c"],
        ),
        row(
            "--bucket",
            "keys.bucket",
            "TB_KEYS_BUCKET",
            json!(""),
            ["a", "b", "c"],
        ),
        row(
            "--key-path",
            "keys.keyPath",
            "TB_KEYS_KEYPATH",
            json!(".well-known/jwks.json"),
            ["a", "b", "c"],
        ),
        row(
            "--port",
            "server.port",
            "TB_SERVER_PORT",
            json!(80),
            ["81", "82", "83"],
        ),
        row(
            "-p",
            "server.port",
            "TB_SERVER_PORT",
            json!(80),
            ["81", "82", "83"],
        ),
        row(
            "--binding",
            "server.binding",
            "TB_SERVER_BINDING",
            json!("auto"),
            ["100.64.0.1", "100.64.0.2", "fd7a::1"],
        ),
        row(
            "-b",
            "server.binding",
            "TB_SERVER_BINDING",
            json!("auto"),
            ["100.64.0.1", "100.64.0.2", "fd7a::1"],
        ),
        row(
            "--ts-join-timeout",
            "server.tailscale.joinTimeout",
            "TB_SERVER_TAILSCALE_JOINTIMEOUT",
            json!("1m"),
            ["2m", "3m", "4m"],
        ),
        row(
            "--ts-join-retry",
            "server.tailscale.joinRetry",
            "TB_SERVER_TAILSCALE_JOINRETRY",
            json!("1s"),
            ["2s", "3s", "4s"],
        ),
        row(
            "--ts-dir",
            "server.tailscale.dir",
            "TB_SERVER_TAILSCALE_DIR",
            json!(".tsnet"),
            ["a", "b", "c"],
        ),
        row(
            "--ts-hostname",
            "server.tailscale.hostname",
            "TB_SERVER_TAILSCALE_HOSTNAME",
            json!("tailbone"),
            ["a", "b", "c"],
        ),
        row(
            "--issuer",
            "keys.issuer",
            "TB_KEYS_ISSUER",
            json!("tailbone"),
            ["a", "b", "c"],
        ),
        row(
            "--expiry",
            "keys.expiry",
            "TB_KEYS_EXPIRY",
            json!("20m"),
            ["1m", "2m", "3m"],
        ),
        row(
            "--admin-binding",
            "admin.binding",
            "TB_ADMIN_BINDING",
            json!("auto"),
            ["100.64.0.1", "100.64.0.2", "fd7a::1"],
        ),
        row(
            "--admin-port",
            "admin.port",
            "TB_ADMIN_PORT",
            json!(50051),
            ["1", "2", "3"],
        ),
        row(
            "--limit-connections",
            "server.limits.connections",
            "TB_SERVER_LIMITS_CONNECTIONS",
            json!(16384),
            ["1", "2", "3"],
        ),
        row(
            "--limit-connections-per-peer",
            "server.limits.connectionsPerPeer",
            "TB_SERVER_LIMITS_CONNECTIONSPERPEER",
            json!(1024),
            ["1", "2", "3"],
        ),
        row(
            "--limit-request-rate",
            "server.limits.requestRate",
            "TB_SERVER_LIMITS_REQUESTRATE",
            json!(1000),
            ["0", "2", "3"],
        ),
        row(
            "--limit-request-burst",
            "server.limits.requestBurst",
            "TB_SERVER_LIMITS_REQUESTBURST",
            json!(5000),
            ["1", "2", "3"],
        ),
        row(
            "--limit-header-time",
            "server.limits.headerTime",
            "TB_SERVER_LIMITS_HEADERTIME",
            json!("1m"),
            ["1s", "2s", "3s"],
        ),
        row(
            "--limit-write-time",
            "server.limits.writeTime",
            "TB_SERVER_LIMITS_WRITETIME",
            json!("30s"),
            ["1s", "2s", "3s"],
        ),
        row(
            "--otlp-endpoint",
            "server.telemetry.otlp.endpoint",
            "TB_SERVER_TELEMETRY_OTLP_ENDPOINT",
            json!(""),
            ["http://a:4318", "https://b", "http://c/otlp"],
        ),
        row(
            "--otlp-interval",
            "server.telemetry.otlp.interval",
            "TB_SERVER_TELEMETRY_OTLP_INTERVAL",
            json!("1m"),
            ["1s", "2s", "3s"],
        ),
        row(
            "--limit-requests",
            "server.limits.requests",
            "TB_SERVER_LIMITS_REQUESTS",
            json!(4096),
            ["1", "2", "3"],
        ),
        row(
            "--limit-caller-rate",
            "server.limits.callerRate",
            "TB_SERVER_LIMITS_CALLERRATE",
            json!(2000),
            ["0", "2", "3"],
        ),
        row(
            "--limit-caller-burst",
            "server.limits.callerBurst",
            "TB_SERVER_LIMITS_CALLERBURST",
            json!(10000),
            ["1", "2", "3"],
        ),
        row(
            "--limit-header-bytes",
            "server.limits.headerBytes",
            "TB_SERVER_LIMITS_HEADERBYTES",
            json!(16384),
            ["8192", "8193", "8194"],
        ),
        row(
            "--limit-body-bytes",
            "server.limits.bodyBytes",
            "TB_SERVER_LIMITS_BODYBYTES",
            json!(65536),
            ["1024", "1025", "1026"],
        ),
        row(
            "--limit-idle-time",
            "server.limits.idleTime",
            "TB_SERVER_LIMITS_IDLETIME",
            json!("1m"),
            ["1s", "2s", "3s"],
        ),
        row(
            "--limit-request-time",
            "server.limits.requestTime",
            "TB_SERVER_LIMITS_REQUESTTIME",
            json!("30s"),
            ["1s", "2s", "3s"],
        ),
        row(
            "--limit-call-time",
            "server.limits.callTime",
            "TB_SERVER_LIMITS_CALLTIME",
            json!("2m"),
            ["1s", "2s", "3s"],
        ),
        row(
            "--limit-memory",
            "server.limits.memory",
            "TB_SERVER_LIMITS_MEMORY",
            json!("auto"),
            ["off", "64MiB", "1GiB"],
        ),
        row(
            "--metrics-port",
            "metrics.port",
            "TB_METRICS_PORT",
            json!(9090),
            ["1", "2", "3"],
        ),
        row(
            "--metrics-binding",
            "metrics.binding",
            "TB_METRICS_BINDING",
            json!("auto"),
            ["100.64.0.1", "127.0.0.1", "fd7a::1"],
        ),
        row(
            "--components",
            "components",
            "TB_COMPONENTS",
            json!(["issuer", "admin"]),
            ["admin", "issuer", "admin,issuer"],
        ),
        row(
            "--output",
            "output",
            "TB_OUTPUT",
            json!("text"),
            ["json", "yaml", "yml"],
        ),
        row(
            "-o",
            "output",
            "TB_OUTPUT",
            json!("text"),
            ["json", "yaml", "yml"],
        ),
        // These had no flag in the Go program; ours have new names.
        row(
            "--key-prefix",
            "key.prefix",
            "TB_KEY_PREFIX",
            json!("tb"),
            ["a", "b", "c"],
        ),
        row(
            "--no-color",
            "log.no_color",
            "TB_LOG_NO_COLOR",
            json!(false),
            ["true", "false", "true"],
        ),
        row(
            "--key-size",
            "keys.size",
            "TB_KEYS_SIZE",
            json!(2048),
            ["3072", "4096", "2048"],
        ),
        // New settings.
        row(
            "--ts-control-url",
            "server.tailscale.controlUrl",
            "TB_SERVER_TAILSCALE_CONTROLURL",
            json!(""),
            ["http://a", "http://b", "http://c"],
        ),
        row(
            "--ts-ephemeral",
            "server.tailscale.ephemeral",
            "TB_SERVER_TAILSCALE_EPHEMERAL",
            json!(false),
            ["true", "false", "true"],
        ),
        row(
            "--ts-state",
            "server.tailscale.state",
            "TB_SERVER_TAILSCALE_STATE",
            json!("dir"),
            ["kube:a", "kube:b", "kube:c"],
        ),
        row(
            "--ts-client-id",
            "server.tailscale.clientId",
            "TB_SERVER_TAILSCALE_CLIENTID",
            json!(""),
            ["a", "b", "c"],
        ),
        row(
            "--ts-audience",
            "server.tailscale.audience",
            "TB_SERVER_TAILSCALE_AUDIENCE",
            json!(""),
            ["a", "b", "c"],
        ),
        row(
            "--ts-tags",
            "server.tailscale.tags",
            "TB_SERVER_TAILSCALE_TAGS",
            json!([]),
            ["tag:a", "tag:b", "tag:c"],
        ),
        row(
            "--ts-wait-for-dir",
            "server.tailscale.waitForDir",
            "TB_SERVER_TAILSCALE_WAITFORDIR",
            json!(false),
            ["true", "false", "true"],
        ),
        row(
            "--ts-upload-logs",
            "server.tailscale.uploadLogs",
            "TB_SERVER_TAILSCALE_UPLOADLOGS",
            json!(false),
            ["true", "false", "true"],
        ),
        row(
            "--allowed-hosts",
            "server.allowedHosts",
            "TB_SERVER_ALLOWEDHOSTS",
            json!([]),
            ["a.example.com", "*.b.example", "*"],
        ),
        row(
            "--allowed-origins",
            "server.allowedOrigins",
            "TB_SERVER_ALLOWEDORIGINS",
            json!([]),
            ["https://a.example", "http://b:81", "*"],
        ),
        row(
            "--grace",
            "server.grace",
            "TB_SERVER_GRACE",
            json!("10s"),
            ["1s", "2s", "3s"],
        ),
        row(
            "--key-algorithm",
            "keys.algorithm",
            "TB_KEYS_ALGORITHM",
            json!("RS256"),
            ["ES256", "EdDSA", "RS256"],
        ),
        row(
            "--rotate-every",
            "keys.rotateEvery",
            "TB_KEYS_ROTATEEVERY",
            json!("off"),
            ["1h", "2h", "3h"],
        ),
        row(
            "--cache-time",
            "keys.cacheTime",
            "TB_KEYS_CACHETIME",
            json!("5m"),
            ["1m", "2m", "3m"],
        ),
        row(
            "--clock-skew",
            "keys.skew",
            "TB_KEYS_SKEW",
            json!("1m"),
            ["2m", "3m", "4m"],
        ),
        row(
            "--jwks-file",
            "keys.jwksFile",
            "TB_KEYS_JWKSFILE",
            json!("keys/jwks.json"),
            ["a", "b", "c"],
        ),
        row(
            "--s3-endpoint",
            "keys.s3.endpoint",
            "TB_KEYS_S3_ENDPOINT",
            json!(""),
            ["http://a", "http://b", "http://c"],
        ),
        row(
            "--s3-path-style",
            "keys.s3.pathStyle",
            "TB_KEYS_S3_PATHSTYLE",
            json!(false),
            ["true", "false", "true"],
        ),
        row(
            "--admin-authorization",
            "admin.authorization",
            "TB_ADMIN_AUTHORIZATION",
            json!("grant"),
            ["open", "grant", "open"],
        ),
        row(
            "--admin-socket",
            "admin.socket",
            "TB_ADMIN_SOCKET",
            json!(".tsnet/admin.sock"),
            ["a", "b", "c"],
        ),
        row(
            "--sts-port",
            "sts.port",
            "TB_STS_PORT",
            json!(8080),
            ["1", "2", "3"],
        ),
        row(
            "--sts-binding",
            "sts.binding",
            "TB_STS_BINDING",
            json!("auto"),
            ["100.64.0.1", "100.64.0.2", "fd7a::1"],
        ),
        row(
            "--sts-policies-dir",
            "sts.policiesDir",
            "TB_STS_POLICIESDIR",
            json!("policies"),
            ["a", "b", "c"],
        ),
        row(
            "--sts-strict",
            "sts.strict",
            "TB_STS_STRICT",
            json!(false),
            ["true", "false", "true"],
        ),
        row(
            "--sts-client-id",
            "sts.clientId",
            "TB_STS_CLIENTID",
            json!(""),
            ["a", "b", "c"],
        ),
        row(
            "--sts-token-url",
            "sts.tokenUrl",
            "TB_STS_TOKENURL",
            json!("https://api.tailscale.com/api/v2/oauth/token"),
            [
                "https://a.example/t",
                "https://b.example/t",
                "http://c.example/t",
            ],
        ),
        row(
            "--sts-timeout",
            "sts.timeout",
            "TB_STS_TIMEOUT",
            json!("10s"),
            ["1s", "2s", "3s"],
        ),
        row(
            "--sts-cache-time",
            "sts.cacheTime",
            "TB_STS_CACHETIME",
            json!("off"),
            ["1s", "2s", "3s"],
        ),
        row(
            "--sts-leeway",
            "sts.leeway",
            "TB_STS_LEEWAY",
            json!("0s"),
            ["1s", "2s", "3s"],
        ),
        row(
            "--sts-jwks-cool-down",
            "sts.jwks.coolDown",
            "TB_STS_JWKS_COOLDOWN",
            json!("1m"),
            ["2s", "3s", "4s"],
        ),
        row(
            "--sts-host-listen",
            "sts.host.listen",
            "TB_STS_HOST_LISTEN",
            json!(""),
            ["127.0.0.1:1", "[::1]:2", "0.0.0.0:3"],
        ),
        row(
            "--sts-host-cert",
            "sts.host.cert",
            "TB_STS_HOST_CERT",
            json!(""),
            ["a", "b", "c"],
        ),
        row(
            "--sts-host-key",
            "sts.host.key",
            "TB_STS_HOST_KEY",
            json!(""),
            ["a", "b", "c"],
        ),
        row(
            "--sts-host-plain",
            "sts.host.plain",
            "TB_STS_HOST_PLAIN",
            json!(false),
            ["true", "false", "true"],
        ),
        row(
            "--listen",
            "server.listen",
            "TB_SERVER_LISTEN",
            json!([]),
            ["tailnet://:1", "http://127.0.0.1:2", "unix:///x?mode=0600"],
        ),
        row(
            "--admin-listen",
            "admin.listen",
            "TB_ADMIN_LISTEN",
            json!([]),
            ["tailnet://:1", "http://127.0.0.1:2", "unix:///x?mode=0600"],
        ),
        row(
            "--metrics-listen",
            "metrics.listen",
            "TB_METRICS_LISTEN",
            json!([]),
            ["tailnet://:1", "http://127.0.0.1:2", "unix:///x?mode=0600"],
        ),
        row(
            "--gate-listen",
            "gate.listen",
            "TB_GATE_LISTEN",
            json!([]),
            ["tailnet://:1", "http://127.0.0.1:2", "unix:///x?mode=0600"],
        ),
        row(
            "--gate-auth-listen",
            "gate.auth.listen",
            "TB_GATE_AUTH_LISTEN",
            json!([]),
            ["tailnet://:1", "http://127.0.0.1:2", "unix:///x?mode=0600"],
        ),
        row(
            "--sts-listen",
            "sts.listen",
            "TB_STS_LISTEN",
            json!([]),
            ["tailnet://:1", "http://127.0.0.1:2", "unix:///x?mode=0600"],
        ),
        row(
            "--gate-port",
            "gate.port",
            "TB_GATE_PORT",
            json!(8082),
            ["1", "2", "3"],
        ),
        row(
            "--gate-binding",
            "gate.binding",
            "TB_GATE_BINDING",
            json!("auto"),
            ["100.64.0.1", "100.64.0.2", "100.64.0.3"],
        ),
        row(
            "--gate-upstream",
            "gate.upstream",
            "TB_GATE_UPSTREAM",
            json!([]),
            ["http://a:1", "x.example.com/y=h2c://b:2", "/z=https://c:3"],
        ),
        row(
            "--gate-upstream-timeout",
            "gate.upstreamTimeout",
            "TB_GATE_UPSTREAMTIMEOUT",
            json!("5m"),
            ["1m", "30s", "off"],
        ),
        row(
            "--gate-upstream-ca",
            "gate.upstreamCa",
            "TB_GATE_UPSTREAMCA",
            json!(""),
            ["/a/ca.pem", "/b/ca.pem", "/c/ca.pem"],
        ),
        row(
            "--gate-policy",
            "gate.policy",
            "TB_GATE_POLICY",
            json!(""),
            ["a", "b", "c"],
        ),
        row(
            "--gate-capability",
            "gate.capability",
            "TB_GATE_CAPABILITY",
            json!("tailbone.dev/cap/gate"),
            ["a", "b", "c"],
        ),
        row(
            "--gate-allowed-origins",
            "gate.allowedOrigins",
            "TB_GATE_ALLOWEDORIGINS",
            json!([]),
            ["https://a.example", "null", "*"],
        ),
        row(
            "--gate-expected-tailnet",
            "gate.expectedTailnet",
            "TB_GATE_EXPECTEDTAILNET",
            json!(""),
            ["a", "b", "c"],
        ),
        row(
            "--gate-forward-capabilities",
            "gate.forwardCapabilities",
            "TB_GATE_FORWARDCAPABILITIES",
            json!([]),
            ["a", "b", "c"],
        ),
        row(
            "--gate-token",
            "gate.token",
            "TB_GATE_TOKEN",
            json!(false),
            ["true", "false", "true"],
        ),
        row(
            "--gate-token-issuer",
            "gate.tokenIssuer",
            "TB_GATE_TOKENISSUER",
            json!("tailbone/gate"),
            ["a", "b", "c"],
        ),
        row(
            "--gate-token-audience",
            "gate.tokenAudience",
            "TB_GATE_TOKENAUDIENCE",
            json!(""),
            ["a", "b", "c"],
        ),
        row(
            "--gate-token-expiry",
            "gate.tokenExpiry",
            "TB_GATE_TOKENEXPIRY",
            json!("1m"),
            ["2s", "3s", "4s"],
        ),
        row(
            "--gate-recheck",
            "gate.recheck",
            "TB_GATE_RECHECK",
            json!("10s"),
            ["2s", "3s", "4s"],
        ),
        row(
            "--gate-auth-port",
            "gate.auth.port",
            "TB_GATE_AUTH_PORT",
            json!(8083),
            ["1", "2", "3"],
        ),
        row(
            "--gate-auth-proxies",
            "gate.auth.proxies",
            "TB_GATE_AUTH_PROXIES",
            json!([]),
            ["tag:a", "b@x.y", "tag:c"],
        ),
        row(
            "--gate-auth-user-proxies",
            "gate.auth.userProxies",
            "TB_GATE_AUTH_USERPROXIES",
            json!(false),
            ["true", "false", "true"],
        ),
        row(
            "--gate-auth-socket",
            "gate.auth.socket",
            "TB_GATE_AUTH_SOCKET",
            json!(""),
            ["a", "b", "c"],
        ),
        row(
            "--gate-auth-socket-mode",
            "gate.auth.socketMode",
            "TB_GATE_AUTH_SOCKETMODE",
            json!("0660"),
            ["0600", "0666", "0640"],
        ),
        row(
            "--gate-auth-client-header",
            "gate.auth.clientHeader",
            "TB_GATE_AUTH_CLIENTHEADER",
            json!(""),
            ["a", "b", "c"],
        ),
        row(
            "--gate-auth-redirect",
            "gate.auth.redirect",
            "TB_GATE_AUTH_REDIRECT",
            json!(""),
            ["http://a", "https://b/c", "http://c"],
        ),
    ]
}

/// The output of `config show` for a typed value.
fn shown(row: &Row, typed: &str) -> Json {
    match &row.default {
        Json::Array(_) => typed.split(',').collect(),
        Json::Bool(_) => json!(typed == "true"),
        Json::Number(_) => json!(typed.parse::<u32>().unwrap()),
        _ => json!(typed),
    }
}

#[test]
fn every_row_of_the_contract_flag_over_variable_over_file_over_default() {
    for row in contract() {
        if row.key == "output" {
            // It changes the format of this very output; see `output_follows_the_same_order`.
            continue;
        }
        let [by_flag, by_variable, by_file] = row.others;
        let (name, last) = row.key.rsplit_once('.').unwrap_or(("", row.key));
        let header = if name.is_empty() {
            String::new()
        } else {
            format!("[{name}]\n")
        };
        let (_directory, path) = file("tailbone.toml", &format!("{header}{last} = '{by_file}'\n"));
        let path = path.to_str().unwrap();
        let flag = if row.flag.starts_with("--") {
            format!("{}={by_flag}", row.flag)
        } else {
            format!("{}{by_flag}", row.flag)
        };
        let variable = [(row.variable, by_variable)];
        let origin_of_flag = match row.flag {
            "-p" => "flag --port".to_owned(),
            "-b" => "flag --binding".to_owned(),
            long => format!("flag {long}"),
        };

        assert_eq!(
            show(&[], &[])[row.key],
            (row.default.clone(), "default".into()),
            "{}",
            row.key
        );
        assert_eq!(
            show(&["--config", path], &[])[row.key],
            (shown(&row, by_file), format!("file {path}: {}", row.key))
        );
        assert_eq!(
            show(&["--config", path], &variable)[row.key],
            (
                shown(&row, by_variable),
                format!("variable {}", row.variable)
            )
        );
        assert_eq!(
            show(&["--config", path, &flag], &variable)[row.key],
            (shown(&row, by_flag), origin_of_flag)
        );
        // An empty variable counts as unset.
        assert_eq!(
            show(&["--config", path], &[(row.variable, "")])[row.key].0,
            shown(&row, by_file)
        );
    }
}

#[test]
fn the_contract_names_every_row_of_the_table() {
    let mut known: Vec<String> = contract().iter().map(|row| row.key.to_owned()).collect();
    // Tested elsewhere: a secret, and settings that only `keys …` uses.
    known.extend(
        [
            "server.tailscale.authkey",
            "server.tailscale.clientSecret",
            "server.tailscale.idToken",
            "server.telemetry.otlp.headers",
            "sts.clientSecret",
            "no-confirmation",
            "admin.client.host",
            "admin.client.port",
            "admin.client.timeout",
        ]
        .map(str::to_owned),
    );
    for row in table::ALL {
        assert!(
            known.iter().any(|key| key == row.key),
            "{} has no test",
            row.key
        );
    }
    assert_eq!(show(&[], &[]).len(), table::ALL.len());
}

#[test]
fn output_follows_the_same_order() {
    let text = "output: yaml\n";
    assert!(
        with_file("t.yaml", text, &["config", "show"])
            .out
            .starts_with("admin:\n")
    );
    let (_directory, path) = file("t.yaml", text);
    let path = path.to_str().unwrap();
    let variable = [("TB_OUTPUT", "json")];
    assert!(
        run(&["config", "show", "--config", path], &variable)
            .out
            .starts_with("{\n")
    );
    assert!(
        run(&["config", "show", "--config", path, "-otable"], &variable)
            .out
            .starts_with(" Setting ")
    );
    assert!(
        run(&["-o", "text", "config", "show"], &variable)
            .out
            .starts_with(" Setting ")
    );
}

#[test]
fn the_client_has_its_own_settings() {
    let defaults = client(&[]);
    assert_eq!(defaults.host, "");
    assert_eq!(defaults.port, 50051);
    assert_eq!(defaults.timeout, Duration::from_secs(30));
    assert_eq!(defaults.output, OutputFormat::Text);
    assert!(!defaults.no_confirmation);
    assert_eq!(defaults.socket, Path::new(".tsnet/admin.sock"));
    assert_eq!((defaults.key_size, defaults.key_algorithm), (None, None));

    let typed = client(&[
        ("TB_ADMIN_CLIENT_HOST", "[fd7a::1]"),
        ("TB_ADMIN_CLIENT_PORT", "1234"),
        ("TB_NO_CONFIRMATION", "1"),
        ("TB_OUTPUT", "yml"),
        ("TB_SERVER_TAILSCALE_DIR", "/state"),
        ("TB_KEYS_SIZE", "4096"),
        ("TB_KEYS_ALGORITHM", "eddsa"),
        // Settings that only a server reads do not stop the client.
        ("TB_SERVER_PORT", "abc"),
    ]);
    assert_eq!(typed.host, "fd7a::1");
    assert_eq!(typed.port, 1234);
    assert!(typed.no_confirmation);
    assert_eq!(typed.output, OutputFormat::Yaml);
    assert_eq!(typed.socket, Path::new("/state/admin.sock"));
    assert_eq!(typed.key_size, Some(4096));
    assert_eq!(typed.key_algorithm.as_deref(), Some("EdDSA"));
}

#[test]
fn port_is_the_issuers_for_server_and_the_admins_for_keys() {
    let server = run(&["server", "start", "--port", "abc"], &[]);
    assert!(
        server.err.contains("--port=abc: not a port"),
        "{}",
        server.err
    );
    assert_eq!(
        show(&["--port", "81"], &[])["admin.client.port"].0,
        json!(50051)
    );
    for arguments in [
        ["keys", "--port", "abc", "list"],
        ["keys", "list", "--port", "abc"],
        ["key", "ls", "--port", "abc"],
    ] {
        let ran = run(&arguments, &[("TB_SERVER_PORT", "also wrong")]);
        assert_eq!(
            (ran.code, ran.err.as_str()),
            (64, "Error: --port=abc: not a port (1-65535)\n")
        );
    }
}

#[test]
fn flags_may_stand_before_the_last_word_and_twice() {
    let ran = run(
        &[
            "server",
            "--dir",
            "",
            "start",
            "--expiry=1h",
            "--expiry",
            "x",
        ],
        &[],
    );
    assert_eq!(ran.code, 64);
    assert!(ran.err.contains("--dir=: an empty path"), "{}", ran.err);
    assert!(
        ran.err.contains("--expiry=x: not a duration"),
        "{}",
        ran.err
    );
    let shown = show(
        &[
            "--port=1",
            "-p=2",
            "-p3",
            "--no-color=false",
            "--ts-ephemeral",
        ],
        &[],
    );
    assert_eq!(shown["server.port"].0, json!(3));
    assert_eq!(shown["log.no_color"].0, json!(false));
    assert_eq!(shown["server.tailscale.ephemeral"].0, json!(true));
    let shown = show(&["--components", "issuer", "--components", "admin"], &[]);
    assert_eq!(shown["components"].0, json!(["issuer", "admin"]));
}

#[test]
fn defaults_mean_what_the_contract_says() {
    let settings = load(&[]).unwrap();
    assert_eq!(
        settings.components,
        [Component::Admin, Component::Issuer].into()
    );
    assert_eq!(settings.log.level, LogLevel::Info);
    assert_eq!(settings.log.format, LogFormat::Console);
    assert_eq!(settings.keys.expiry, Duration::from_secs(1200));
    assert_eq!(settings.keys.spec, KeySpec::Rs256 { bits: 2048 });
    assert_eq!(settings.keys.rotate_every, None);
    assert_eq!(
        settings.keys.publish,
        Publish::File {
            path: "keys/jwks.json".into()
        }
    );
    assert_eq!(listen(&settings.server.listen), ["tailnet://:80"]);
    assert_eq!(settings.server.grace, Duration::from_secs(10));
    assert_eq!(settings.server.tailscale.authkey, None);
    assert_eq!(settings.server.tailscale.control_url, None);
    assert!(!settings.server.tailscale.ephemeral && !settings.server.tailscale.upload_logs);
    assert_eq!(settings.admin.authorization, Authorization::Grant);
    assert_eq!(settings.admin.socket, Path::new(".tsnet/admin.sock"));
}

/// The rows that accept any short word, so that a random value is valid.
fn any_row() -> impl Strategy<Value = &'static table::Row> {
    let rows: Vec<_> = table::ALL
        .iter()
        .copied()
        .filter(|row| {
            matches!(
                row.kind,
                table::Kind::Path | table::Kind::Port | table::Kind::Duration { .. }
            )
        })
        .collect();
    proptest::sample::select(rows)
}

fn any_value(row: &table::Row, seed: u16) -> String {
    match row.kind {
        table::Kind::Port => (1000 + seed % 40_000).to_string(),
        table::Kind::Duration { .. } => format!("{}m", 6 + seed % 50),
        _ => format!("path-{seed}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_strongest_layer_wins(
        row in any_row(),
        by_flag in proptest::option::of(any::<u16>()),
        by_variable in proptest::option::of(any::<u16>()),
        by_file in proptest::option::of(any::<u16>()),
        capitals in any::<bool>(),
    ) {
        let [by_flag, by_variable, by_file] = [by_flag, by_variable, by_file].map(|seed| seed.map(|seed| any_value(row, seed)));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("settings.json");
        let mut nested = by_file.as_ref().map_or(json!({}), |value| json!(value));
        if by_file.is_some() {
            for name in row.key.rsplit('.') {
                let name = if capitals { name.to_uppercase() } else { name.to_owned() };
                nested = json!({ name: nested });
            }
        }
        std::fs::write(&path, nested.to_string()).unwrap();
        let mut flags = Flags::default();
        if let Some(value) = &by_flag {
            flags.give(row, "--flag", Value::Text(value.clone()));
        }
        let environment: Environment = by_variable.iter().map(|value| (row.variable(), value)).collect();
        let (_, origins, warnings) = config::load_all(&Raw::collect(flags, &environment, Some(&path)))
            .map_err(|mistakes| TestCaseError::fail(mistakes.to_string()))?;

        let expected = match (by_flag, by_variable, by_file) {
            (Some(value), _, _) => Some((value, Origin::Flag("--flag".into()))),
            (None, Some(value), _) => Some((value, Origin::Variable(row.variable()))),
            (None, None, Some(value)) => {
                let key = if capitals { row.key.to_uppercase() } else { row.key.to_owned() };
                Some((value, Origin::File { path, key: Some(key) }))
            }
            (None, None, None) => None,
        };
        let entry = origins.entries.iter().find(|entry| entry.row.key == row.key).unwrap();
        match expected {
            Some((value, origin)) => {
                prop_assert_eq!(&entry.origin, &origin);
                let text = entry.value.as_str().map_or_else(|| entry.value.to_string(), str::to_owned);
                prop_assert_eq!(text, value);
            }
            None => prop_assert_eq!(&entry.origin, &Origin::Default),
        }
        prop_assert!(warnings.is_empty(), "{:?}", warnings);
    }

    #[test]
    fn no_value_makes_the_loader_panic_and_no_message_moves_the_cursor(
        row in proptest::sample::select(table::ALL),
        value in prop_oneof![any::<String>(), any::<String>().prop_map(|text| format!("file:{text}"))],
    ) {
        let environment: Environment = [(row.variable(), value.replace('\0', ""))].into_iter().collect();
        if let Err(mistakes) = config::load_all(&Raw::collect(Flags::default(), &environment, None)) {
            for line in mistakes.to_string().lines() {
                prop_assert!(!line.chars().any(char::is_control), "{line:?}");
            }
        }
    }
}

// ---- files

#[test]
fn the_home_directory_is_searched_in_the_contracts_order() {
    let home = tempfile::tempdir().unwrap();
    let at = home.path().to_str().unwrap();
    let found = || {
        let ran = run(&["config", "show", "-o", "json"], &[("HOME", at)]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        let shown: Json = serde_json::from_str(&ran.out).unwrap();
        (
            shown["keys"]["issuer"].as_str().unwrap().to_owned(),
            ran.err.replace(at, "HOME"),
        )
    };
    assert_eq!(found(), ("tailbone".into(), String::new()));
    // Each of these files takes precedence over those before it.
    for (name, text) in [
        (".tailbone.yml", "keys: {issuer: yml}"),
        (".tailbone.yaml", "keys: {issuer: yaml}"),
        (".tailbone.toml", "[keys]\nissuer = 'toml'"),
        (".tailbone.json", r#"{"keys": {"issuer": "json"}}"#),
    ] {
        std::fs::write(home.path().join(name), text).unwrap();
        let extension = name.rsplit('.').next().unwrap();
        assert_eq!(
            found(),
            (
                extension.to_owned(),
                format!("Using config file: HOME/{name}\n")
            )
        );
    }
}

#[test]
fn a_file_that_is_no_longer_read_is_told() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join(".tailbone.ini"), "[keys]\nissuer=x").unwrap();
    let at = home.path().to_str().unwrap();
    let ran = run(&["config", "check"], &[("HOME", at)]);
    assert_eq!(ran.code, 0);
    assert_eq!(
        ran.err.replace(at, "HOME"),
        "Warning: HOME/.tailbone.ini: is not read: a config file is .tailbone.json, .toml, .yaml or .yml\nThe settings are fine\n"
    );
    // Neither the bare name nor the working directory is used, and no home is required.
    std::fs::write(home.path().join(".tailbone"), "x").unwrap();
    assert_eq!(
        run(&["config", "check"], &[]).err,
        "The settings are fine\n"
    );
}

#[test]
fn keys_of_a_file_know_no_capitals_and_may_be_dotted() {
    let text = "[SERVER.TailScale]\nJoinTIMEOUT = '5s'\nhostname = 'x'\n[keys]\n'S3.pathstyle' = true\nBUCKET = 'b'\n";
    let ran = with_file("t.toml", text, &["config", "show", "-o", "json"]);
    let shown: Json = serde_json::from_str(&ran.out).expect(&ran.err);
    assert_eq!(shown["server"]["tailscale"]["joinTimeout"], "5s");
    assert_eq!(shown["keys"]["s3"]["pathStyle"], true);
}

#[test]
fn a_named_file_that_is_missing_broken_or_of_another_kind_is_a_mistake() {
    let missing = run(
        &["config", "check", "--config", "/nowhere/tailbone.toml"],
        &[],
    );
    assert_eq!(missing.code, 64);
    assert_eq!(
        missing.err,
        "Error: /nowhere/tailbone.toml: cannot be read: No such file or directory (os error 2)\n"
    );
    for (name, text) in [
        ("t.toml", "a = b = c"),
        ("t.json", "{"),
        ("t.yaml", "a: [}"),
        ("t.YML", "- 1"),
    ] {
        let ran = with_file(name, text, &["config", "check"]);
        assert_eq!(ran.code, 64, "{name}");
        assert!(ran.err.starts_with("Error: PATH: "), "{}", ran.err);
    }
    for name in [
        "t.properties",
        "t.props",
        "t.prop",
        "t.hcl",
        "t.tfvars",
        "t.dotenv",
        "t.env",
        "t.ini",
        "t",
        "t.txt",
    ] {
        let ran = with_file(name, "", &["config", "check"]);
        assert_eq!(ran.code, 64, "{name}");
        assert_eq!(
            ran.err,
            "Error: --config=PATH: not a config file that can be read: its name must end in .toml, .yaml (.yml) or .json\n"
        );
    }
    // Not UTF-8, too large, a directory.
    let (_directory, path) = file("t.toml", "");
    std::fs::write(&path, b"issuer = '\xff'").unwrap();
    assert!(
        run(
            &["config", "check", "--config", path.to_str().unwrap()],
            &[]
        )
        .err
        .contains("UTF-8")
    );
    std::fs::write(&path, " ".repeat(2 << 20)).unwrap();
    assert!(
        run(
            &["config", "check", "--config", path.to_str().unwrap()],
            &[]
        )
        .err
        .contains("1 MiB")
    );
    let directory = path.parent().unwrap().join("d.toml");
    std::fs::create_dir(&directory).unwrap();
    assert_eq!(
        run(
            &["config", "check", "--config", directory.to_str().unwrap()],
            &[]
        )
        .code,
        64
    );
    // An empty name means no file.
    assert_eq!(run(&["config", "check", "--config", ""], &[]).code, 0);
}

#[test]
fn a_broken_file_in_the_home_directory_is_a_mistake_too() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join(".tailbone.toml"), "[keys").unwrap();
    let ran = run(
        &["keys", "list"],
        &[("HOME", home.path().to_str().unwrap())],
    );
    assert_eq!(ran.code, 64);
    assert!(ran.err.contains("is not TOML (line 1)"), "{}", ran.err);
}

#[test]
fn what_config_show_prints_can_be_used_as_a_config_file() {
    let variables = [
        ("TB_COMPONENTS", "issuer"),
        ("TB_KEYS_EXPIRY", "1h30m"),
        ("TB_KEYS_BUCKET", "b"),
        ("TB_SERVER_TAILSCALE_TAGS", "tag:a,tag:b"),
        ("TB_ADMIN_SOCKET", "/run/x.sock"),
        ("TB_KEYS_ROTATEEVERY", "720h"),
    ];
    for format in ["yaml", "json"] {
        // With a bucket there is no file, so the output must not contain `keys.jwksFile`.
        let shown = run(&["config", "show", "-o", format], &variables).out;
        let (_directory, path) = file(&format!("t.{format}"), &shown);
        let again = Raw::collect(Flags::default(), &Environment::default(), Some(&path));
        let (settings, _, warnings) = config::load(&again, Purpose::Start).unwrap();
        assert_eq!(settings, load(&variables).unwrap());
        assert_eq!(warnings, []);
    }
}

// ---- a reload

#[test]
fn a_reload_exchanges_a_changed_setting_or_names_it() {
    // Nothing of a running server depends on these.
    let silent = [
        // Commands that are no server.
        "output",
        "no-confirmation",
        "admin.client.host",
        "admin.client.port",
        "admin.client.timeout",
        // How the node joins, which it has.
        "server.tailscale.authkey",
        "server.tailscale.clientSecret",
        "server.tailscale.clientId",
        "server.tailscale.idToken",
        "server.tailscale.audience",
        "server.tailscale.joinTimeout",
        "server.tailscale.joinRetry",
        "server.tailscale.waitForDir",
        // Only allows what other settings say.
        "sts.host.plain",
    ];
    let contract = contract();
    for setting in table::ALL {
        let others = match setting.key {
            "server.telemetry.otlp.headers" => vec!["a=b"],
            key => match contract.iter().find(|row| row.key == key) {
                Some(row) => row.others.to_vec(),
                None => vec!["another"],
            },
        };
        let variable = setting.variable();
        let bucket = match setting.key {
            "keys.keyPath" | "keys.s3.endpoint" | "keys.s3.pathStyle" => "acme-jwks",
            _ => "",
        };
        let with = |value: Option<&str>| {
            let mut typed = BTreeMap::from([
                ("TB_COMPONENTS", "issuer,admin,gate,sts,metrics"),
                ("TB_KEYS_BUCKET", bucket),
                ("TB_GATE_TOKEN", "true"),
                ("TB_GATE_UPSTREAM", "http://127.0.0.1:3000"),
                ("TB_GATE_AUTH_PROXIES", "tag:proxy"),
                ("TB_GATE_AUTH_SOCKET", "/gate.sock"),
                ("TB_SERVER_TELEMETRY_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
                ("TB_STS_CLIENTID", "id"),
                ("TB_STS_CLIENTSECRET", "hush"),
                ("TB_STS_HOST_LISTEN", "127.0.0.1:8443"),
                ("TB_STS_HOST_CERT", "/tls.crt"),
                ("TB_STS_HOST_KEY", "/tls.key"),
            ]);
            typed.extend(value.map(|value| (variable.as_str(), value)));
            load(&typed.into_iter().collect::<Vec<_>>())
                .unwrap_or_else(|mistakes| panic!("{}: {mistakes}", setting.key))
        };
        let mut running = with(None);
        let Some(new) = others
            .iter()
            .map(|other| with(Some(other)))
            .find(|new| *new != running)
        else {
            assert!(
                silent.contains(&setting.key),
                "{} changes nothing",
                setting.key
            );
            continue;
        };
        let before = running.clone();
        let first = running.exchange(&new);
        let told = !first.done.is_empty() || !first.left.is_empty();
        let expected = !silent.contains(&setting.key);
        assert_eq!(told, expected, "{}: {first:?}", setting.key);
        assert_eq!(first.done.is_empty(), running == before, "{}", setting.key);
        // What is exchanged is told once; what needs a restart at each reload.
        let again = running.exchange(&new);
        assert_eq!(
            (again.done.len(), again.left),
            (0, first.left),
            "{}",
            setting.key
        );
    }
}

#[test]
fn a_reload_names_the_place_of_the_nodes_state() {
    let mut running = load(&[]).unwrap();
    let new = load(&[("TB_SERVER_TAILSCALE_STATE", "kube:tailbone-state")]).unwrap();
    assert_eq!(running.exchange(&new).left, ["server.tailscale"]);
}

// ---- quirks of the Go program: kept with a warning, or refused with an explanation

#[test]
fn components_by_commas_blanks_or_both() {
    for text in [
        "issuer admin",
        "issuer,admin",
        " admin , issuer ",
        "Issuer\tADMIN",
    ] {
        let components = load(&[("TB_COMPONENTS", text)]).unwrap().components;
        assert_eq!(components.len(), 2, "{text:?}");
    }
    assert_eq!(
        load(&[("TB_COMPONENTS", "admin")]).unwrap().components,
        [Component::Admin].into()
    );
    assert_eq!(
        mistake("TB_COMPONENTS", "issuer,amdin"),
        "TB_COMPONENTS=amdin: no component amdin; did you mean admin?"
    );
    assert!(mistake("TB_COMPONENTS", " , ").contains("nothing would run"));
    let list = with_file(
        "t.toml",
        "components = ['admin']",
        &["config", "show", "-o", "json"],
    );
    assert!(
        list.out.contains("\"components\": [\n    \"admin\"\n  ]"),
        "{}",
        list.out
    );
}

#[test]
fn a_bare_number_is_nanoseconds_with_a_warning_and_within_the_bounds() {
    assert_eq!(
        warning("TB_KEYS_EXPIRY", "1200000000000"),
        "TB_KEYS_EXPIRY=1200000000000: a number without a unit is nanoseconds: taken as 20m; write 20m"
    );
    assert_eq!(
        mistake("TB_KEYS_EXPIRY", "1200"),
        "TB_KEYS_EXPIRY=1200: a number without a unit is nanoseconds (1us200ns); out of bounds; it may be 1s to 720h"
    );
    let ran = with_file(
        "t.json",
        r#"{"server":{"tailscale":{"joinTimeout":60000000000}}}"#,
        &["config", "check"],
    );
    assert_eq!(ran.code, 0);
    assert!(ran.err.contains("taken as 1m"), "{}", ran.err);
    // The Go program had no such setting, so nobody has a bare number for it.
    assert_eq!(
        mistake("TB_SERVER_GRACE", "10"),
        "TB_SERVER_GRACE=10: a number without a unit; write for example 90s, 20m or 1h30m"
    );
    // The Go program's flags refused this, and so do ours.
    let ran = run(&["config", "check", "--expiry", "1200000000000"], &[]);
    assert!(
        ran.err
            .contains("--expiry=1200000000000: a number without a unit"),
        "{}",
        ran.err
    );
    assert_eq!(ran.code, 64);
}

#[test]
fn durations_are_bounded() {
    for (name, value) in [
        ("TB_KEYS_EXPIRY", "0"),
        ("TB_KEYS_EXPIRY", "999ms"),
        ("TB_KEYS_EXPIRY", "-20m"),
        ("TB_KEYS_EXPIRY", "721h"),
        ("TB_KEYS_EXPIRY", "300000000h"),
        ("TB_KEYS_EXPIRY", "tomorrow"),
        ("TB_SERVER_TAILSCALE_JOINTIMEOUT", "0"),
        ("TB_SERVER_TAILSCALE_JOINTIMEOUT", "25h"),
        ("TB_SERVER_TAILSCALE_JOINRETRY", "0s"),
        ("TB_SERVER_TAILSCALE_JOINRETRY", "-1s"),
        ("TB_KEYS_ROTATEEVERY", "1s"),
        ("TB_KEYS_CACHETIME", "25h"),
        ("TB_KEYS_SKEW", "-1s"),
        ("TB_SERVER_GRACE", "2h"),
        ("TB_ADMIN_CLIENT_TIMEOUT", "0"),
    ] {
        assert!(mistake(name, value).starts_with(&format!("{name}={value}: ")));
    }
    assert_eq!(
        load(&[("TB_SERVER_GRACE", "0")]).unwrap().server.grace,
        Duration::ZERO
    );
    assert_eq!(
        load(&[("TB_KEYS_ROTATEEVERY", "0")])
            .unwrap()
            .keys
            .rotate_every,
        None
    );
    assert_eq!(
        load(&[("TB_KEYS_ROTATEEVERY", "OFF")])
            .unwrap()
            .keys
            .rotate_every,
        None
    );
    assert_eq!(
        load(&[("TB_KEYS_EXPIRY", "20m\n")]).unwrap().keys.expiry,
        Duration::from_secs(1200)
    );
    assert!(warning("TB_KEYS_EXPIRY", "90500ms").contains("taken as 1m30s"));
    assert!(mistake("TB_KEYS_ROTATEEVERY", "5m").contains("keys.cacheTime"));
}

#[test]
fn integers_are_read_as_go_reads_them() {
    for (text, port) in [
        ("80", 80),
        ("+80", 80),
        (" 80\n", 80),
        ("80.0", 80),
        ("0x50", 80),
        ("0X1F90", 8080),
        ("0o120", 80),
        ("0b1010000", 80),
        ("0x_5_0", 80),
        ("8_0", 80),
    ] {
        assert_eq!(
            load(&[("TB_SERVER_PORT", text)]).map(|settings| listen(&settings.server.listen)),
            Ok(vec![format!("tailnet://:{port}")]),
            "{text}"
        );
    }
    assert_eq!(
        warning("TB_SERVER_PORT", "0120"),
        "TB_SERVER_PORT=0120: the leading 0 makes it octal: taken as 80"
    );
    for text in [
        "abc",
        "0",
        "-1",
        "65536",
        "080",
        "0x",
        "0x5__0",
        "_80",
        "80_",
        "80.5",
        "8e1",
        "99999999999999999999",
        "８０",
    ] {
        assert_eq!(
            mistake("TB_SERVER_PORT", text),
            format!("TB_SERVER_PORT={text}: not a port (1-65535)")
        );
    }
    for text in ["1024", "2047", "8192", "abc", "-2048"] {
        assert!(
            mistake("TB_KEYS_SIZE", text).ends_with("2048, 3072 or 4096"),
            "{text}"
        );
    }
}

#[test]
fn a_kubernetes_service_link_is_recognised() {
    assert!(mistake("TB_SERVER_PORT", "tcp://10.0.0.1:80").contains("enableServiceLinks"));
}

#[test]
fn log_words_that_are_not_known_fall_back_with_a_warning() {
    assert_eq!(
        warning("TB_LOG_LEVEL", "debgu"),
        "TB_LOG_LEVEL=debgu: not one of trace, debug, info, warn, error; did you mean debug?; taken as info"
    );
    assert!(warning("TB_LOG_FORMAT", "logfmt").ends_with("taken as console"));
    assert!(warning("TB_OUTPUT", "wide").ends_with("taken as text"));
    assert_eq!(
        load(&[("TB_LOG_LEVEL", "loud")]).unwrap().log.level,
        LogLevel::Info
    );
    assert_eq!(
        load(&[("TB_LOG_LEVEL", "DEBUG")]).unwrap().log.level,
        LogLevel::Debug
    );
    assert_eq!(
        load(&[("TB_LOG_FORMAT", "JSON")]).unwrap().log.format,
        LogFormat::Json
    );
    // Settings for security or keys have no fallback for unknown words.
    assert!(mistake("TB_ADMIN_AUTHORIZATION", "opne").contains("did you mean open?"));
    assert!(mistake("TB_KEYS_ALGORITHM", "HS256").contains("RS256, ES256, EdDSA"));
}

#[test]
fn switches_take_gos_words() {
    for (text, value) in [
        ("1", true),
        ("t", true),
        ("TRUE", true),
        ("0", false),
        ("False", false),
    ] {
        assert_eq!(
            load(&[("TB_LOG_NO_COLOR", text)]).unwrap().log.no_color,
            value,
            "{text}"
        );
    }
    assert!(mistake("TB_NO_CONFIRMATION", "yes").ends_with("not true or false"));
}

#[test]
fn no_color_holds_where_the_setting_is_not_typed() {
    assert!(load(&[("NO_COLOR", "1")]).unwrap().log.no_color);
    assert!(!load(&[("NO_COLOR", "")]).unwrap().log.no_color);
    assert!(
        !load(&[("NO_COLOR", "1"), ("TB_LOG_NO_COLOR", "false")])
            .unwrap()
            .log
            .no_color
    );
    assert_eq!(
        show(&[], &[("NO_COLOR", "x")])["log.no_color"].1,
        "variable NO_COLOR"
    );
}

#[test]
fn variables_of_a_group_hide_nothing() {
    for (name, group) in [
        ("TB_SERVER", "server"),
        ("TB_KEYS", "keys"),
        ("TB_ADMIN", "admin"),
        ("TB_LOG", "log"),
        ("TB_KEY", "key"),
        ("TB_SERVER_TAILSCALE", "server.tailscale"),
    ] {
        assert!(
            warning(name, "x")
                .starts_with(&format!("{name}: names the group {group}, not a setting"))
        );
        assert_eq!(load(&[(name, "x")]), load(&[]));
    }
}

#[test]
fn unknown_variables_are_warned_about_and_unknown_keys_refused() {
    assert_eq!(
        warning("TB_KEYS_KEY_PATH", "x"),
        "TB_KEYS_KEY_PATH: no such setting, not read; did you mean TB_KEYS_KEYPATH?"
    );
    assert_eq!(
        warning("TB_CONFIG", "x"),
        "TB_CONFIG: not read; name the config file with --config"
    );
    assert_eq!(
        remarks(&[("TB_NONSENSE", ""), ("tb_server_port", "x"), ("TBX", "x")]),
        (vec![], vec![])
    );
    let ran = with_file(
        "t.toml",
        "server = 5\nkyes = 1\n[keys]\nkey-path = 'x'\nissuer = ['a']\n[server2]\nport = 1\n",
        &["config", "check"],
    );
    insta::assert_snapshot!(ran.err);
    assert_eq!(ran.code, 64);
    let twice = with_file(
        "t.json",
        r#"{"keys":{"issuer":"a","Issuer":"b"}}"#,
        &["config", "check"],
    );
    assert!(
        twice
            .err
            .contains("PATH: keys.Issuer: set twice in this file"),
        "{}",
        twice.err
    );
}

fn listen(listen: &[Listen]) -> Vec<String> {
    listen.iter().map(ToString::to_string).collect()
}

#[test]
fn listeners_are_typed_or_made_from_the_older_settings() {
    let gate = [
        ("TB_COMPONENTS", "gate,metrics,sts"),
        ("TB_GATE_UPSTREAM", "http://127.0.0.1:3000"),
        ("TB_GATE_AUTH_PROXIES", "tag:proxy"),
    ];
    let with = |more: &[(&'static str, &'static str)]| load(&[&gate[..], more].concat()).unwrap();
    let older = with(&[
        ("TB_GATE_BINDING", "100.64.0.1"),
        ("TB_GATE_AUTH_SOCKET", "/run/gate.sock"),
        ("TB_METRICS_BINDING", "127.0.0.1"),
        ("TB_STS_HOST_LISTEN", "127.0.0.1:8443"),
    ]);
    assert_eq!(listen(&older.gate.listen), ["tailnet://100.64.0.1:8082"]);
    assert_eq!(
        listen(&older.gate.auth.listen),
        [
            "tailnet://100.64.0.1:8083",
            "unix:///run/gate.sock?mode=0660"
        ]
    );
    assert_eq!(listen(&older.metrics.listen), ["http://127.0.0.1:9090"]);
    assert_eq!(
        listen(&older.sts.listen),
        ["tailnet://:8080", "http://127.0.0.1:8443"]
    );

    let typed = with(&[
        (
            "TB_GATE_LISTEN",
            "http://127.0.0.1:1, unix:///run/x?mode=0666",
        ),
        ("TB_STS_LISTEN", "https://0.0.0.0:443?cert=/c&key=/k"),
    ]);
    assert_eq!(
        listen(&typed.gate.listen),
        ["http://127.0.0.1:1", "unix:///run/x?mode=0666"]
    );
    assert_eq!(
        listen(&typed.sts.listen),
        ["https://0.0.0.0:443?cert=/c&key=/k"]
    );
    let both = remarks(&[
        ("TB_SERVER_LISTEN", "tailnet://:81"),
        ("TB_SERVER_PORT", "82"),
    ]);
    assert_eq!(
        both.0,
        ["TB_SERVER_PORT: has no effect: server.listen is set"]
    );
    assert!(mistake("TB_SERVER_LISTEN", "http://0.0.0.0:80").contains("need TLS"));
    let twice = run(
        &[
            "config",
            "check",
            "--components",
            "issuer,admin",
            "--listen",
            "tailnet://:50051",
        ],
        &[],
    );
    assert!(
        twice.err.contains(
            "--listen=50051: admin.port (default) is the same: issuer and admin API need two ports"
        ),
        "{}",
        twice.err
    );
}

#[test]
fn bindings() {
    for text in ["auto", "AUTO", " "] {
        let settings = load(&[("TB_SERVER_BINDING", text)]).unwrap();
        assert_eq!(listen(&settings.server.listen), ["tailnet://:80"]);
    }
    let ran = run(&["config", "check", "--binding", ""], &[]);
    assert_eq!(ran.err, "The settings are fine\n");
    for text in ["100.64.0.7", "fd7a:115c:a1e0::7", "[fd7a:115c:a1e0::7]"] {
        let settings = load(&[("TB_ADMIN_BINDING", text)]).unwrap();
        let ip = text.trim_matches(['[', ']']).parse().unwrap();
        let addr = std::net::SocketAddr::new(ip, 50051);
        assert_eq!(
            listen(&settings.admin.listen),
            [format!("tailnet://{addr}")]
        );
    }
    for text in ["0.0.0.0", "::", "[::]"] {
        assert!(warning("TB_SERVER_BINDING", text).contains("taken as auto"));
        let settings = load(&[("TB_SERVER_BINDING", text)]).unwrap();
        assert_eq!(listen(&settings.server.listen), ["tailnet://:80"]);
    }
    for text in [
        "localhost",
        "tailbone.example.ts.net",
        "100.64.0.7:80",
        "eth0",
    ] {
        assert!(mistake("TB_SERVER_BINDING", text).contains("a host name cannot be bound"));
    }
}

#[test]
fn misfits_of_the_exchange_are_told_with_all_other_mistakes() {
    let wrong = [
        "config",
        "check",
        "--port=abc",
        "--sts-client-id=k1",
        "--sts-host-listen=0.0.0.0:8443",
        "--sts-token-url=",
    ];
    let with = |component: &'static str| {
        let mut all = wrong.to_vec();
        all.push(component);
        let Ran {
            code, err: said, ..
        } = run(&all, &[]);
        assert_eq!(code, 64, "{said}");
        said
    };
    let said = with("--components=issuer,sts");
    for line in [
        "--port=abc: ",
        "--sts-client-id: sts.clientSecret is missing",
        "--sts-host-listen=0.0.0.0:8443: outside the loopback tokens need TLS",
        "--sts-token-url",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    // Without an exchange, half of a client does not matter.
    let said = with("--components=issuer");
    assert!(
        !said.contains("clientSecret") && !said.contains("need TLS"),
        "{said}"
    );

    let load = |variables: &[(&str, &str)]| {
        let mut all = vec![("TB_COMPONENTS", "sts")];
        all.extend(variables);
        remarks(&all).1
    };
    for (variables, words) in [
        (
            &[("TB_STS_CLIENTSECRET", "tskey-client-x")][..],
            "TB_STS_CLIENTSECRET: sts.clientId is missing: an OAuth client is both",
        ),
        (
            &[
                ("TB_STS_HOST_CERT", "a.crt"),
                ("TB_STS_HOST_LISTEN", "1.2.3.4:1"),
            ],
            "TB_STS_HOST_CERT: sts.host.cert and sts.host.key are both needed",
        ),
        (
            &[("TB_STS_HOST_KEY", "a.key")],
            "TB_STS_HOST_KEY: sts.host.cert and sts.host.key are both needed",
        ),
        (
            &[("TB_STS_HOST_CERT", "a.crt"), ("TB_STS_HOST_KEY", "a.key")],
            "TB_STS_HOST_CERT: means nothing without sts.host.listen",
        ),
    ] {
        assert_eq!(load(variables), [words]);
    }
    for fine in [
        &[("TB_STS_HOST_LISTEN", "127.0.0.1:8443")][..],
        &[
            ("TB_STS_HOST_LISTEN", "0.0.0.0:8443"),
            ("TB_STS_HOST_PLAIN", "true"),
        ],
        &[
            ("TB_STS_HOST_LISTEN", "0.0.0.0:8443"),
            ("TB_STS_HOST_CERT", "a.crt"),
            ("TB_STS_HOST_KEY", "a.key"),
        ],
        &[
            ("TB_STS_CLIENTID", "k1"),
            ("TB_STS_CLIENTSECRET", "tskey-client-x"),
        ],
    ] {
        assert_eq!(load(fine), [""; 0], "{fine:?}");
    }
}

#[test]
fn gate_and_exchange_need_ports_of_their_own_too() {
    let told = |more: &[&str]| {
        let mut all = vec!["config", "check"];
        all.extend(more);
        let Ran {
            code, err: said, ..
        } = run(&all, &[]);
        (code, said)
    };
    let gate = "--components=issuer,gate,sts";
    let upstream = "--gate-upstream=http://127.0.0.1:3000";
    let proxies = "--gate-auth-proxies=tag:web";
    for (more, words) in [
        (
            &[upstream, "--gate-port=80"][..],
            "issuer and gate need two ports",
        ),
        (
            &[upstream, proxies, "--gate-auth-port=8082"],
            "gate and the gate's forward-auth need two ports",
        ),
        (
            &[proxies, "--gate-auth-port=8080"],
            "the gate's forward-auth and sts need two ports",
        ),
        (&["--sts-port=80"], "issuer and sts need two ports"),
        (
            &[
                "--components=metrics,sts",
                "--metrics-binding=127.0.0.1",
                "--sts-host-listen=0.0.0.0:9090",
                "--sts-host-plain=true",
            ],
            "metrics and sts at the host need two ports",
        ),
    ] {
        let mut arguments = vec![gate];
        // The last flag of a kind wins.
        if more[0].starts_with("--components") {
            arguments.clear();
        }
        arguments.extend(more);
        let (code, said) = told(&arguments);
        assert_eq!(code, 64, "{more:?}: {said}");
        assert!(said.contains(words), "{more:?}: {said}");
    }
    for fine in [
        // A component that is not enabled uses no port.
        &[gate, upstream, "--gate-auth-port=8082"][..],
        &[gate, proxies, "--gate-port=80"],
        &["--components=issuer,gate", upstream, "--sts-port=80"],
        // The machine's own addresses are not the node's.
        &[gate, upstream, "--sts-host-listen=127.0.0.1:8082"],
        &[
            gate,
            upstream,
            "--gate-port=80",
            "--gate-binding=100.64.0.9",
            "--binding=100.64.0.8",
        ],
    ] {
        let (code, said) = told(fine);
        assert_eq!(code, 0, "{fine:?}: {said}");
    }
}

#[test]
fn two_listeners_need_two_ports() {
    let both = [("TB_SERVER_PORT", "50051")];
    assert_eq!(
        remarks(&both).1,
        [
            "TB_SERVER_PORT=50051: admin.port (default) is the same: issuer and admin API need two ports"
        ]
    );
    assert!(load(&[both[0], ("TB_COMPONENTS", "issuer")]).is_ok());
    assert!(
        load(&[
            both[0],
            ("TB_SERVER_BINDING", "100.64.0.1"),
            ("TB_ADMIN_BINDING", "fd7a::1")
        ])
        .is_ok()
    );
}

#[test]
fn d11_a_prefix_that_breaks_key_ids_is_refused() {
    assert!(mistake("TB_KEY_PREFIX", "my-keys").contains("cannot be read back"));
    for text in ["a b", "ä", "a/b", &"x".repeat(65)] {
        assert!(
            mistake("TB_KEY_PREFIX", text).contains("not a prefix"),
            "{text}"
        );
    }
    assert!(
        run(&["config", "check", "--key-prefix", ""], &[])
            .err
            .contains("not a prefix")
    );
    assert_eq!(
        load(&[("TB_KEY_PREFIX", "Team_1.eu")]).unwrap().keys.prefix,
        "Team_1.eu"
    );
}

#[test]
fn where_the_jwks_is_published() {
    assert_eq!(
        load(&[
            ("TB_KEYS_BUCKET", "b"),
            ("TB_KEYS_S3_ENDPOINT", "https://s3.example.com"),
            ("TB_KEYS_S3_PATHSTYLE", "true")
        ])
        .unwrap()
        .keys
        .publish,
        Publish::S3 {
            bucket: "b".into(),
            key_path: ".well-known/jwks.json".into(),
            endpoint: Some("https://s3.example.com".into()),
            path_style: true
        }
    );
    assert_eq!(
        load(&[("TB_KEYS_DIR", "/k")]).unwrap().keys.publish,
        Publish::File {
            path: "/k/jwks.json".into()
        }
    );
    assert_eq!(
        show(&["--key-path", "", "--bucket", "b"], &[])["keys.keyPath"].0,
        json!(".well-known/jwks.json")
    );
    let (_, mistakes) = remarks(&[("TB_KEYS_BUCKET", "b"), ("TB_KEYS_JWKSFILE", "/f")]);
    assert_eq!(
        mistakes,
        [
            "TB_KEYS_JWKSFILE: keys.bucket (variable TB_KEYS_BUCKET) is set too: the JWKS is published in one place"
        ]
    );
    assert!(warning("TB_KEYS_S3_ENDPOINT", "http://x").contains("no effect without keys.bucket"));
    assert!(mistake("TB_KEYS_BUCKET", "s3://b/x").contains("the name alone"));
}

#[test]
fn addresses_hosts_and_tags() {
    for text in [
        "headscale.example.com",
        "ftp://x",
        "https://",
        "http://a b",
        "https:///x",
    ] {
        assert!(
            mistake("TB_SERVER_TAILSCALE_CONTROLURL", text).contains("not an address"),
            "{text}"
        );
    }
    assert!(mistake("TB_SERVER_TAILSCALE_CONTROLURL", "https://me:pw@x").contains("password"));
    for text in ["http://x", "a/b", "a b"] {
        assert!(
            mistake("TB_ADMIN_CLIENT_HOST", text).contains("not a host name"),
            "{text}"
        );
    }
    assert!(mistake("TB_ADMIN_CLIENT_HOST", "tailbone:50051").contains("admin.client.port"));
    assert_eq!(
        client(&[("TB_ADMIN_CLIENT_HOST", "fd7a::1")]).host,
        "fd7a::1"
    );
    assert_eq!(
        load(&[("TB_SERVER_TAILSCALE_TAGS", "tag:a tag:b-2")])
            .unwrap()
            .server
            .tailscale
            .tags,
        ["tag:a", "tag:b-2"]
    );
    assert!(mistake("TB_SERVER_TAILSCALE_TAGS", "server").contains("did you mean tag:server?"));
    for text in ["tag:", "tag:1", "tag:a_b"] {
        assert!(
            mistake("TB_SERVER_TAILSCALE_TAGS", text).contains("not a tag"),
            "{text}"
        );
    }
    assert!(warning("TB_SERVER_TAILSCALE_HOSTNAME", "my_host").contains("another name"));
    assert!(mistake("TB_SERVER_TAILSCALE_HOSTNAME", &"x".repeat(64)).contains("63 bytes"));
}

#[test]
fn values_that_would_be_cut_are_refused() {
    for row in table::ALL {
        let (_, mistakes) = remarks(&[(&row.variable(), &"x".repeat(5000))]);
        assert_eq!(
            mistakes.len(),
            usize::from(!matches!(row.key, "")),
            "{}: {mistakes:?}",
            row.key
        );
    }
    let ran = with_file(
        "t.json",
        r#"{"keys":{"issuer":"a\u0000b","dir":"c\nd"},"server":{"tailscale":{"hostname":"x\u001b"}}}"#,
        &["config", "check"],
    );
    assert_eq!(
        ran.err.matches("control character").count(),
        3,
        "{}",
        ran.err
    );
    assert!(mistake("TB_ADMIN_SOCKET", &"x".repeat(108)).contains("107 bytes"));
    assert!(load(&[("TB_ADMIN_SOCKET", &"x".repeat(107))]).is_ok());
    let environment: Environment = [("TB_KEYS_ISSUER", OsString::from_vec(b"a\xff".to_vec()))]
        .into_iter()
        .collect();
    let mistakes = config::load(
        &Raw::collect(Flags::default(), &environment, None),
        Purpose::Start,
    )
    .unwrap_err();
    assert_eq!(mistakes.to_string(), "TB_KEYS_ISSUER: not text in UTF-8");
}

// ---- every mistake at once (D19)

#[test]
fn d19_every_mistake_is_told_at_once_with_its_origin() {
    let (_directory, path) = file(
        "tailbone.yaml",
        "server:\n  prot: 8080\n  tailscale:\n    joinRetry: -1s\nkeys:\n  expiry: soon\nadmin: 1\n",
    );
    let ran = run(
        &[
            "config",
            "check",
            "--config",
            path.to_str().unwrap(),
            "--port",
            "0",
            "--components",
            "issuer,admn",
            "--ts-authkey",
            "tskey-secret",
        ],
        &[
            ("TB_SERVER_GRACE", "10"),
            ("TB_KEYS_SIZE", "1024"),
            ("TB_SERVER_PORT", "not looked at, the flag wins"),
            ("TB_ADMIN_CLIENT_PORT", "-1"),
            ("TB_LOG_LEVEL", "verbose"),
            ("TB_KEYS_KEY_PATH", "x"),
        ],
    );
    assert_eq!((ran.code, ran.out.as_str()), (64, ""));
    insta::assert_snapshot!(
        ran.err
            .replace(path.to_str().unwrap(), "/etc/tailbone.yaml")
    );
}

#[test]
fn config_check_says_that_all_is_fine_and_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let before = std::fs::read_dir(home.path()).unwrap().count();
    let ran = run(
        &[
            "config",
            "check",
            "--dir",
            home.path().join("keys").to_str().unwrap(),
        ],
        &[],
    );
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (0, "", "The settings are fine\n")
    );
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), before);
}

#[test]
fn config_show_as_table() {
    let ran = run(
        &["config", "show", "--origin", "--ts-hostname", "corner"],
        &[
            ("TB_SERVER_TAILSCALE_AUTHKEY", "tskey-secret"),
            ("TB_SERVER_PORT", "0x1F90"),
        ],
    );
    let lines: Vec<_> = ran.out.lines().map(str::trim_end).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn config_show_as_yaml() {
    insta::assert_snapshot!(run(&["config", "show", "-o", "yaml"], &[]).out);
}

// ---- secrets

#[test]
fn an_auth_key_may_come_from_a_file() {
    let (_directory, path) = file("authkey", "tskey-from-file\r\n");
    let path = path.to_str().unwrap();
    let by_prefix = format!("file:{path}");
    let key = |variables: &[(&str, &str)]| {
        load(variables)
            .unwrap()
            .server
            .tailscale
            .authkey
            .map(|key| key.reveal().to_owned())
    };
    let expected = Some("tskey-from-file".to_owned());
    assert_eq!(key(&[("TB_SERVER_TAILSCALE_AUTHKEY_FILE", path)]), expected);
    assert_eq!(
        key(&[("TB_SERVER_TAILSCALE_AUTHKEY", &by_prefix)]),
        expected
    );
    assert_eq!(
        key(&[("TB_SERVER_TAILSCALE_AUTHKEY", "tskey-plain\n")]),
        Some("tskey-plain".into())
    );
    assert_eq!(key(&[("TB_SERVER_TAILSCALE_AUTHKEY_FILE", "")]), None);
    let shown = show(
        &["--ts-authkey", &by_prefix],
        &[("TB_SERVER_TAILSCALE_AUTHKEY", "tskey-plain")],
    );
    assert_eq!(
        shown["server.tailscale.authkey"],
        (json!("(hidden)"), "flag --ts-authkey".into())
    );
    // Only the file's name is on the command line, so no warning is needed.
    assert_eq!(
        run(&["config", "check", "--ts-authkey", &by_prefix], &[]).err,
        "The settings are fine\n"
    );
    let shown = show(&[], &[("TB_SERVER_TAILSCALE_AUTHKEY_FILE", path)]);
    assert_eq!(
        shown["server.tailscale.authkey"].1,
        "variable TB_SERVER_TAILSCALE_AUTHKEY_FILE"
    );

    let both = [
        ("TB_SERVER_TAILSCALE_AUTHKEY_FILE", path),
        ("TB_SERVER_TAILSCALE_AUTHKEY", "tskey-x"),
    ];
    assert_eq!(
        remarks(&both).1,
        [
            "TB_SERVER_TAILSCALE_AUTHKEY: TB_SERVER_TAILSCALE_AUTHKEY_FILE is set too: keep one of the two"
        ]
    );
}

#[test]
fn housekeeping_needs_no_auth_key() {
    let variables = raw(&[("TB_SERVER_TAILSCALE_AUTHKEY_FILE", "/nowhere")]);
    assert!(config::load(&variables, Purpose::Start).is_err());
    let settings = config::load(&variables, Purpose::Housekeeping).unwrap().0;
    assert_eq!(settings.server.tailscale.authkey, None);
}

#[test]
fn no_secret_is_ever_shown() {
    const SECRET: &str = "tskey-auth-hush";
    let home = tempfile::tempdir().unwrap();
    let broken = home.path().join("broken");
    std::fs::write(&broken, format!("{SECRET} and more\n{SECRET}")).unwrap();
    let files = [
        (
            "t.toml",
            format!("[server.tailscale]\nauthkey = '{SECRET}'\n[server]\nport = 0\n"),
        ),
        (
            "t.toml",
            format!("[server.tailscale]\nauthkey = {SECRET}\n"),
        ),
        (
            "t.toml",
            format!("[server.tailscale]\nauthkey = ['{SECRET}']\n"),
        ),
        (
            "t.yaml",
            format!("server: {{tailscale: {{authkey: \"{SECRET} x\"}}}}\n"),
        ),
        (
            "t.yaml",
            format!("server: {{tailscale: {{authkey: *{SECRET}}}}}\n"),
        ),
        (
            "t.json",
            format!("{{\"server\":{{\"tailscale\":{{\"authkey\":\"{SECRET}\\u0000\"}}}}}}"),
        ),
        (
            "t.json",
            format!("{{\"server\":{{\"tailscale\":{{\"authkey\":{SECRET}}}}}}}"),
        ),
    ];
    let mut said = String::new();
    for arguments in [
        &["config", "check"][..],
        &["config", "show", "--origin"],
        &["config", "show", "-o", "json"],
        &["config", "show", "-o", "yaml", "--origin"],
        // With a mistake beside the secret, so that nothing is started.
        &["server", "start", "--port", "abc"],
        &["server", "housekeeping", "--dir", ""],
        &["keys", "list"],
    ] {
        for (name, text) in &files {
            let ran = with_file(name, text, arguments);
            said += &(ran.out + &ran.err);
        }
        let variables = [
            ("TB_SERVER_TAILSCALE_AUTHKEY", SECRET.to_owned()),
            ("TB_SERVER_TAILSCALE_AUTHKEY", format!("{SECRET} x")),
            ("TB_SERVER_TAILSCALE_AUTHKEY", format!("{SECRET}\u{1b}")),
            ("TB_SERVER_TAILSCALE_AUTHKEY", SECRET.repeat(1000)),
            (
                "TB_SERVER_TAILSCALE_AUTHKEY_FILE",
                broken.to_str().unwrap().to_owned(),
            ),
            // An error about a misspelt name does not show its value.
            ("TB_SERVER_TAILSCALE_AUTH_KEY", SECRET.to_owned()),
        ];
        for (name, value) in &variables {
            let ran = run(arguments, &[(name, value), ("TB_KEYS_SIZE", "1")]);
            said += &(ran.out + &ran.err);
            let ran = run(arguments, &[(name, value)]);
            said += &(ran.out + &ran.err);
        }
    }
    for value in [SECRET, "tskey-auth-hush x", ""] {
        let ran = run(
            &["config", "check", "--ts-authkey", value, "--port", "x"],
            &[],
        );
        said += &(ran.out + &ran.err);
    }
    let (settings, origins, _) = config::load(
        &raw(&[("TB_SERVER_TAILSCALE_AUTHKEY", SECRET)]),
        Purpose::Start,
    )
    .unwrap();
    said += &format!(
        "{settings:?} {origins:?} {:?}",
        raw(&[("TB_SERVER_TAILSCALE_AUTHKEY", SECRET)])
    );
    assert!(!said.contains("hush"), "{said}");
    // The texts that must replace it.
    for words in [
        "(hidden)",
        "holds blanks, line ends or control characters",
        "longer than 4096 bytes",
        "everybody on this machine can read it",
        "one value, not a list",
        "is not TOML (line 2)",
        "is not JSON (line 1",
        "did you mean TB_SERVER_TAILSCALE_AUTHKEY?",
    ] {
        assert!(said.contains(words), "{words}");
    }
    assert!(mistake("TB_SERVER_TAILSCALE_AUTHKEY", "(hidden)").contains("not a secret"));
}

// ---- the command line itself

#[test]
fn help_of_every_command() {
    fn walk(command: &mut clap::Command, path: &str, pages: &mut String) {
        let page = command.clone().term_width(100).render_long_help();
        *pages += &format!("==== {path}\n{page}\n");
        let names: Vec<String> = command
            .get_subcommands()
            .map(|command| command.get_name().to_owned())
            .filter(|name| name != "help")
            .collect();
        for name in names {
            let command = command.find_subcommand_mut(&name).unwrap();
            walk(command, &format!("{path} {name}"), pages);
        }
    }
    let mut command = cli::command().term_width(100);
    command.build();
    let mut pages = String::new();
    walk(&mut command, "tailbone", &mut pages);
    let lines: Vec<_> = pages.lines().map(str::trim_end).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn the_frame_is_sound() {
    cli::command().debug_assert();
    let mut keys = std::collections::BTreeSet::new();
    let mut variables = std::collections::BTreeSet::new();
    for row in table::ALL {
        assert!(
            keys.insert(row.key.to_ascii_lowercase()),
            "{} twice",
            row.key
        );
        assert!(variables.insert(row.variable()), "{} twice", row.variable());
        assert!(row.flags().next().is_some(), "{} has no flag", row.key);
        assert!(
            !row.help.is_empty() && !row.help.ends_with('.'),
            "{}",
            row.key
        );
    }
    for group in table::groups() {
        assert!(
            table::find(group).is_none(),
            "{group} is a setting and a group"
        );
    }
}

#[test]
fn a_group_without_a_command_prints_its_help() {
    for (arguments, usage) in [
        (
            &["completion"][..],
            "Usage: tailbone completion [OPTIONS] [shell]",
        ),
        (&[], "Usage: tailbone [OPTIONS] [COMMAND]"),
        (&["server"], "Usage: tailbone server [OPTIONS] [COMMAND]"),
        (&["keys"], "Usage: tailbone keys [OPTIONS] [COMMAND]"),
        (&["key"], "Usage: tailbone keys [OPTIONS] [COMMAND]"),
        (&["config"], "Usage: tailbone config [OPTIONS] [COMMAND]"),
        (
            &["help", "server", "start"],
            "Usage: tailbone server start [OPTIONS]",
        ),
        (
            &["keys", "remove", "-h"],
            "Usage: tailbone keys remove [OPTIONS] <keyID>",
        ),
    ] {
        let ran = run(arguments, &[]);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{arguments:?}");
        assert!(ran.out.contains(usage), "{}", ran.out);
    }
}

#[test]
fn a_command_line_that_is_not_understood_ends_with_2() {
    for arguments in [
        &["srever"][..],
        &["server", "start", "--bucket"],
        &["server", "start", "--buckte", "x"],
        &["keys", "remove"],
        &["keys", "remove", "a", "b"],
        &["keys", "list", "--yes"],
        &["server", "housekeeping", "--port", "1"],
        &["completion", "tcsh"],
    ] {
        let ran = run(arguments, &[]);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{arguments:?}");
        assert!(ran.err.starts_with("Error: "), "{}", ran.err);
        assert_eq!(
            ran.err.to_lowercase().matches("error:").count(),
            1,
            "{}",
            ran.err
        );
    }
}

#[test]
fn d9_the_size_reaches_the_request() {
    let ran = run(&["keys", "generate", "-s", "1024"], &[]);
    assert_eq!(ran.code, 64);
    assert!(
        ran.err.contains("--size=1024: not the size of an RSA key"),
        "{}",
        ran.err
    );
    let mut flags = Flags::default();
    flags.give(&sections::keys::SIZE, "--size", "4096".into());
    let environment = [("TB_KEYS_SIZE", "3072")].into_iter().collect();
    let (settings, _, _) = config::load_client(&Raw::collect(flags, &environment, None)).unwrap();
    assert_eq!(settings.key_size, Some(4096));
}

#[test]
fn d26_a_removal_that_nobody_can_confirm_is_refused() {
    let ran = run(&["keys", "remove", "tb-1"], &[]);
    assert_eq!((ran.code, ran.out.as_str()), (2, ""));
    assert!(ran.err.contains("say --yes"), "{}", ran.err);
    // Confirmed in advance in one of three ways, it does not ask.
    for (arguments, variables) in [
        (&["keys", "remove", "tb-1", "-y"][..], &[][..]),
        (
            &["keys", "remove", "tb-1"],
            &[("TB_NO_CONFIRMATION", "true")],
        ),
        (
            &["keys", "--timeout", "100ms", "remove", "--yes", "tb-1"],
            &[],
        ),
    ] {
        let ran = run(arguments, variables);
        assert!(!ran.err.contains("say --yes"), "{}", ran.err);
    }
}

#[test]
fn version_has_the_two_lines_and_more_in_json() {
    let (version, commit) = (tailbone::version::VERSION, tailbone::version::COMMIT);
    // A bad variable or a broken file does not hide the version.
    let variables = [("TB_OUTPUT", "json"), ("HOME", "/nowhere")];
    assert_eq!(
        run(&["version"], &variables).out,
        format!("Version {version}\nCommit {commit}\n")
    );
    for flag in ["--version", "-v"] {
        assert_eq!(
            run(&[flag], &[]).out,
            format!("tailbone version {version}-{commit}\n")
        );
    }
    let all: Json = serde_json::from_str(&run(&["version", "-ojson"], &[]).out).unwrap();
    assert_eq!(all["version"], version);
    assert!(all["go"].is_string() && all["tsnet"].is_string());
}

#[test]
fn completions_and_man_pages_know_every_flag() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let ran = run(&["completion", shell, "--no-descriptions"], &[]);
        assert_eq!(ran.code, 0);
        for row in table::ALL {
            for flag in row.flags() {
                assert!(ran.out.contains(flag.long), "{shell}: {}", flag.long);
            }
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man1");
    assert_eq!(run(&["man", pages.to_str().unwrap()], &[]).code, 0);
    let page = std::fs::read_to_string(pages.join("tailbone-server-start.1")).unwrap();
    assert!(page.contains("TB_SERVER_TAILSCALE_CONTROLURL"));
    assert!(pages.join("tailbone-keys-remove.1").is_file() && pages.join("tailbone.1").is_file());
}

// ---- the real binary

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailbone"));
    command.env_clear().stdin(Stdio::null());
    command
}

#[test]
fn the_binary_prints_an_error_once_and_ends_with_its_code() {
    let output = binary()
        .args(["config", "check"])
        .env("TB_SERVER_PORT", "abc")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "Error: TB_SERVER_PORT=abc: not a port (1-65535)\n"
    );
}

#[test]
fn a_closed_pipe_is_success() {
    for arguments in [&["completion", "zsh"][..], &["--help"], &["config", "show"]] {
        let mut child = binary()
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(
            (child.wait().unwrap().code(), said.as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
}

#[test]
fn an_answer_that_comes_through_a_pipe_is_no_person() {
    let mut child = binary()
        .args(["keys", "remove", "tb-1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The child may end before it reads.
    let _ = child.stdin.take().unwrap().write_all(b"y\n");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--yes"));
}

// ---- the documentation page

#[test]
fn the_page_of_settings_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/settings.md");
    let page = table::page();
    if std::env::var_os("TAILBONE_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/settings.md is stale: run this test with TAILBONE_UPDATE_DOCS=1"
    );
}

#[test]
fn what_the_node_joins_with_may_be_a_client_instead_of_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "a.b.c\n").unwrap();
    let file = file.to_str().unwrap();
    let settings = load(&[
        ("TB_SERVER_TAILSCALE_CLIENTSECRET", "tskey-client-hush"),
        ("TB_SERVER_TAILSCALE_CLIENTID", "id"),
        ("TB_SERVER_TAILSCALE_IDTOKEN_FILE", file),
        ("TB_SERVER_TAILSCALE_AUDIENCE", "aud"),
        ("TB_SERVER_TAILSCALE_TAGS", "tag:a"),
    ])
    .unwrap();
    let tailscale = settings.server.tailscale;
    let revealed =
        |secret: &Option<tailbone::config::Secret>| secret.as_ref().unwrap().reveal().to_owned();
    assert_eq!(revealed(&tailscale.client_secret), "tskey-client-hush");
    assert_eq!(revealed(&tailscale.id_token), "a.b.c");
    assert_eq!(tailscale.client_id.as_deref(), Some("id"));
    assert_eq!(tailscale.audience.as_deref(), Some("aud"));
    let shown = show(
        &[],
        &[("TB_SERVER_TAILSCALE_CLIENTSECRET", "tskey-client-hush")],
    );
    assert_eq!(shown["server.tailscale.clientSecret"].0, json!("(hidden)"));
}

#[test]
fn where_the_node_keeps_its_state() {
    let state = |word: &str, more: &[(&'static str, &'static str)]| {
        let mut variables = vec![("TB_SERVER_TAILSCALE_STATE", word)];
        variables.extend(more);
        run(&["config", "check"], &variables)
    };
    assert_eq!(state("kube:tailbone-state", &[]).code, 0);
    assert_eq!(
        state("mem", &[("TB_SERVER_TAILSCALE_EPHEMERAL", "true")]).code,
        0
    );
    let ran = state("mem", &[]);
    assert_eq!(ran.code, 64);
    assert!(ran.err.contains("must be ephemeral"), "{}", ran.err);
    for word in ["kube:", "arn:aws:ssm", "memory"] {
        let ran = state(word, &[]);
        assert_eq!(ran.code, 64, "{word}");
        assert!(
            ran.err.contains("there are dir, mem and kube:NAME"),
            "{}",
            ran.err
        );
    }
}

#[test]
fn counts_are_whole_numbers_within_bounds() {
    for (typed, sentence) in [
        ("abc", "not a whole number; it may be 1 to 1000000"),
        ("1.5", "not a whole number; it may be 1 to 1000000"),
        ("0", "out of bounds; it may be 1 to 1000000"),
        ("-1", "out of bounds; it may be 1 to 1000000"),
        ("1000001", "out of bounds; it may be 1 to 1000000"),
    ] {
        let flag = format!("--limit-connections={typed}");
        let Ran {
            code, err: said, ..
        } = run(&["config", "check", &flag], &[]);
        assert_eq!(code, 64, "{typed}");
        assert!(said.contains(sentence), "{typed}: {said}");
    }
}

#[test]
fn metrics_on_loopback_may_have_a_port_of_the_tailnet() {
    let check = |binding: &str| {
        let all = [
            "config",
            "check",
            "--components=issuer,metrics",
            "--metrics-port=80",
            binding,
        ];
        run(&all, &[])
    };
    assert_eq!(check("--metrics-binding=127.0.0.1").code, 0);
    let Ran {
        code, err: said, ..
    } = check("--metrics-binding=auto");
    assert_eq!(code, 64);
    assert!(said.contains("issuer and metrics need two ports"), "{said}");
}

#[test]
fn tsnets_name_of_the_auth_key_is_read_where_nothing_of_ours_is_typed() {
    let authkey = |variables: &[(&'static str, &'static str)]| {
        let authkey = load(variables).unwrap().server.tailscale.authkey;
        authkey.map(|key| key.reveal().to_owned())
    };
    let both = [("TS_AUTHKEY", "first"), ("TS_AUTH_KEY", "second")];
    assert_eq!(authkey(&both[..1]).as_deref(), Some("first"));
    assert_eq!(authkey(&both[1..]).as_deref(), Some("second"));
    assert_eq!(authkey(&both).as_deref(), Some("first"));
    for (ours, wanted) in [
        (("TB_SERVER_TAILSCALE_AUTHKEY", "ours"), Some("ours")),
        (("TB_SERVER_TAILSCALE_CLIENTSECRET", "ours"), None),
        (("TB_SERVER_TAILSCALE_CLIENTID", "ours"), None),
    ] {
        let variables = [&both[..], &[ours]].concat();
        assert_eq!(authkey(&variables).as_deref(), wanted, "{ours:?}");
    }
}

#[test]
fn tsnets_other_variables_are_not_read_and_that_is_told() {
    for (variable, ours) in [
        ("TS_AUDIENCE", "TB_SERVER_TAILSCALE_AUDIENCE"),
        ("TS_CLIENT_ID", "TB_SERVER_TAILSCALE_CLIENTID"),
        ("TS_CLIENT_SECRET", "TB_SERVER_TAILSCALE_CLIENTSECRET"),
        ("TS_CONTROL_URL", "TB_SERVER_TAILSCALE_CONTROLURL"),
        ("TS_ID_TOKEN", "TB_SERVER_TAILSCALE_IDTOKEN"),
    ] {
        let value = "http://value.example.com";
        let Ran { code, err, .. } = run(&["config", "check"], &[(variable, value)]);
        assert_eq!(code, 0, "{err}");
        assert!(
            err.contains(&format!("{variable}: not read; for the node it is {ours}")),
            "{err}"
        );
        assert!(!err.contains(value), "it may be a secret: {err}");
    }
    // TailSTS's names are read if its component runs.
    let both = [
        ("TS_CLIENT_ID", "id"),
        ("TS_CLIENT_SECRET", "secret"),
        ("TB_COMPONENTS", "sts"),
    ];
    let said = run(&["config", "check"], &both).err;
    assert!(!said.contains("not read"), "{said}");
}

// ---- the exchange

#[test]
fn the_exchange_takes_over_tailsts_variables_where_it_runs() {
    let variables = [
        ("PORT", "9000"),
        ("POLICIES_DIR", "/policies"),
        ("TS_CLIENT_ID", "id"),
        ("TS_CLIENT_SECRET", "tskey-client-x"),
        ("TS_TOKEN_URL", "http://localhost:1/token"),
        ("JSON_LOGGING", "true"),
        ("TB_SERVER_TAILSCALE_AUTHKEY", "k"),
    ];
    let with =
        |more: &[(&'static str, &'static str)]| load(&[&variables[..], more].concat()).unwrap();
    let on = with(&[("TB_COMPONENTS", "admin,sts")]);
    assert_eq!(listen(&on.sts.listen), ["tailnet://:9000"]);
    assert_eq!(on.sts.policies_dir, Path::new("/policies"));
    let client = on.sts.credentials.unwrap();
    assert_eq!(
        (client.id.as_str(), client.secret.reveal()),
        ("id", "tskey-client-x")
    );
    assert_eq!(on.sts.token_url.as_str(), "http://localhost:1/token");
    assert_eq!(on.log.format, LogFormat::Json);
    let own = with(&[("TB_COMPONENTS", "sts"), ("TB_STS_PORT", "9001")]);
    assert_eq!(
        listen(&own.sts.listen),
        ["tailnet://:9001"],
        "our own name wins"
    );
    let off = with(&[("TB_COMPONENTS", "issuer")]);
    assert_eq!(listen(&off.sts.listen), ["tailnet://:8080"]);
    assert_eq!(off.sts.credentials, None);
    assert_eq!(off.log.format, LogFormat::Console);
}

#[test]
fn hosts_and_origins_are_told_apart_from_what_is_neither() {
    let wrong = |variable: &str, value: &str| {
        let mistakes = load(&[(variable, value)]).map(|_| ());
        assert!(mistakes.is_err(), "{variable}={value}");
    };
    for host in ["https://a.example.com", "a:80", "a/b", "*.*", "**"] {
        wrong("TB_SERVER_ALLOWEDHOSTS", host);
    }
    for origin in [
        "a.example.com",
        "https://a.example.com/",
        "https://*.example.com",
        "NULL",
    ] {
        wrong("TB_SERVER_ALLOWEDORIGINS", origin);
        wrong("TB_GATE_ALLOWEDORIGINS", origin);
    }
}

#[test]
fn the_gates_issuer_follows_the_issuers_and_is_another() {
    let issuer = |variables: &[(&str, &str)]| {
        let mut all = vec![("TB_GATE_TOKEN", "true")];
        all.extend(variables);
        load(&all).unwrap().gate.token.unwrap().issuer
    };
    assert_eq!(issuer(&[]), "tailbone/gate");
    let named = ("TB_KEYS_ISSUER", "https://id.example.com");
    assert_eq!(issuer(&[named]), "https://id.example.com/gate");
    assert_eq!(issuer(&[("TB_GATE_TOKENISSUER", "other")]), "other");
    // The Go program's value is accepted with a warning.
    let (warnings, mistakes) = remarks(&[("TB_GATE_TOKENISSUER", "tailbone")]);
    assert!(mistakes.is_empty(), "{mistakes:?}");
    assert!(warnings.concat().contains("is keys.issuer"), "{warnings:?}");
}
