//! Who gets a token for which audience.

use super::*;
use tailbone::policy::WORKLOAD_CAPABILITY;

/// What a caller gets who asks for [`AUDIENCE`].
async fn asked(server: &WorkloadServer, host: &str, identity: Identity) -> (u16, String) {
    refusal(&token_for(&mut server.call(host, identity).await, AUDIENCE).await)
}

/// A user of another tailnet.
fn foreigner() -> Identity {
    Identity {
        same_tailnet: false,
        ..Identity::user("eve@example.org")
    }
}

fn granted() -> (u16, String) {
    (200, String::new())
}

fn not_permitted() -> (u16, String) {
    (403, "audience_not_permitted".to_owned())
}

#[tokio::test]
async fn tsiams_grants_mean_what_they_meant() {
    let server = WorkloadServer::with_rules("").await;
    server.allow(&[AUDIENCE, "https://b"]);
    for (host, grant, expected) in [
        ("one", audiences(&[AUDIENCE]), granted()),
        ("several", audiences(&["x", AUDIENCE]), granted()),
        ("other", audiences(&["https://b"]), not_permitted()),
        (
            "slash",
            audiences(&["https://a.example.com/"]),
            not_permitted(),
        ),
        (
            "case",
            audiences(&["https://A.example.com"]),
            not_permitted(),
        ),
        ("star", audiences(&["*"]), not_permitted()),
        (
            "member",
            json!({"ALLOWEDaudiences": [AUDIENCE], "more": 1}),
            granted(),
        ),
        (
            "text",
            json!({"allowedAudiences": AUDIENCE}),
            not_permitted(),
        ),
        (
            "mixed",
            json!({"allowedAudiences": [AUDIENCE, 1]}),
            not_permitted(),
        ),
        ("list", json!([AUDIENCE]), not_permitted()),
        ("number", json!(7), not_permitted()),
    ] {
        assert_eq!(
            asked(&server, host, machine(grant)).await,
            expected,
            "{host}"
        );
    }
    let second = machine(json!("broken")).cap(TSIAM_CAPABILITY, audiences(&[AUDIENCE]));
    assert_eq!(asked(&server, "second", second).await, granted());
    assert_eq!(
        asked(&server, "none", Identity::tagged(["tag:web"])).await,
        not_permitted()
    );
}

#[tokio::test]
async fn the_switch_helps_only_those_who_have_no_grant_at_all() {
    let server = WorkloadServer::with_rules("").await;
    server.allow(&[AUDIENCE]);
    server.set(|settings| settings.access.allow_without_grant = true);
    assert_eq!(
        asked(&server, "none", Identity::tagged(["tag:web"])).await,
        granted()
    );
    assert_eq!(
        asked(&server, "laptop", Identity::user("alice@example.com")).await,
        granted()
    );
    assert_eq!(
        asked(&server, "other", machine(audiences(&["x"]))).await,
        not_permitted()
    );
    assert_eq!(
        asked(&server, "broken", machine(json!(1))).await,
        not_permitted()
    );
    let foreign = foreigner();
    assert_eq!(asked(&server, "shared", foreign).await, not_permitted());
}

#[tokio::test]
async fn the_list_of_the_settings_comes_first() {
    let server = WorkloadServer::open().await;
    server.allow(&["https://*.example.org"]);
    let not_listed = (403, "audience_not_allowed".to_owned());
    assert_eq!(
        asked(&server, "web", machine(audiences(&[AUDIENCE]))).await,
        not_listed
    );
    server.allow(&["https://*.example.com"]);
    assert_eq!(
        asked(&server, "db", Identity::tagged(["tag:db"])).await,
        granted()
    );
}

