//! Who may log in to which application: at the login, at each refresh and at an exchange.

use std::fs;

use tailbone::cli::layout::Layout;
use tailbone_oidc::device::DEVICE_CODE_GRANT;

use super::{pages::Browser, *};

const RULES: &str = r#"
contact = "it@example.com"

[groups]
staff = ["alice@example.com"]

[[rule]]
name = "leavers"
decision = "deny"
who = ["mallory@example.com"]

[[rule]]
name = "staff"
decision = "allow"
who = ["group:staff", "mallory@example.com"]
clients = ["sil*", "asking"]
registered = false

[[rule]]
name = "any app of their own"
decision = "allow"
who = ["carol@example.com"]
registered = true
"#;

fn rules(text: &str) -> LoginRuleFile {
    LoginRuleFile::fixed(LoginRules::parse(text, LOGIN_CAPABILITY).unwrap())
}

fn exchange(subject: &Value) -> Request<Full<Bytes>> {
    let pairs = [
        (
            "grant_type",
            "urn:ietf:params:oauth:grant-type:token-exchange",
        ),
        ("subject_token", subject.as_str().unwrap()),
        (
            "subject_token_type",
            "urn:ietf:params:oauth:token-type:access_token",
        ),
        ("audience", RESOURCE),
    ];
    form("/token", &pairs)
}

/// A login of the client `public`, which must use PKCE.
fn public() -> String {
    let challenge = ("code_challenge", CHALLENGE);
    asking("public", &[challenge, ("code_challenge_method", "S256")])
}

/// What a browser shows for a login.
async fn seen(connection: &mut Connection, path: &str) -> Answer {
    let request = with(
        request("GET", path),
        "accept",
        "text/html,application/xhtml+xml",
    );
    let request = with(request, "sec-fetch-mode", "navigate");
    connection.send(request).await
}

/// What the client hears from somebody without a browser.
async fn error_of(connection: &mut Connection, path: &str) -> (String, String) {
    let fields = answer_of(&connection.get(path).await);
    let of = |name| field(&fields, name).to_owned();
    (of("error"), of("error_description"))
}

fn refused() -> (String, String) {
    let words = "the person may not log in to this application";
    ("access_denied".into(), words.into())
}

#[tokio::test]
async fn without_rules_everybody_logs_in_as_with_tsidp() {
    let server = OidcServer::open().await;
    code(&mut server.alice().await, &asking("silent", &[])).await;
    let foreign = |identity| Identity {
        same_tailnet: false,
        ..identity
    };
    let mut eve = server.person("eve", foreign).await;
    code(&mut eve, &asking("silent", &[])).await;
}

#[tokio::test]
async fn a_file_of_rules_says_who_logs_in_where() {
    let server = OidcServer::with_rules(rules(RULES)).await;
    let mut alice = server.alice().await;
    code(&mut alice, &asking("silent", &[])).await;
    assert_eq!(error_of(&mut alice, &public()).await, refused());
    for name in ["bob", "mallory", "carol"] {
        let mut person = server.person(name, |identity| identity).await;
        let told = error_of(&mut person, &asking("silent", &[])).await;
        assert_eq!(told, refused(), "{name}");
    }
    // Shared devices need a rule that names them, as everywhere in the rule language.
    let foreign = |identity| Identity {
        same_tailnet: false,
        ..identity
    };
    let (_, mut other) = server.device("alice", foreign).await;
    assert_eq!(
        error_of(&mut other, &asking("silent", &[])).await,
        refused()
    );
}

