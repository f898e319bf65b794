//! Where components listen, and addresses that two of them cannot share.

use super::{Ran, addresses, load, mistake, remarks, run, warning};

#[test]
fn listeners_are_given_or_made_from_the_older_settings() {
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
    assert_eq!(addresses(&older.gate.listen), ["tailnet://100.64.0.1:8082"]);
    assert_eq!(
        addresses(&older.gate.auth.listen),
        [
            "tailnet://100.64.0.1:8083",
            "unix:///run/gate.sock?mode=0660"
        ]
    );
    assert_eq!(addresses(&older.metrics.listen), ["http://127.0.0.1:9090"]);
    assert_eq!(
        addresses(&older.sts.listen),
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
        addresses(&typed.gate.listen),
        ["http://127.0.0.1:1", "unix:///run/x?mode=0666"]
    );
    assert_eq!(
        addresses(&typed.sts.listen),
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
fn a_binding_is_auto_or_an_address_of_the_node() {
    for text in ["auto", "AUTO", " "] {
        let settings = load(&[("TB_SERVER_BINDING", text)]).unwrap();
        assert_eq!(addresses(&settings.server.listen), ["tailnet://:80"]);
    }
    let ran = run(&["config", "check", "--binding", ""], &[]);
    assert_eq!(ran.err, "The settings are fine\n");
    for text in ["100.64.0.7", "fd7a:115c:a1e0::7", "[fd7a:115c:a1e0::7]"] {
        let settings = load(&[("TB_ADMIN_BINDING", text)]).unwrap();
        let ip = text.trim_matches(['[', ']']).parse().unwrap();
        let addr = std::net::SocketAddr::new(ip, 50051);
        assert_eq!(
            addresses(&settings.admin.listen),
            [format!("tailnet://{addr}")]
        );
    }
    for text in ["0.0.0.0", "::", "[::]"] {
        assert!(warning("TB_SERVER_BINDING", text).contains("taken as auto"));
        let settings = load(&[("TB_SERVER_BINDING", text)]).unwrap();
        assert_eq!(addresses(&settings.server.listen), ["tailnet://:80"]);
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
fn what_has_nothing_for_the_internet_does_not_stand_on_funnel() {
    let check = |more: &[&str]| {
        let mut all = vec![
            "config",
            "check",
            "--components=issuer,admin,metrics,gate,sts",
        ];
        all.extend([
            "--gate-upstream=http://127.0.0.1:3000",
            "--gate-auth-proxies=tag:web",
        ]);
        all.extend(more);
        run(&all, &[])
    };
    for (flag, component) in [
        ("--admin-listen=funnel://:443", "admin API"),
        ("--metrics-listen=funnel://:443", "metrics"),
        (
            "--gate-auth-listen=funnel://:443",
            "the gate's forward-auth",
        ),
    ] {
        let Ran {
            code, err: said, ..
        } = check(&[flag]);
        assert_eq!(code, 64, "{flag}: {said}");
        let words = format!("{component} has nothing for the internet: it cannot stand on Funnel");
        assert!(said.contains(&words), "{flag}: {said}");
    }
    let fine = [
        "--listen=funnel://:443",
        "--gate-listen=funnel://:8443",
        "--sts-listen=funnel://:10000",
    ];
    let Ran {
        code, err: said, ..
    } = check(&fine);
    assert_eq!(code, 0, "{said}");
    let Ran {
        code, err: said, ..
    } = check(&["--listen=funnel://:443", "--sts-listen=funnel://:443"]);
    assert_eq!(
        (code, said.contains("issuer and sts need two ports")),
        (64, true),
        "{said}"
    );
}
