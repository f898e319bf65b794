use std::{path::Path, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::prelude::*;
use serde_json::json;

use super::*;

const NOW: i64 = 1_767_225_600;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn source(n: u8) -> KeySource {
    KeySource::Jwks {
        url: format!("https://keys.example/{n}"),
    }
}

fn policy(name: &str) -> ExchangePolicy {
    ExchangePolicy {
        name: name.into(),
        issuers: vec!["https://ci.example".into()],
        algorithms: vec![Algorithm::RS256],
        subject: None,
        audience: Audience::OneOf(vec!["us".into()]),
        source: source(0),
        scopes: vec!["acls".into()],
        conditions: vec![],
        max_age: None,
        require_exp: true,
        tags: vec![],
        any_tags: false,
        credentials: None,
    }
}

fn token(claims: &Value) -> ParsedToken {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let head = part(r#"{"alg":"RS256","kid":"k"}"#);
    ParsedToken::read(&format!(
        "{head}.{}.{}",
        part(&claims.to_string()),
        part("s")
    ))
    .unwrap()
}

fn claims() -> Value {
    json!({"iss": "https://ci.example", "sub": "repo:acme/infra", "aud": "us", "exp": NOW + 60, "iat": NOW - 60})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    match value {
        Value::Null => {
            claims.as_object_mut().unwrap().remove(name);
        }
        value => claims[name] = value,
    }
    claims
}

fn verdict(
    policies: &[ExchangePolicy],
    claims: &Value,
    scopes: &[&str],
) -> Result<String, RefusalReason> {
    verdict_of(policies, claims, scopes, &[], SignatureCheck::Valid)
}

fn verdict_of(
    policies: &[ExchangePolicy],
    claims: &Value,
    scopes: &[&str],
    tags: &[&str],
    signature: SignatureCheck,
) -> Result<String, RefusalReason> {
    let owned = |texts: &[&str]| -> Vec<String> { texts.iter().map(|t| (*t).to_owned()).collect() };
    let token = token(claims);
    let checked_token = CheckedToken {
        token: &token,
        signatures: vec![
            (source(0), signature),
            (source(1), SignatureCheck::NoMatchingKey),
        ],
    };
    let (scopes, tags) = (owned(scopes), owned(tags));
    let request = RequestedAccess {
        scopes: &scopes,
        tags: &tags,
    };
    match decide(policies, &checked_token, request, now(), Duration::ZERO).outcome {
        PolicyOutcome::Allowed(policy) => Ok(policy.name.clone()),
        PolicyOutcome::Refused(_, reason) => Err(reason),
    }
}

#[test]
fn each_rule_refuses_with_its_own_reason() {
    let strict = ExchangePolicy {
        subject: Some("repo:acme/infra".into()),
        max_age: Some(Duration::from_secs(120)),
        conditions: vec![ClaimCondition {
            claim: "ref".into(),
            wanted: vec![ClaimPattern::Glob("refs/heads/*".into())],
        }],
        tags: vec!["tag:ci".into()],
        ..policy("p")
    };
    let policies = [strict];
    let good = with("ref", json!("refs/heads/main"));
    let changed = |name: &str, value| {
        let mut claims = good.clone();
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value,
        }
        verdict(&policies, &claims, &["acls"]).map_err(|reason| reason.code())
    };
    assert_eq!(changed("x", json!(1)), Ok("p".into()));
    assert_eq!(
        changed("iss", json!("https://CI.example")),
        Err("no_policy")
    );
    assert_eq!(changed("iss", Value::Null), Err("no_policy"));
    assert_eq!(changed("exp", json!(NOW)), Err("expired"));
    assert_eq!(changed("exp", json!(NOW + 1)), Ok("p".into()));
    assert_eq!(changed("exp", Value::Null), Err("no_expiry"));
    assert_eq!(changed("exp", json!("9999999999")), Err("malformed_claim"));
    assert_eq!(changed("nbf", json!(NOW + 1)), Err("not_yet_valid"));
    assert_eq!(changed("nbf", json!(NOW)), Ok("p".into()));
    assert_eq!(changed("iat", json!(NOW - 121)), Err("too_old"));
    assert_eq!(changed("iat", json!(NOW + 1)), Err("not_yet_valid"));
    assert_eq!(changed("iat", Value::Null), Err("no_issue_time"));
    assert_eq!(changed("aud", json!("them")), Err("audience"));
    assert_eq!(changed("aud", Value::Null), Err("audience"));
    assert_eq!(changed("aud", json!(["them", "us"])), Ok("p".into()));
    assert_eq!(changed("aud", json!([1])), Err("malformed_claim"));
    assert_eq!(changed("sub", json!("repo:acme/infra2")), Err("subject"));
    assert_eq!(changed("sub", json!(7)), Err("malformed_claim"));
    assert_eq!(changed("ref", json!("refs/tags/v1")), Err("claim"));
    assert_eq!(changed("ref", Value::Null), Err("claim"));
    assert_eq!(changed("ref", json!(["x", "refs/heads/y"])), Ok("p".into()));
    let asked = |scopes: &[&str], tags: &[&str]| {
        verdict_of(&policies, &good, scopes, tags, SignatureCheck::Valid)
            .map_err(|reason| reason.code())
    };
    assert_eq!(asked(&[], &[]), Err("no_scope"));
    assert_eq!(asked(&["acls", "all"], &[]), Err("scope"));
    assert_eq!(asked(&["acls"], &["tag:prod"]), Err("tag"));
    assert_eq!(asked(&["acls"], &["tag:ci"]), Ok("p".into()));
    for (signature, code) in [
        (SignatureCheck::Invalid, "signature"),
        (SignatureCheck::NoKeys, "no_keys"),
        (SignatureCheck::NoMatchingKey, "unknown_key"),
    ] {
        let refused = verdict_of(&policies, &good, &["acls"], &[], signature);
        assert_eq!(refused.map_err(|reason| reason.code()), Err(code));
    }
}

#[test]
fn subjects_are_compared_as_the_original_did() {
    let of = |subject: Option<&str>, claims: &Value| {
        let policy = ExchangePolicy {
            subject: subject.map(str::to_owned),
            ..policy("p")
        };
        verdict(&[policy], claims, &["acls"]).is_ok()
    };
    assert!(of(None, &claims()));
    assert!(!of(Some(""), &claims()));
    assert!(of(Some(""), &with("sub", Value::Null)));
    assert!(of(Some(""), &with("sub", json!(""))));
    assert!(
        !of(Some("repo:acme/*"), &claims()),
        "a subject is no pattern"
    );
}

#[test]
fn the_narrowest_policy_grants_and_two_are_never_added_up() {
    let wide = ExchangePolicy {
        scopes: vec!["acls".into(), "routes".into()],
        ..policy("a-wide")
    };
    let other = ExchangePolicy {
        scopes: vec!["dns".into()],
        ..policy("z-other")
    };
    let policies = [wide, policy("m-narrow"), other];
    assert_eq!(
        verdict(&policies, &claims(), &["acls"]),
        Ok("m-narrow".into())
    );
    assert_eq!(
        verdict(&policies, &claims(), &["acls", "routes"]),
        Ok("a-wide".into())
    );
    assert!(verdict(&policies, &claims(), &["acls", "dns"]).is_err());
}

#[test]
fn the_refusal_that_came_furthest_is_told() {
    let policies = [
        ExchangePolicy {
            source: source(1),
            ..policy("unknown-key")
        },
        ExchangePolicy {
            scopes: vec!["dns".into()],
            ..policy("scope")
        },
        ExchangePolicy {
            subject: Some("other".into()),
            ..policy("subject")
        },
    ];
    assert_eq!(
        verdict(&policies, &claims(), &["acls"]),
        Err(RefusalReason::Scope("acls".into()))
    );
}

fn any_policy() -> impl Strategy<Value = ExchangePolicy> {
    let scopes = proptest::sample::subsequence(vec!["a", "b", "c"], 1..=3);
    let subject = proptest::option::of(proptest::sample::select(vec!["s", "t"]));
    (scopes, subject, 0..2_u8, any::<bool>(), any::<bool>()).prop_map(
        |(scopes, subject, keys, issuer, audience)| ExchangePolicy {
            issuers: vec![if issuer { "i" } else { "j" }.into()],
            audience: if audience {
                Audience::Any
            } else {
                Audience::OneOf(vec!["us".into()])
            },
            subject: subject.map(str::to_owned),
            source: source(keys),
            scopes: scopes.into_iter().map(str::to_owned).collect(),
            ..policy("p")
        },
    )
}

proptest! {
    #[test]
    fn what_is_allowed_is_allowed_by_one_policy_alone(
        policies in proptest::collection::vec(any_policy(), 0..5),
        subject in "[st]", issuer in "[ij]", audience in "us|them",
        scopes in proptest::sample::subsequence(vec!["a", "b", "c"], 0..=3),
    ) {
        let claims = json!({"iss": issuer, "sub": subject, "aud": audience, "exp": NOW + 1});
        let allows = |policy: &ExchangePolicy| {
            policy.issuers[0] == issuer
                && policy.source == source(0)
                && policy.subject.as_ref().is_none_or(|wanted| *wanted == subject)
                && (policy.audience == Audience::Any || audience == "us")
                && !scopes.is_empty()
                && scopes.iter().all(|scope| policy.scopes.iter().any(|known| known == scope))
        };
        let verdict_here = verdict(&policies, &claims, &scopes);
        prop_assert_eq!(verdict_here.is_ok(), policies.iter().any(allows));

        // Neither the order of the files nor an additional file can take a grant away.
        let mut turned = policies.clone();
        turned.reverse();
        prop_assert_eq!(verdict(&turned, &claims, &scopes).is_ok(), verdict_here.is_ok());
        // Nothing is allowed with a bad signature, whatever the policies say.
        let forged = verdict_of(&policies, &claims, &scopes, &[], SignatureCheck::Invalid);
        prop_assert!(forged.is_err());
    }

    #[test]
    fn time_only_ever_closes_a_token(exp in 0..1000_i64, later in 0..1000_i64) {
        let policies = [policy("p")];
        let expired = |at: i64| verdict(&policies, &with("exp", json!(NOW - 500 + exp - at)), &["acls"]).is_err();
        prop_assert!(!expired(0) || expired(later));
    }
}

fn load_files(files: &[(&str, &str)]) -> Result<LoadedPolicies, PolicyLoadError> {
    load_dir(files, false)
}

fn load_dir(files: &[(&str, &str)], strict: bool) -> Result<LoadedPolicies, PolicyLoadError> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    load(dir.path(), strict)
}

