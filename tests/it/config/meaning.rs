//! What settings of the node and of components mean together.

use serde_json::json;
use tailbone::{
    config::{Publish, Secret},
    keys::remote::{ServiceKind, vault::VaultToken},
};

use super::{Ran, load, mistake, remarks, run, show, warning};

#[test]
fn a_signing_service_needs_its_address_and_its_token() {
    let told = |variables: &[(&str, &str)]| load(variables).unwrap_err().to_string();
    let vault = ("TB_KEYS_SIGNER", "vault");
    let address = ("TB_KEYS_VAULT_ADDRESS", "https://vault.example.com/base/");
    let words = told(&[vault]);
    assert!(
        words.contains("TB_KEYS_SIGNER: vault needs keys.vault.address"),
        "{words}"
    );
    let words = told(&[vault, address]);
    assert!(
        words.contains("TB_KEYS_SIGNER: vault needs keys.vault.token"),
        "{words}"
    );
    let words = told(&[("TB_KEYS_SIGNER", "pkcs11"), ("TB_KEYS_PKCS11_TOKEN", "x")]);
    assert!(words.contains("needs keys.pkcs11.module"), "{words}");
    for (variable, value) in [
        ("TB_KEYS_VAULT_MOUNT", "a/../b"),
        ("TB_KEYS_VAULT_KEY", "a/b"),
        ("TB_KEYS_VAULT_KEY", "{alg}"),
    ] {
        let words = told(&[(variable, value)]);
        assert!(words.contains("not "), "{words}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "hush\n").unwrap();
    let path = file.to_str().unwrap();
    let settings = load(&[vault, address, ("TB_KEYS_VAULT_TOKEN_FILE", path)]).unwrap();
    let signer = settings.keys.signer;
    assert_eq!(signer.maker, Some(ServiceKind::Vault));
    // The file is kept, because another program writes the next token there.
    assert_eq!(signer.vault.unwrap().token, VaultToken::File(file));
    let fixed = load(&[vault, address, ("TB_KEYS_VAULT_TOKEN", "hush")]).unwrap();
    let token = fixed.keys.signer.vault.unwrap().token;
    assert_eq!(token, VaultToken::Fixed(Secret::new("hush")));
}

#[test]
fn the_node_may_join_with_a_client_instead_of_a_key() {
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
fn the_nodes_state_is_in_a_directory_in_memory_or_in_kubernetes() {
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
fn the_jwks_is_published_in_a_bucket_or_a_file() {
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
fn contradictions_of_the_exchange_are_told_with_all_other_mistakes() {
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
fn the_gates_issuer_is_made_from_the_issuers_name() {
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
