//! The variables of tsidp: what each becomes, and the file that `config migrate` makes of them.

use std::path::Path;

use serde_json::Value as Json;
use tailbone::config::{LogLevel, Settings};

use super::{addresses, load, remarks, run};

const ON: (&str, &str) = ("TB_COMPONENTS", "oidc");

fn with(variables: &[(&'static str, &'static str)]) -> Settings {
    load(&[&[ON], variables].concat()).unwrap()
}

fn listen(variables: &[(&'static str, &'static str)]) -> Vec<String> {
    addresses(&with(variables).oidc.listen)
}

/// The one mistake that these variables are.
fn mistake(variables: &[(&'static str, &'static str)]) -> String {
    let (_, mistakes) = remarks(&[&[ON], variables].concat());
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    mistakes[0].clone()
}

/// The one warning that these variables are.
fn warning(variables: &[(&'static str, &'static str)]) -> String {
    let (warnings, mistakes) = remarks(&[&[ON], variables].concat());
    assert_eq!((warnings.len(), mistakes.len()), (1, 0), "{warnings:?}");
    warnings[0].clone()
}

#[test]
fn the_state_directory_has_the_node_the_files_and_the_providers_own_state() {
    let settings = with(&[("TS_STATE_DIR", "/data")]);
    assert_eq!(settings.server.tailscale.dir, Path::new("/data"));
    assert_eq!(settings.oidc.dir, Path::new("/data/oidc"));
    assert_eq!(settings.oidc.keys.dir, Path::new("/data/oidc/keys"));
    let theirs = Some(Path::new("/data"));
    assert_eq!(settings.oidc.take_over.as_deref(), theirs);
    assert_eq!(settings.oidc.keys.take_over.as_deref(), theirs);
}

#[test]
fn the_node_keeps_the_name_that_applications_know() {
    let name =
        |variables: &[(&'static str, &'static str)]| with(variables).server.tailscale.hostname;
    assert_eq!(name(&[("TS_HOSTNAME", "login")]), "login");
    assert_eq!(name(&[]), "tailbone");
    for theirs in [
        ("TS_STATE_DIR", "/data"),
        ("TSIDP_PORT", "443"),
        ("TSIDP_USE_FUNNEL", "false"),
        ("TSIDP_LOCAL_PORT", "-1"),
        ("TSIDP_ENABLE_STS", "true"),
        ("TSIDP_LOG", "info"),
    ] {
        assert_eq!(name(&[theirs]), "idp", "{theirs:?}: tsidp's default");
        assert_eq!(name(&[theirs, ("TS_HOSTNAME", "login")]), "login");
        let ours = ("TB_SERVER_TAILSCALE_HOSTNAME", "ours");
        assert_eq!(name(&[theirs, ours]), "ours");
    }
}

#[test]
fn the_port_is_one_of_the_tailnet_with_tls() {
    assert_eq!(listen(&[("TSIDP_PORT", "8443")]), ["tailnet+tls://:8443"]);
    for port in ["0", "65536", "https", "-1"] {
        assert!(mistake(&[("TSIDP_PORT", port)]).starts_with("TSIDP_PORT="));
    }
}

#[test]
fn funnel_is_beside_the_tailnet_at_the_same_port() {
    let funnel = |word| listen(&[("TSIDP_USE_FUNNEL", word)]);
    for word in ["1", "t", "T", "true", "TRUE", "True"] {
        assert_eq!(funnel(word), ["tailnet+tls://:443", "funnel://:443"]);
    }
    for word in ["0", "f", "F", "false", "FALSE", "False", ""] {
        assert_eq!(funnel(word), ["tailnet+tls://:443"]);
    }
    assert!(mistake(&[("TSIDP_USE_FUNNEL", "yes")]).starts_with("TSIDP_USE_FUNNEL=yes"));
    let both = [("TSIDP_USE_FUNNEL", "1"), ("TSIDP_PORT", "10000")];
    assert_eq!(listen(&both), ["tailnet+tls://:10000", "funnel://:10000"]);
}

#[test]
fn the_local_port_is_on_loopback_beside_the_tailnet() {
    let local = |port| listen(&[("TSIDP_LOCAL_PORT", port)]);
    assert_eq!(
        local("8080"),
        ["tailnet+tls://:443", "http://127.0.0.1:8080"]
    );
    assert_eq!(
        local("-1"),
        ["tailnet+tls://:443"],
        "tsidp's default is off"
    );
    assert!(mistake(&[("TSIDP_LOCAL_PORT", "http")]).starts_with("TSIDP_LOCAL_PORT="));
}

#[test]
fn the_exchange_has_a_switch() {
    for (word, on) in [("1", true), ("true", true), ("0", false), ("", false)] {
        assert_eq!(with(&[("TSIDP_ENABLE_STS", word)]).oidc.token_exchange, on);
    }
    assert!(mistake(&[("TSIDP_ENABLE_STS", "on")]).starts_with("TSIDP_ENABLE_STS=on"));
}