fn mistakes(result: Result<LoadedPolicies, PolicyLoadError>) -> Vec<String> {
    match result.unwrap_err() {
        PolicyLoadError::Mistakes(mistakes) => mistakes.iter().map(ToString::to_string).collect(),
        other => panic!("{other}"),
    }
}

const GO_NOW: &str = r#"
issuer = "http://localhost:8888"
algorithm = "RS256"
subject = "test"
jwks_url = "http://localhost:8888/jwks"
allowed_scopes = ["acls", "devices:read"]
"#;

const GO_FIRST: &str = r#"
Issuer = ["https://a.example", "https://b.example"]
Algorithm = "RS256"
JWKS_URL = "https://a.example/jwks"
allowed_scopes = ["acls"]
"#;

const RUST: &str = r#"
issuer = ["https://a.example"]
subject = "repo:acme/infra"
algorithm = "rs512"
jwks_url = "https://a.example/jwks"
[allowed_scopes]
devices = "write"
acls = "read"
"#;

#[test]
fn files_of_every_age_load_unchanged() {
    let loaded = load_files(&[
        ("a-go.toml", GO_NOW),
        ("b-early", GO_FIRST),
        ("c-rust.toml", RUST),
    ])
    .unwrap();
    let [now, first, rust] = loaded.policies.as_slice() else {
        panic!("{:?}", loaded.policies)
    };
    assert_eq!(now.issuers, ["http://localhost:8888"]);
    assert_eq!(now.subject.as_deref(), Some("test"));
    assert_eq!(now.scopes, ["acls", "devices:read"]);
    assert_eq!(now.audience, Audience::Any);
    assert_eq!(first.issuers.len(), 2);
    assert_eq!(rust.algorithms, [Algorithm::RS512]);
    assert_eq!(rust.scopes, ["acls:read", "devices", "devices:read"]);
    let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert!(
        warnings
            .iter()
            .any(|w| w.starts_with("a-go.toml: audience: ")),
        "{warnings:?}"
    );
    assert!(
        warnings.iter().any(|w| w.starts_with("b-early: subject: ")),
        "{warnings:?}"
    );
    assert!(
        !warnings.iter().any(|w| w.contains("without TLS")),
        "loopback needs none: {warnings:?}"
    );
}

