//! Variables that are no settings, and variables of other programs that count as ours.

use std::path::Path;

use tailbone::config::LogFormat;

use super::{Ran, addresses, load, remarks, run, warning, with_file};

#[test]
fn a_variable_with_the_name_of_a_group_is_told_and_not_read() {
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

#[test]
fn tsnets_variable_of_the_auth_key_counts_where_ours_are_not_given() {
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
fn tsnets_other_variables_are_not_read_and_a_warning_says_so() {
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
    assert_eq!(addresses(&on.sts.listen), ["tailnet://:9000"]);
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
        addresses(&own.sts.listen),
        ["tailnet://:9001"],
        "our own name wins"
    );
    let off = with(&[("TB_COMPONENTS", "issuer")]);
    assert_eq!(addresses(&off.sts.listen), ["tailnet://:8080"]);
    assert_eq!(off.sts.credentials, None);
    assert_eq!(off.log.format, LogFormat::Console);
}