#[tokio::test]
async fn the_person_reads_which_rule_it_was_and_whom_to_ask() {
    let server = OidcServer::with_rules(rules(RULES)).await;
    for (name, words) in [
        ("mallory", "<code>rule:leavers</code>"),
        ("bob", "No rule of this server allows it"),
    ] {
        let mut person = server.person(name, |identity| identity).await;
        let page = seen(&mut person, &asking("asking", &[])).await;
        assert_eq!(page.status(), 403, "{page:?}");
        let text = page.text();
        for shown in [
            words,
            "You may not log in to The asking application",
            &format!("<b>{name}@example.com</b>"),
            "href=\"mailto:it@example.com\"",
        ] {
            assert!(text.contains(shown), "{shown}: {text}");
        }
        let back = text.split("href=\"https://app").nth(1).unwrap();
        let back = back.split('"').next().unwrap();
        assert!(
            back.contains("error=access_denied") && back.contains("state=st%26te"),
            "{back}"
        );
        assert!(page.header("set-cookie").is_empty());
        // A client that wants no page gets none.
        let quiet = seen(&mut person, &asking("asking", &[("prompt", "none")])).await;
        assert_eq!(field(&answer_of(&quiet), "error"), "access_denied");
        let posted = asking("asking", &[("response_mode", "form_post")]);
        let text = seen(&mut person, &posted).await.text();
        assert!(
            text.contains("name=\"error\" value=\"access_denied\""),
            "{text}"
        );
    }
}

#[tokio::test]
async fn clients_that_registered_themselves_can_be_told_apart() {
    let server = OidcServer::with_rules(rules(RULES)).await;
    let mut admin = server
        .person("admin", |identity| {
            identity.cap(CAPABILITY, json!({"allow_dcr": true}))
        })
        .await;
    let body = json!({"redirect_uris": [APP]}).to_string();
    let (parts, _) = request("POST", "/register").into_parts();
    let registered = admin
        .send(Request::from_parts(parts, Full::from(body)))
        .await;
    let id = registered.json()["client_id"].as_str().unwrap().to_owned();
    let mut carol = server.person("carol", |identity| identity).await;
    let page = seen(&mut carol, &asking(&id, &[])).await;
    assert_eq!(page.status(), 200, "{page:?}");
    let mut alice = server.alice().await;
    assert_eq!(error_of(&mut alice, &asking(&id, &[])).await, refused());
}

#[tokio::test]
async fn grants_of_the_tailnets_policy_come_before_the_file() {
    let server = OidcServer::with_rules(rules(RULES)).await;
    let granted = |value: Value| move |identity: Identity| identity.cap(LOGIN_CAPABILITY, value);
    let allow = json!({"clients": ["silent"]});
    let mut bob = server.person("bob", granted(allow)).await;
    code(&mut bob, &asking("silent", &[])).await;
    assert_eq!(error_of(&mut bob, &public()).await, refused());
    for value in [
        json!({"decision": "deny"}),
        json!({"decision": "allow", "client": ["silent"]}),
    ] {
        let (_, mut alice) = server.device("alice", granted(value.clone())).await;
        let told = error_of(&mut alice, &asking("silent", &[])).await;
        assert_eq!(told, refused(), "{value}");
    }
}

#[tokio::test]
async fn a_denying_grant_counts_without_a_file_too() {
    let server = OidcServer::open().await;
    let grant = json!({"decision": "deny", "clients": ["silent"]});
    let mut alice = server
        .person("alice", |identity| identity.cap(LOGIN_CAPABILITY, grant))
        .await;
    assert_eq!(
        error_of(&mut alice, &asking("silent", &[])).await,
        refused()
    );
    code(&mut alice, &public()).await;
}