#[test]
fn scopes_that_give_tags_are_refused_where_the_policy_names_none() {
    let asked = |policy: ExchangePolicy, scope: &str, tags: &[&str]| {
        let outcome = verdict_of(&[policy], &claims(), &[scope], tags, SignatureCheck::Valid);
        outcome.map_err(|reason| reason.code())
    };
    for scope in ["all", "auth_keys", "devices", "devices:core"] {
        let bare = ExchangePolicy {
            scopes: vec![scope.into(), "acls".into(), "devices:core:read".into()],
            ..policy("p")
        };
        assert_eq!(asked(bare.clone(), scope, &[]), Err("untagged"), "{scope}");
        assert_eq!(asked(bare.clone(), "acls", &[]), Ok("p".into()), "{scope}");
        assert_eq!(
            asked(bare.clone(), "devices:core:read", &[]),
            Ok("p".into())
        );
        let any = ExchangePolicy {
            any_tags: true,
            ..bare.clone()
        };
        assert_eq!(asked(any.clone(), scope, &[]), Ok("p".into()), "{scope}");
        assert_eq!(asked(any, scope, &["tag:x"]), Ok("p".into()), "{scope}");
        let named = ExchangePolicy {
            tags: vec!["tag:ci".into()],
            ..bare
        };
        assert_eq!(asked(named.clone(), scope, &[]), Ok("p".into()), "{scope}");
        assert_eq!(asked(named, scope, &["tag:x"]), Err("tag"), "{scope}");
    }
}

