//! What each kind of value may be. Quirks of the Go program are kept with a warning, or refused
//! with an explanation.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, time::Duration};

use tailbone::config::{
    self, Component, Environment, Flags, LogFormat, LogLevel, Purpose, RawSettings, table,
};

use super::{Ran, addresses, client, load, mistake, remarks, run, warning, with_file};

#[test]
fn components_are_separated_by_commas_blanks_or_both() {
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
        load(&[("TB_KEYS_EXPIRY", "20m\n")])
            .unwrap()
            .keys
            .token
            .expiry,
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
            load(&[("TB_SERVER_PORT", text)]).map(|settings| addresses(&settings.server.listen)),
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
    assert!(mistake("TB_KEYS_ALGORITHM", "HS256").contains("RS256, ES256, ES384, ES512, EdDSA"));
}

#[test]
fn switches_take_the_words_of_go() {
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
fn addresses_hosts_and_tags_of_another_form_are_refused() {
    for text in [
        "headscale.example.com",
        "ftp://x",
        "https://",
        "http://a b",
        "https:///x",
        "https://a.example.86/",
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
fn values_that_are_too_long_or_no_plain_text_are_refused() {
    for row in table::ALL {
        let (_, mistakes) = remarks(&[(&row.variable(), &"x".repeat(5000))]);
        assert_eq!(mistakes.len(), 1, "{}: {mistakes:?}", row.key);
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
        &RawSettings::collect(Flags::default(), &environment, None),
        Purpose::Start,
    )
    .unwrap_err();
    assert_eq!(mistakes.to_string(), "TB_KEYS_ISSUER: not text in UTF-8");
}
