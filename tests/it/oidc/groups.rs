//! The claim `groups`: from grants, from a file, and from Tailscale's API.

use std::{fs, time::Instant};

use tailbone::{
    config::{Credentials, Secret, TailnetGroupSettings},
    oidc::groups::MAX_AGE,
    telemetry::readiness::LatchState,
};
use testkit::token_endpoint::{ID, SECRET as API_SECRET, TokenEndpoint, Trouble};

use super::*;

const FILE: &str = r#"
[groups]
staff = ["alice@example.com", "*@staff.example.com"]
admins = ["alice@example.com"]
others = ["bob@example.com"]
"#;

const WITH_GROUPS: (&str, &str) = ("scope", "openid groups");

fn policy_file(groups: Value) -> String {
    json!({"groups": groups, "acls": []}).to_string()
}

fn tailnet_groups(api: &TokenEndpoint) -> Arc<TailnetGroups> {
    let settings = TailnetGroupSettings {
        api: api.api().parse().unwrap(),
        client: Credentials {
            id: ID.to_owned(),
            secret: Secret::new(API_SECRET),
        },
    };
    Arc::new(TailnetGroups::new(&settings).unwrap())
}

/// The groups in the ID token, in UserInfo and in introspection.
async fn told(server: &OidcServer, person: &mut Connection) -> [Value; 3] {
    let tokens = tokens(person, &[WITH_GROUPS]).await;
    let id_token = server.verified(tokens["id_token"].as_str().unwrap()).await;
    let userinfo = userinfo(person, &tokens["access_token"]).await.json();
    let pairs = [("token", tokens["access_token"].as_str().unwrap())];
    let introspected = person.send(form("/introspect", &pairs)).await.json();
    [id_token, userinfo, introspected].map(|claims| claims["groups"].clone())
}

#[tokio::test]
async fn groups_of_grants_and_of_a_file_are_told_to_those_who_ask() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("groups.toml");
    fs::write(&path, FILE).unwrap();
    let server = OidcServer::with_groups(Groups {
        file: Some(LoginRuleFile::open(Some(&path), "").unwrap()),
        tailnet: None,
    })
    .await;
    let granted =
        |identity: Identity| identity.cap(CAPABILITY, json!({"groups": ["wiki", "staff"]}));
    let mut alice = server.person("alice", granted).await;
    for groups in told(&server, &mut alice).await {
        assert_eq!(groups, json!(["wiki", "staff", "admins"]));
    }
    let plain = tokens(&mut alice, &[]).await;
    let claims = server.verified(plain["id_token"].as_str().unwrap()).await;
    assert!(claims.get("groups").is_none(), "{claims}");
    let mut carol = server.person("carol", |identity| identity).await;
    for groups in told(&server, &mut carol).await {
        assert_eq!(groups, Value::Null, "nobody's groups are left out");
    }

    // A refresh tells the groups of that moment.
    let before = tokens(&mut alice, &[WITH_GROUPS]).await;
    fs::write(&path, FILE.replace("admins = [\"alice", "admins = [\"dave")).unwrap();
    let file = server.groups.file.as_ref().unwrap();
    file.tick().unwrap();
    let after = refresh(&mut alice, &before["refresh_token"], &[])
        .await
        .json();
    let claims = server.verified(after["id_token"].as_str().unwrap()).await;
    assert_eq!(claims["groups"], json!(["wiki", "staff"]));
}

#[tokio::test]
async fn discovery_tells_the_scope_and_the_claim() {
    let server = OidcServer::open().await;
    let path = "/.well-known/openid-configuration";
    let document = server.outside().await.get(path).await.json();
    for list in ["scopes_supported", "claims_supported"] {
        let names = document[list].as_array().unwrap();
        assert!(names.contains(&json!("groups")), "{list}: {names:?}");
    }
}