#[test]
fn a_policy_whose_scopes_give_tags_and_that_names_none_loads_with_a_warning_or_not_at_all() {
    let text = |scopes: &str, line: &str| {
        format!(
            "issuer = \"https://ci.example\"\nalgorithm = \"RS256\"\nsubject = \"me\"\naudience = \"us\"\n\
             allowed_scopes = [{scopes}]\n{line}\n"
        )
    };
    let warned = |scopes: &str, line: &str| {
        let loaded = load_dir(&[("a.toml", &text(scopes, line))], false).unwrap();
        loaded
            .warnings
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let told = warned("\"acls\", \"auth_keys\"", "");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("a.toml: tags: the scope auth_keys is refused"),
        "{told:?}"
    );
    assert!(told[0].contains("tags = \"any\""), "{told:?}");
    assert_eq!(warned("\"auth_keys\"", "tags = [\"tag:ci\"]"), [""; 0]);
    assert_eq!(warned("\"auth_keys\"", "tags = \"any\""), [""; 0]);
    assert_eq!(warned("\"acls\", \"devices:read\"", ""), [""; 0]);
    let strict = mistakes(load_dir(&[("a.toml", &text("\"all\"", ""))], true));
    assert!(strict[0].starts_with("a.toml: tags: "), "{strict:?}");
    let any = load_dir(&[("a.toml", &text("\"all\"", "tags = \"any\""))], true).unwrap();
    assert!(any.policies[0].any_tags && any.policies[0].tags.is_empty());
    let odd = mistakes(load_dir(
        &[("a.toml", &text("\"all\"", "tags = [\"any\"]"))],
        false,
    ));
    assert!(odd[0].contains("is not a tag"), "{odd:?}");
}

#[test]
fn an_address_of_keys_with_a_password_is_refused_and_not_told() {
    for (field, line) in [
        (
            "jwks_url",
            "jwks_url = \"https://u:hunter2@keys.example/jwks\"",
        ),
        (
            "jwks_url",
            "jwks_url = \"https://hunter2@keys.example/jwks\"",
        ),
        ("issuer", ""),
    ] {
        let issuer = match field {
            "issuer" => "https://u:hunter2@ci.example",
            _ => "https://ci.example",
        };
        let text = format!(
            "issuer = \"{issuer}\"\nalgorithm = \"RS256\"\nallowed_scopes = [\"acls\"]\n{line}\n"
        );
        let told = mistakes(load_files(&[("a.toml", &text)])).join("\n");
        assert!(
            told.contains(&format!("a.toml: {field}: a user or a password")),
            "{told}"
        );
        assert!(!told.contains("hunter2"), "{told}");
    }
}