#[test]
fn the_log_has_tsidps_levels() {
    for (word, level) in [
        ("debug", LogLevel::Debug),
        ("info", LogLevel::Info),
        ("warn", LogLevel::Warn),
        ("error", LogLevel::Error),
    ] {
        assert_eq!(with(&[("TSIDP_LOG", word)]).log.level, level);
    }
    let told = warning(&[("TSIDP_LOG", "loud")]);
    assert!(told.starts_with("TSIDP_LOG=loud"), "{told}");
    assert_eq!(with(&[("TSIDP_LOG", "loud")]).log.level, LogLevel::Info);
}

#[test]
fn the_login_and_the_tags_are_tsnets() {
    let node = with(&[
        ("TS_AUTHKEY", "tskey-1"),
        ("TS_ADVERTISE_TAGS", "tag:idp, tag:web"),
    ]);
    let node = node.server.tailscale;
    assert_eq!(node.authkey.unwrap().reveal(), "tskey-1");
    assert_eq!(node.tags, ["tag:idp", "tag:web"]);
}

#[test]
fn a_switch_without_effect_is_told_where_it_is_on() {
    for name in [
        "TSIDP_DEBUG_ALL_REQUESTS",
        "TSIDP_DEBUG_TSNET",
        "TSIDP_USE_LOCAL_TAILSCALED",
    ] {
        let told = warning(&[(name, "1")]);
        assert!(
            told.starts_with(&format!("{name}: has no effect")),
            "{told}"
        );
        assert_eq!(remarks(&[ON, (name, "0")]), (vec![], vec![]));
        assert!(mistake(&[(name, "yes")]).starts_with(&format!("{name}=yes")));
    }
}

#[test]
fn a_name_that_tsidp_only_announces_is_told() {
    for (name, read) in [
        ("TSIDP_HOSTNAME", "TS_HOSTNAME"),
        ("TSIDP_STATE_DIR", "TS_STATE_DIR"),
    ] {
        let told = warning(&[(name, "x")]);
        let words = format!("{name}: not read, neither by tsidp nor here; {read} is");
        assert_eq!(told, words);
        assert_eq!(load(&[ON, (name, "x")]), load(&[ON]));
    }
}

const THEIRS: [(&str, &str); 9] = [
    ("TS_HOSTNAME", "login"),
    ("TS_STATE_DIR", "/data"),
    ("TS_ADVERTISE_TAGS", "tag:idp"),
    ("TSIDP_PORT", "8443"),
    ("TSIDP_USE_FUNNEL", "1"),
    ("TSIDP_LOCAL_PORT", "8080"),
    ("TSIDP_ENABLE_STS", "T"),
    ("TSIDP_LOG", "debug"),
    ("TSIDP_DEBUG_TSNET", "1"),
];

#[test]
fn they_count_only_where_the_provider_runs_and_ours_say_nothing() {
    let elsewhere = load(&THEIRS).unwrap();
    assert_eq!(elsewhere, load(&[]).unwrap());
    let ours = [
        ("TB_SERVER_TAILSCALE_HOSTNAME", "ours"),
        ("TB_SERVER_TAILSCALE_DIR", "/ours"),
        ("TB_SERVER_TAILSCALE_TAGS", "tag:ours"),
        ("TB_OIDC_DIR", "/ours/oidc"),
        ("TB_OIDC_TAKEOVER", "/ours/tsidp"),
        ("TB_OIDC_LISTEN", "tailnet+tls://:443"),
        ("TB_OIDC_TOKENEXCHANGE", "false"),
        ("TB_LOG_LEVEL", "error"),
    ];
    let both = [&THEIRS[..], &ours].concat();
    assert_eq!(with(&both), with(&ours));
}

/// `config show` with these variables.
fn shown(arguments: &[&str], variables: &[(&'static str, &'static str)]) -> Json {
    let arguments = [&["config", "show", "-o", "json"], arguments].concat();
    let ran = run(&arguments, variables);
    assert_eq!(ran.code, 0, "{}", ran.err);
    serde_json::from_str(&ran.out).unwrap()
}

#[test]
fn migrated_variables_mean_the_same() {
    let small = [("TSIDP_ENABLE_STS", "0")];
    for theirs in [&THEIRS[..], &small] {
        let ran = run(&["config", "migrate"], theirs);
        assert_eq!(ran.code, 0, "{}", ran.err);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tailbone.toml");
        std::fs::write(&file, &ran.out).unwrap();
        let migrated = shown(&["--config", file.to_str().unwrap()], &[]);
        assert_eq!(
            migrated,
            shown(&[], &[&[ON], theirs].concat()),
            "{}",
            ran.out
        );
    }
}

#[test]
fn a_migrated_file_names_the_variables_and_no_secret() {
    let theirs = [&THEIRS[..], &[("TS_AUTHKEY", "hush")]].concat();
    let ran = run(&["config", "migrate"], &theirs);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.err.contains("TSIDP_DEBUG_TSNET: has no effect"),
        "{}",
        ran.err
    );
    insta::assert_snapshot!("tsidp_migrated", ran.out);
}
