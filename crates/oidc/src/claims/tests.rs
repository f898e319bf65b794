use serde_json::json;

use super::*;

const ISSUER: &str = "https://idp.tail1.ts.net";

/// An access token that came with an ID token.
const PLAIN: Introspected<'static> = Introspected {
    issued_at: 1000,
    expires_at: 1300,
    id: Some("j1"),
    exchanged: false,
    act: None,
};

/// Without rules.
static AS_TSIDP: Mapping = Mapping {
    user_names: Vec::new(),
    mail: Vec::new(),
    verified_domains: Vec::new(),
};

fn provider(style: Style) -> Provider<'static> {
    Provider {
        issuer: ISSUER,
        host: "idp.tail1.ts.net",
        style,
        mapping: &AS_TSIDP,
    }
}

fn alice() -> Identity {
    Identity {
        user_id: 7,
        login: "alice@example.com".into(),
        name: "Alice".into(),
        picture: "https://pictures.example.com/alice".into(),
        device: Device {
            id: "n1".into(),
            name: "laptop.tail1.ts.net".into(),
            number: 12,
            key: format!("nodekey:{}", "0".repeat(64)),
            addresses: vec!["100.64.0.7".parse().unwrap(), "fd7a::7".parse().unwrap()],
        },
        grants: Vec::new(),
        groups: Some(Vec::new()),
    }
}

struct Case {
    identity: Identity,
    scopes: Vec<String>,
    resources: Vec<String>,
    wishes: ClaimsRequest,
    rules: Rules,
}

impl Case {
    fn of(scopes: &[&str]) -> Self {
        Self {
            identity: alice(),
            scopes: scopes.iter().map(|one| (*one).to_owned()).collect(),
            resources: Vec::new(),
            wishes: ClaimsRequest::default(),
            rules: Rules::default(),
        }
    }

    fn granted(&self) -> Granted<'_> {
        Granted {
            client_id: "c1",
            identity: &self.identity,
            scopes: &self.scopes,
            resources: &self.resources,
            wishes: &self.wishes,
        }
    }

    fn id_token(&self, style: Style) -> Value {
        let token = IdToken {
            now: 1000,
            id: "j1",
            nonce: Some("n-1"),
            session: None,
            acr: None,
            auth_time: None,
            access_token: None,
        };
        Value::Object(
            provider(style)
                .id_token(self.granted(), &self.rules, token)
                .unwrap(),
        )
    }

    fn userinfo(&self, style: Style) -> Value {
        Value::Object(
            provider(style)
                .userinfo(self.granted(), &self.rules)
                .unwrap(),
        )
    }
}

#[test]
fn an_id_token_in_tsidps_style_tells_the_device_and_what_the_scopes_say() {
    let mut expected = json!({
        "iss": ISSUER, "sub": "userid:7", "aud": "c1", "iat": 1000, "exp": 1300, "nbf": 700,
        "jti": "j1", "nonce": "n-1", "uid": 7, "nid": 12,
        "key": "nodekey:0000000000000000000000000000000000000000000000000000000000000000",
        "addresses": ["100.64.0.7/32", "fd7a::7/128"],
        "node": "laptop.tail1.ts.net.", "tailnet": "tail1.ts.net.",
    });
    assert_eq!(Case::of(&["openid"]).id_token(Style::Tsidp), expected);
    expected["email"] = "alice@example.com".into();
    expected["preferred_username"] = "alice".into();
    expected["picture"] = "https://pictures.example.com/alice".into();
    let all = Case::of(&["openid", "email", "profile"]);
    assert_eq!(all.id_token(Style::Tsidp), expected);
}

#[test]
fn what_is_unknown_of_a_device_is_left_out_or_null() {
    let mut case = Case::of(&["openid"]);
    case.identity.device = Device::default();
    case.identity.user_id = 0;
    let token = case.id_token(Style::Tsidp);
    assert_eq!(token["addresses"], Value::Null);
    assert!(token.as_object().unwrap().contains_key("addresses"));
    assert_eq!((&token["nid"], &token["key"]), (&json!(0), &json!("")));
    for absent in ["node", "tailnet", "uid"] {
        assert!(token.get(absent).is_none(), "{absent}");
    }
}