#[test]
fn new_fields_are_read() {
    let text = r#"
description = "deployments of the main branch"
issuer = "https://token.actions.githubusercontent.com"
algorithms = ["RS256", "ES256", "PS384", "EdDSA"]
audience = ["https://sts.example", "sts"]
allowed_scopes = ["auth_keys"]
tags = ["tag:ci"]
max_token_age = "10m"
client_id = "k123"
client_secret_file = "secret"
[claims]
repository = "acme/infra"
run_attempt = [1, 2]
ref = { glob = "refs/heads/*" }
"/kubernetes.io/namespace" = ["a", { glob = "b-*" }]
"#;
    let loaded = load_dir(
        &[
            ("p.toml", text),
            ("secret.txt", "x"),
            ("secret", "tskey-client-s\n"),
        ],
        false,
    );
    // The secret's file is in the policies' directory and its name has no dot, so it is parsed as a
    // policy. The error does not quote it.
    let told = mistakes(loaded).join("\n");
    assert!(
        told.starts_with("secret: failed to unmarshal TOML") && !told.contains("tskey"),
        "{told}"
    );

    let text = text.replace("\"secret\"", "\".secret\"");
    let loaded = load_dir(&[("p.toml", &text), (".secret", "tskey-client-s\n")], true).unwrap();
    let policy = &loaded.policies[0];
    assert_eq!(
        policy.source,
        KeySource::Discovery {
            issuer: policy.issuers[0].clone()
        }
    );
    assert_eq!(policy.algorithms.len(), 4);
    assert_eq!(policy.max_age, Some(Duration::from_secs(600)));
    assert_eq!(policy.conditions.len(), 4);
    assert_eq!(
        policy.credentials.as_ref().unwrap().secret.reveal(),
        "tskey-client-s"
    );
    assert!(!format!("{policy:?}").contains("tskey"));
}

#[test]
fn a_mistake_is_one_line_whatever_the_keys_of_the_file_are_called() {
    let text = "\"a\\nb\" = 1\nissuer = \"\\u001b[2J\"\n[claims]\n\"c\\td\" = []\n";
    for told in mistakes(load_files(&[("a.toml", text)])) {
        assert!(!told.chars().any(char::is_control), "{told:?}");
    }
}

#[test]
fn all_mistakes_of_all_files_are_told_at_once() {
    let told = mistakes(load_files(&[
        (
            "a.toml",
            "issuer = \"\"\nalgorithm = \"HS256\"\njwks_url = \"\"\nallowed_scopes = []",
        ),
        (
            "b.toml",
            "issuer = 7\nalgorithm = \"none\"\nallowed_scope = [\"acls\"]\nsubject = [\"x\"]",
        ),
        ("c.toml", "issuer = "),
        (
            "d.toml",
            "issuer = \"i\"\nISSUER = \"j\"\nalgorithm = \"RS256\"\njwks_url = \"ftp://x\"\nallowed_scopes = [\"acls all\"]\ntags = [\"ci\"]\naudience = []\nmax_token_age = \"soon\"\nrequire_exp = 1\nclient_id = \"x\"\n[claims]\na = []\nb = { like = \"x\" }\nc = 1.5",
        ),
    ]));
    let starts = [
        "a.toml: issuer: no issuer",
        "a.toml: algorithm: unsupported algorithm",
        "a.toml: jwks_url: no JWKS URL",
        "a.toml: allowed_scopes: no scopes",
        "b.toml: issuer: neither a text",
        "b.toml: algorithm: unsupported algorithm",
        "b.toml: allowed_scope: unknown field; did you mean allowed_scopes?",
        "b.toml: allowed_scopes: no scopes",
        "b.toml: subject: not a text",
        "c.toml: failed to unmarshal TOML",
        "d.toml: jwks_url: unparsable JWKS URL",
        "d.toml: allowed_scopes: \"acls all\" is not a scope",
        "d.toml: tags: \"ci\" is not a tag",
        "d.toml: audience: an audience must not be empty",
        "d.toml: max_token_age: not a duration",
        "d.toml: require_exp: neither true",
        "d.toml: client_secret_file: required",
        "d.toml: claims.a: an empty list",
        "d.toml: claims.b: a table here",
        "d.toml: claims.c: not a text",
    ];
    for start in starts {
        let found = told.iter().any(|line| line.starts_with(start));
        assert!(found, "{start}\n{told:#?}");
    }
    // The parser decides which of the two spellings counts as the second.
    assert!(
        told.iter().any(|line| line.contains("occurs twice")),
        "{told:#?}"
    );
}

#[test]
fn strict_takes_warnings_for_mistakes() {
    let told = mistakes(load_dir(&[("a.toml", GO_NOW)], true));
    assert_eq!(told.len(), 1);
    assert!(told[0].starts_with("a.toml: audience: "), "{told:?}");
}

#[test]
fn a_directory_without_policies_is_told() {
    assert!(
        load_files(&[])
            .unwrap_err()
            .to_string()
            .starts_with("no policies found in directory")
    );
    let missing = load(Path::new("/nonexistent/policies"), false).unwrap_err();
    assert!(missing.to_string().starts_with("failed to read directory"));
}