#[tokio::test]
async fn a_changed_rule_ends_refreshes_and_exchanges() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("logins.toml");
    fs::write(&path, RULES).unwrap();
    let file = LoginRuleFile::open(Some(&path), LOGIN_CAPABILITY).unwrap();
    let server = OidcServer::with_rules(file).await;
    let mut alice = server.person("alice", mcp).await;
    let before = tokens(&mut alice, &[]).await;
    let good = refresh(&mut alice, &before["refresh_token"], &[]).await;
    assert_eq!(good.status(), 200, "{good:?}");
    let tokens = good.json();
    let exchanged = alice.send(exchange(&tokens["access_token"])).await;
    assert_eq!(exchanged.status(), 200, "{exchanged:?}");
    // The person may log in at the client that exchanges, too.
    let elsewhere = with(
        exchange(&tokens["access_token"]),
        "authorization",
        &basic("elsewhere"),
    );
    server
        .add("elsewhere", AuthMethod::ClientSecretBasic, Login::Silent)
        .await;
    let words = "the person may not log in to this application";
    let denied = is(403, "access_denied", words);
    assert_eq!(refusal(&alice.send(elsewhere).await), denied);

    fs::write(
        &path,
        RULES.replace("\"alice@example.com\"", "\"bob@example.com\""),
    )
    .unwrap();
    server.access.rules.reload().unwrap();
    let exchanged = alice.send(exchange(&tokens["access_token"])).await;
    assert_eq!(refusal(&exchanged), denied);
    let ended = refresh(&mut alice, &tokens["refresh_token"], &[]).await;
    assert_eq!(refusal(&ended), is(400, "invalid_grant", words));
    // The login is over, whatever the rules say later.
    fs::write(&path, RULES).unwrap();
    server.access.rules.reload().unwrap();
    let over = refresh(&mut alice, &tokens["refresh_token"], &[]).await;
    assert_eq!(
        refusal(&over),
        is(400, "invalid_grant", "invalid refresh token")
    );
}

#[tokio::test]
async fn a_device_is_refused_where_its_person_may_not_log_in() {
    let server = OidcServer::with_rules(rules(RULES)).await;
    let registered = |metadata: &mut ClientMetadata| {
        metadata.grant_types = vec![DEVICE_CODE_GRANT.into()];
        metadata.redirect_uris.clear();
    };
    server.add_with("tv", AuthMethod::None, registered).await;
    let mut outside = server.outside().await;
    let begun = form("/device_authorization", &[("client_id", "tv")]);
    let device = outside.send(begun).await.json();
    let mut alice = Browser::of(&server, "alice").await;
    let entry = alice.get("/device").await;
    let token = super::pages::hidden(&entry, "confirm");
    let pairs = [
        ("confirm", token.as_str()),
        ("user_code", device["user_code"].as_str().unwrap()),
        ("decision", "continue"),
    ];
    let page = alice
        .send(with(form("/device", &pairs), "origin", ISSUER))
        .await;
    let text = page.text();
    for shown in [
        "The device is not connected",
        "No rule of this server allows it",
        "href=\"mailto:it@example.com\"",
    ] {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    let polling = [
        ("grant_type", DEVICE_CODE_GRANT),
        ("device_code", device["device_code"].as_str().unwrap()),
        ("client_id", "tv"),
    ];
    let (status, code, _) = refusal(&outside.send(form("/token", &polling)).await);
    assert_eq!((status, code.as_str()), (400, "access_denied"));
}

fn policy(arguments: &[&str]) -> (u8, String, String) {
    crate::gate::command::run(Layout::PIPE, "--oidc-policy", RULES, arguments)
}

#[test]
fn policy_test_says_who_logs_in_by_which_rule_or_which_would_have_to_change() {
    for (arguments, sentence) in [
        (
            &["--as", "alice@example.com", "--client", "silent"][..],
            "allow: rule \"staff\" (line 12) lets alice@example.com log in to silent",
        ),
        (
            &["--as", "bob@example.com", "--client", "silent"],
            "deny: no rule lets bob@example.com log in to silent; the nearest, rule \"staff\" \
             (line 12), would have to change: not for this caller",
        ),
        (
            &["--as", "mallory@example.com", "--client", "silent"],
            "deny: rule \"leavers\" (line 7) keeps mallory@example.com out of silent and would \
             have to change",
        ),
        (
            &[
                "--as",
                "carol@example.com",
                "--client",
                "0123",
                "--registered",
            ],
            "allow: rule \"any app of their own\" (line 19) lets carol@example.com log in to 0123",
        ),
        (
            &["--node", "ci", "--client", "silent"],
            "deny: no rule lets a machine with tag:ci log in to silent",
        ),
    ] {
        let (code, out, err) = policy(&[&["test"], arguments].concat());
        let said = out.split("  Rules").next().unwrap_or_default();
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(sentence), "{arguments:?}: {said}\n{err}");
        assert_eq!(code, 0, "{err}");
    }
    let expected = ["test", "--as", "bob@example.com", "--client", "silent"];
    let (code, ..) = policy(&[&expected[..], &["--expect", "allow"]].concat());
    assert_ne!(code, 0);
}