#[test]
fn resources_are_audiences_behind_the_client_and_need_azp() {
    let mut case = Case::of(&["openid"]);
    assert!(case.id_token(Style::Tsidp).get("azp").is_none());
    case.resources = vec!["https://a.example.com".into()];
    let token = case.id_token(Style::Tsidp);
    assert_eq!(token["aud"], json!(["c1", "https://a.example.com"]));
    assert_eq!(token["azp"], "c1");
}

#[test]
fn a_standard_id_token_has_what_was_asked_for_by_name_alone() {
    let mut case = Case::of(&["openid", "email", "profile"]);
    let names = |token: &Value| {
        let names = token.as_object().unwrap().keys();
        names.cloned().collect::<Vec<_>>().join(" ")
    };
    let plain = "aud exp iat iss jti nbf nonce sub";
    assert_eq!(names(&case.id_token(Style::Standard)), plain);
    let wishes = r#"{"id_token": {"email": null, "nid": null, "sub": null, "unknown": null}}"#;
    case.wishes = ClaimsRequest::parse(wishes).unwrap();
    let token = case.id_token(Style::Standard);
    assert_eq!(names(&token), "aud email exp iat iss jti nbf nid nonce sub");
}

#[test]
fn userinfo_has_no_scopes_in_tsidps_style_and_some_in_the_standards() {
    let picture = "https://pictures.example.com/alice";
    let case = Case::of(&["openid"]);
    assert_eq!(
        case.userinfo(Style::Tsidp),
        json!({
            "sub": "userid:7", "name": "Alice", "email": "alice@example.com",
            "picture": picture, "username": "alice",
        })
    );
    assert_eq!(case.userinfo(Style::Standard), json!({"sub": "userid:7"}));
    let mail = Case::of(&["openid", "email"]).userinfo(Style::Standard);
    assert_eq!(
        mail,
        json!({"sub": "userid:7", "email": "alice@example.com"})
    );
    let mut wishing = Case::of(&["openid"]);
    wishing.wishes =
        ClaimsRequest::parse(r#"{"userinfo": {"name": {"essential": true}}}"#).unwrap();
    let name = wishing.userinfo(Style::Standard);
    assert_eq!(name, json!({"sub": "userid:7", "name": "Alice"}));
    assert_eq!(
        Case::of(&["openid", "profile"]).userinfo(Style::Standard),
        json!({
            "sub": "userid:7", "name": "Alice", "picture": picture, "preferred_username": "alice",
        })
    );
}

#[test]
fn logins_without_a_mailbox_get_the_hosts_name() {
    for (login, email) in [
        ("a@github", "a@github.idp.tail1.ts.net"),
        ("a@passkey", "a@passkey.idp.tail1.ts.net"),
        ("a@example.com", "a@example.com"),
    ] {
        let mut case = Case::of(&["openid", "email"]);
        case.identity.login = login.into();
        for claims in [case.id_token(Style::Tsidp), case.userinfo(Style::Tsidp)] {
            assert_eq!(claims["email"], email);
        }
        let told = provider(Style::Tsidp).introspection(case.granted(), &case.rules, PLAIN);
        assert_eq!(
            (&told["email"], &told["username"]),
            (&json!(email), &json!(login))
        );
    }
    let mut odd = Case::of(&["openid", "profile"]);
    odd.identity.login = "root".into();
    assert!(
        odd.id_token(Style::Tsidp)
            .get("preferred_username")
            .is_none()
    );
}

#[test]
fn mail_is_told_to_be_verified_where_that_is_known_and_not_where_it_is_made_up() {
    let listed = Mapping {
        verified_domains: vec!["example.com".parse().unwrap()],
        ..Mapping::default()
    };
    for (login, tsidp, standard) in [
        ("a@example.com", json!(true), json!(true)),
        ("a@example.org", Value::Null, Value::Null),
        ("a@github", Value::Null, json!(false)),
        ("alice", Value::Null, Value::Null),
    ] {
        for (style, verified) in [(Style::Tsidp, &tsidp), (Style::Standard, &standard)] {
            let mut case = Case::of(&["openid", "email"]);
            case.identity.login = login.into();
            let made = Provider {
                mapping: &listed,
                ..provider(style)
            };
            let userinfo = made.userinfo(case.granted(), &case.rules).unwrap();
            let told = made.introspection(case.granted(), &case.rules, PLAIN);
            for claims in [userinfo, told] {
                let found = claims.get("email_verified").unwrap_or(&Value::Null);
                assert_eq!(found, verified, "{login} {style:?}");
                assert_eq!(claims.contains_key("email"), login.contains('@'), "{login}");
            }
        }
    }
}

#[test]
fn a_rule_of_the_settings_makes_the_same_name_everywhere() {
    let mapping = Mapping {
        user_names: vec!["*={name}".parse().unwrap()],
        mail: vec!["*={name}@example.com".parse().unwrap()],
        ..Mapping::default()
    };
    let made = Provider {
        mapping: &mapping,
        ..provider(Style::Tsidp)
    };
    let mut case = Case::of(&["openid", "email", "profile"]);
    case.identity.login = "alice".into();
    let token = IdToken {
        now: 0,
        id: "j",
        nonce: None,
        session: None,
        acr: None,
        auth_time: None,
        access_token: None,
    };
    let token = made.id_token(case.granted(), &case.rules, token).unwrap();
    let userinfo = made.userinfo(case.granted(), &case.rules).unwrap();
    let told = made.introspection(case.granted(), &case.rules, PLAIN);
    assert_eq!(userinfo["username"], "alice");
    for claims in [&token, &told] {
        assert_eq!(claims["preferred_username"], "alice");
    }
    for claims in [&token, &told, &userinfo] {
        assert_eq!(claims["email"], "alice@example.com");
    }
    // Who it is stays the login, whatever applications call them.
    assert_eq!(told["username"], "alice");
    assert_eq!(told["sub"], "userid:7");
}

#[test]
fn extra_claims_are_in_the_id_token_and_where_the_rule_says_so_in_userinfo() {
    let rules = json!([
        {"extraClaims": {"groups": ["admin"]}},
        {"extraClaims": {"groups": ["users"], "nonce": "forged"}, "includeInUserInfo": true},
    ]);
    let mut case = Case::of(&["openid"]);
    case.rules = Rules::parse(rules.as_array().unwrap()).unwrap();
    let token = case.id_token(Style::Standard);
    assert_eq!(token["groups"], json!(["admin", "users"]));
    assert_eq!(token["nonce"], "n-1");
    assert_eq!(case.userinfo(Style::Standard)["groups"], json!(["users"]));

    let protected = json!([{"extraClaims": {"sub": "userid:1"}}]);
    case.rules = Rules::parse(protected.as_array().unwrap()).unwrap();
    let userinfo = provider(Style::Tsidp).userinfo(case.granted(), &case.rules);
    assert_eq!(userinfo.unwrap()["sub"], "userid:7");
}

#[test]
fn groups_come_from_everywhere_once_and_where_they_are_asked_for() {
    let rules = json!([
        {"extraClaims": {"groups": "extra"}, "includeInUserInfo": true},
        {"groups": ["granted", "staff"]},
    ]);
    let rules = Rules::parse(rules.as_array().unwrap()).unwrap();
    let case_of = |scopes: &[&str]| {
        let mut case = Case::of(scopes);
        case.rules = rules.clone();
        case.identity.groups = Some(vec!["admins".into(), "staff".into()]);
        case
    };
    let asking = case_of(&["openid", "groups"]);
    let all = json!(["extra", "granted", "staff", "admins"]);
    for style in [Style::Tsidp, Style::Standard] {
        assert_eq!(asking.id_token(style)["groups"], all);
        assert_eq!(asking.userinfo(style)["groups"], all);
    }
    let told = provider(Style::Tsidp).introspection(asking.granted(), &asking.rules, PLAIN);
    assert_eq!(told["groups"], json!(["granted", "staff", "admins"]));

    // Without the scope only what tsidp tells as well.
    let plain = case_of(&["openid"]);
    assert_eq!(plain.id_token(Style::Tsidp)["groups"], "extra");
    let mut wishing = case_of(&["openid"]);
    wishing.wishes = ClaimsRequest::parse(r#"{"id_token": {"groups": null}}"#).unwrap();
    assert_eq!(wishing.id_token(Style::Standard)["groups"], all);
    assert_eq!(wishing.userinfo(Style::Standard)["groups"], "extra");

    let nobody = Case::of(&["openid", "groups"]);
    assert!(nobody.id_token(Style::Tsidp).get("groups").is_none());
}

#[test]
fn whether_groups_are_missing_depends_on_who_asks() {
    let mut case = Case::of(&["openid", "groups"]);
    assert!(!case.granted().lacks_groups());
    case.identity.groups = None;
    assert!(case.granted().lacks_groups());
    case.scopes.pop();
    assert!(!case.granted().lacks_groups());
    case.wishes = ClaimsRequest::parse(r#"{"userinfo": {"groups": null}}"#).unwrap();
    assert!(case.granted().lacks_groups());
}

#[test]
fn introspection_tells_one_subject_and_a_list_of_audiences() {
    let mut case = Case::of(&["openid", "email", "profile"]);
    let told =
        Value::Object(provider(Style::Tsidp).introspection(case.granted(), &case.rules, PLAIN));
    assert_eq!(
        told,
        json!({
            "active": true, "client_id": "c1", "sub": "userid:7", "aud": ["c1"], "iss": ISSUER,
            "iat": 1000, "exp": 1300, "nbf": 700, "jti": "j1",
            "username": "alice@example.com", "token_type": "Bearer",
            "scope": "openid email profile", "email": "alice@example.com",
            "preferred_username": "alice", "picture": "https://pictures.example.com/alice",
        })
    );
    case.resources = vec!["https://a.example.com".into()];
    let act = json!({"sub": "userid:8"});
    let exchanged = Introspected {
        id: None,
        exchanged: true,
        act: Some(&act),
        ..PLAIN
    };
    let exchanged = provider(Style::Tsidp).introspection(case.granted(), &case.rules, exchanged);
    assert_eq!(exchanged["aud"], json!(["https://a.example.com"]));
}

#[test]
fn the_hash_of_an_access_token_fits_the_algorithm() {
    // OpenID Connect Core, appendix A.3.
    let token = "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y";
    let hash = half_hash(token, "RS256");
    assert_eq!(hash.as_deref(), Some("77QmUPtjPfzWtF2AnpK9RQ"));
    assert_eq!(half_hash(token, "ES384").map(|hash| hash.len()), Some(32));
    assert_eq!(half_hash(token, "EdDSA"), None);
}

#[test]
fn every_claim_that_is_built_is_told_in_discovery() {
    let mut case = Case::of(&["openid", "email", "profile", "groups"]);
    case.identity.groups = Some(vec!["staff".into()]);
    case.resources = vec!["https://a.example.com".into()];
    let token = IdToken {
        now: 0,
        id: "j",
        nonce: Some("n"),
        session: Some("s"),
        acr: Some("0"),
        auth_time: Some(0),
        access_token: Some(("t", "RS256")),
    };
    let verifying = Mapping {
        verified_domains: vec!["example.com".parse().unwrap()],
        ..Mapping::default()
    };
    let made = Provider {
        mapping: &verifying,
        ..provider(Style::Tsidp)
    };
    let token = made.id_token(case.granted(), &case.rules, token).unwrap();
    let userinfo = made.userinfo(case.granted(), &case.rules).unwrap();
    let built: std::collections::BTreeSet<_> = token.keys().chain(userinfo.keys()).collect();
    let told: std::collections::BTreeSet<_> = SUPPORTED.iter().collect();
    let told: Vec<&str> = told.into_iter().copied().collect();
    assert_eq!(
        built.into_iter().map(String::as_str).collect::<Vec<_>>(),
        told
    );
}