#[tokio::test]
async fn our_grants_and_rules_decide_by_the_one_rule_language() {
    let server = WorkloadServer::with_rules(
        r#"
        [groups]
        staff = ["alice@example.com"]

        [[rule]]
        name = "never"
        decision = "deny"
        who = ["tag:quarantine"]

        [[rule]]
        name = "web"
        decision = "allow"
        who = ["tag:web", "group:staff"]
        audiences = ["https://*.example.com"]
        "#,
    )
    .await;
    let tagged = |tags: &[&str]| Identity::tagged(tags.iter().copied());
    assert_eq!(asked(&server, "web", tagged(&["tag:web"])).await, granted());
    assert_eq!(
        asked(&server, "alice", Identity::user("alice@example.com")).await,
        granted()
    );
    assert_eq!(
        asked(&server, "bob", Identity::user("bob@example.com")).await,
        not_permitted()
    );
    // A rule that denies beats tsiam's grant and an allowing rule below it.
    let both = tagged(&["tag:web", "tag:quarantine"]).cap(TSIAM_CAPABILITY, audiences(&[AUDIENCE]));
    assert_eq!(asked(&server, "both", both).await, not_permitted());

    let db = |grant: Value| tagged(&["tag:db"]).cap(WORKLOAD_CAPABILITY, grant);
    let of = |list: &[&str]| json!({ "audiences": list });
    assert_eq!(asked(&server, "db1", db(of(&[AUDIENCE]))).await, granted());
    assert_eq!(
        asked(&server, "db2", db(of(&["https://*.example.org"]))).await,
        not_permitted()
    );
    assert_eq!(
        asked(&server, "db3", db(json!({"audience": [AUDIENCE]}))).await,
        not_permitted()
    );
    let denied = db(of(&[AUDIENCE])).cap(WORKLOAD_CAPABILITY, json!({"decision": "deny"}));
    assert_eq!(asked(&server, "db4", denied).await, not_permitted());
    let array = db(json!([]));
    assert_eq!(asked(&server, "db5", array).await, not_permitted());
}

#[tokio::test]
async fn callers_of_other_tailnets_need_to_be_meant() {
    let server = WorkloadServer::with_rules(
        "[[rule]]\ndecision = 'allow'\naudiences = ['https://a.example.com']\n",
    )
    .await;
    assert_eq!(asked(&server, "plain", foreigner()).await, not_permitted());
    let grant = |foreign: bool| json!({"audiences": [AUDIENCE], "foreign": foreign});
    let with = |foreign| foreigner().cap(WORKLOAD_CAPABILITY, grant(foreign));
    assert_eq!(
        asked(&server, "not-meant", with(false)).await,
        not_permitted()
    );
    assert_eq!(asked(&server, "meant", with(true)).await, granted());
    // A grant of tsiam's names them by its source, as it always did.
    let tsiam = foreigner().cap(TSIAM_CAPABILITY, audiences(&[AUDIENCE]));
    assert_eq!(asked(&server, "tsiam", tsiam).await, granted());
}

#[test]
fn mistakes_in_the_file_have_line_and_field() {
    let mistakes = AudienceRules::parse(
        r#"
[[rule]]
decision = "anonymous"
hosts = ["a.example.com"]
audiences = []
max_lifetime = "2h"
algorithms = ["HS256"]
claims = { sub = "root", team = "x" }

[[audience]]
lifetime = "10s"
subject = "everybody"
aud = "yes"
"#,
        WORKLOAD_CAPABILITY,
    )
    .unwrap_err();
    let told: Vec<String> = mistakes.0.iter().map(ToString::to_string).collect();
    for expected in [
        "line 3: rule[1].decision: \"anonymous\" is not allow or deny",
        "line 4: rule[1].hosts: is not known here",
        "line 5: rule[1].audiences: is empty; leave it out, or say whom or what is meant",
        "line 6: rule[1].max_lifetime: \"2h\" is not from 1m to 60m",
        "line 7: rule[1].algorithms: \"HS256\" is not one of RS256, ES256, ES384, ES512, EdDSA",
        "line 8: rule[1].claims.sub: the claim \"sub\" is made by the program",
        "audience[1].match: is missing",
        "line 11: audience[1].lifetime: \"10s\" is not from 1m to 60m",
        "line 12: audience[1].subject: all callers would have the same subject",
        "line 13: audience[1].aud: \"yes\" is not text or list",
    ] {
        assert!(
            told.iter().any(|line| line.contains(expected)),
            "{expected}: {told:#?}"
        );
    }
}