#[test]
fn without_rules_policy_test_says_what_counts_then() {
    let run = |more: &[&str]| {
        let usual = ["test", "--as", "bob@example.com", "--client", "silent"];
        let arguments = [&usual[..], more].concat();
        // A file of rules for workload tokens has no say here.
        let (_, out, _) =
            crate::gate::command::run(Layout::PIPE, "--workload-policy", "", &arguments);
        out.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let said = run(&[]);
    let sentence = "allow: bob@example.com may log in to silent, since no rule decides";
    assert!(said.contains(sentence), "{said}");
    let said = run(&["--oidc-require-rule"]);
    assert!(
        said.contains("deny: no rule lets bob@example.com log in"),
        "{said}"
    );
}

#[test]
fn mistakes_in_the_file_end_the_check() {
    let wrong = "contact = 7\n[[rule]]\ndecision = \"anonymous\"\nclient = [\"a\"]\n";
    let (code, _, err) =
        crate::gate::command::run(Layout::PIPE, "--oidc-policy", wrong, &["check"]);
    assert_ne!(code, 0);
    for mistake in [
        "line 1: contact: must be a string",
        "line 3: rule[1].decision: \"anonymous\" is not allow or deny",
        "line 4: rule[1].client: is not known here",
    ] {
        assert!(err.contains(mistake), "{mistake}: {err}");
    }
    assert_eq!(policy(&["check"]).0, 0);
}

#[tokio::test]
async fn a_clients_own_entry_admits_whom_it_names_and_nobody_else() {
    let open = OidcServer::open().await;
    let ruled = OidcServer::with_rules(rules(RULES)).await;
    for (server, client, words) in [
        (&open, "own", &["alice@example.com"][..]),
        (&open, "unreadable", &["tag:ci"]),
        (&ruled, "wiki", &["group:staff", "mallory@example.com"]),
        (&ruled, "silo", &["*@example.com", "group:none"]),
        (&ruled, "sillier", &["bob@example.com"]),
    ] {
        let change = |metadata: &mut ClientMetadata| {
            metadata.login = Some(Login::Silent);
            metadata.access = words.iter().map(|&word| word.to_owned()).collect();
        };
        let method = AuthMethod::ClientSecretBasic;
        server.add_with(client, method, change).await;
    }
    for (server, client, login, admitted) in [
        (&open, "own", "alice", true),
        (&open, "own", "bob", false),
        (&open, "silent", "bob", true),
        (&open, "unreadable", "alice", false),
        // No rule decides about it.
        (&ruled, "wiki", "alice", true),
        (&ruled, "wiki", "bob", false),
        // A rule denies.
        (&ruled, "wiki", "mallory", false),
        (&ruled, "silo", "bob", true),
        // A rule allows.
        (&ruled, "sillier", "alice", false),
        (&ruled, "sillier", "bob", true),
    ] {
        let mut person = server.person(login, |identity| identity).await;
        let path = asking(client, &[]);
        if admitted {
            code(&mut person, &path).await;
        } else {
            assert_eq!(
                error_of(&mut person, &path).await,
                refused(),
                "{login} {client}"
            );
        }
    }
}