#[tokio::test]
async fn groups_of_the_tailnets_policy_file_come_from_the_api() {
    let api = TokenEndpoint::start().await;
    api.set_policy(
        200,
        policy_file(json!({
            "group:eng": ["alice@example.com", "group:other", "autogroup:member"],
            "group:all": ["*@example.com"],
            "group:ops": ["bob@example.com"],
        })),
    );
    let groups = tailnet_groups(&api);
    groups.ask(Instant::now()).await;
    let server = OidcServer::with_groups(Groups {
        file: None,
        tailnet: Some(groups.clone()),
    })
    .await;
    for groups in told(&server, &mut server.alice().await).await {
        assert_eq!(groups, json!(["all", "eng"]));
    }
    // The login of another tailnet's user may be the same, and is not the same person's word.
    let foreign = |identity| Identity {
        same_tailnet: false,
        ..identity
    };
    let (_, mut other) = server.device("alice", foreign).await;
    for groups in told(&server, &mut other).await {
        assert_eq!(groups, Value::Null);
    }
    assert_eq!(groups.state(Instant::now()), LatchState::Released);
    let asked = api.requests();
    assert!(
        asked
            .iter()
            .all(|one| one.value("scope") == Some("policy_file:read")),
        "{asked:?}"
    );
}

#[tokio::test]
async fn before_the_first_answer_a_login_with_groups_waits_and_others_do_not() {
    let api = TokenEndpoint::start().await;
    api.trouble(Trouble::Answer(503, "{}"));
    let groups = tailnet_groups(&api);
    let server = OidcServer::with_groups(Groups {
        file: None,
        tailnet: Some(groups.clone()),
    })
    .await;
    groups.ask(Instant::now()).await;
    assert!(matches!(
        groups.state(Instant::now()),
        LatchState::Degraded(why) if why.contains("no token")
    ));
    let mut alice = server.alice().await;
    let fields = answer_of(&alice.get(&asking("silent", &[WITH_GROUPS])).await);
    assert_eq!(field(&fields, "error"), "temporarily_unavailable");
    let plain = tokens(&mut alice, &[]).await;
    assert!(plain["id_token"].is_string());

    api.set_policy(
        200,
        policy_file(json!({"group:eng": ["alice@example.com"]})),
    );
    groups.ask(Instant::now()).await;
    for groups in told(&server, &mut alice).await {
        assert_eq!(groups, json!(["eng"]));
    }
}

#[tokio::test]
async fn the_last_answer_counts_while_the_api_is_away_but_not_for_ever() {
    let api = TokenEndpoint::start().await;
    api.set_policy(
        200,
        policy_file(json!({"group:eng": ["alice@example.com"]})),
    );
    let groups = tailnet_groups(&api);
    let start = Instant::now();
    groups.ask(start).await;
    let caller = tailbone::identity::Visitor::from_whois(
        tailbone::tailnet::WhoIs {
            node: tailbone::tailnet::WhoIsNode {
                name: "laptop".into(),
                ..Default::default()
            },
            user: tailbone::tailnet::WhoIsUser {
                login: "alice@example.com".into(),
                ..Default::default()
            },
            same_tailnet: true,
            ..Default::default()
        },
        "example.ts.net",
    )
    .unwrap();
    let all = Groups {
        file: None,
        tailnet: Some(groups.clone()),
    };
    let at = |time| all.of(&caller, time);
    for answer in [
        (500, "{}".to_owned()),
        (200, "// HuJSON".to_owned()),
        (200, json!({"groups": {"group:eng": "alice"}}).to_string()),
        (200, format!("{{\"x\": \"{}\"}}", "a".repeat(5 << 20))),
    ] {
        api.set_policy(answer.0, answer.1);
        groups.ask(start + Duration::from_secs(600)).await;
        let late = start + MAX_AGE;
        assert_eq!(at(late), Some(vec!["eng".to_owned()]));
        assert!(
            matches!(groups.state(late), LatchState::Degraded(why) if why.starts_with("groups may be old"))
        );
        let too_late = late + Duration::from_secs(1);
        assert_eq!(at(too_late), None);
        assert!(
            matches!(groups.state(too_late), LatchState::Degraded(why) if why.starts_with("logins with groups wait"))
        );
    }
}
