//! Every combination of right, requester and mode, compared with a table written by hand.

use std::{collections::BTreeMap, net::SocketAddr};

use serde_json::{Value, json};

use super::*;
use crate::tailnet::{WhoIs, WhoIsNode, WhoIsUser};

const RIGHTS: [Right; 6] = [
    Right::Generate,
    Right::List,
    Right::OidcEdit,
    Right::OidcView,
    Right::Remove,
    Right::Rotate,
];
const OWN_UID: u32 = 1000;

const OWNER: i64 = 7;

fn caller(login: &str, tags: &[&str], grants: &[Value]) -> Requester {
    caller_with_id(8, login, tags, grants)
}

fn caller_with_id(id: i64, login: &str, tags: &[&str], grants: &[Value]) -> Requester {
    let whois = WhoIs {
        node: WhoIsNode {
            id: "n1".into(),
            name: "laptop.example.ts.net".into(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            ..WhoIsNode::default()
        },
        user: WhoIsUser {
            id,
            login: login.into(),
            ..WhoIsUser::default()
        },
        caps: BTreeMap::from([(ADMIN_CAPABILITY.to_owned(), grants.to_vec())]),
        same_tailnet: true,
    };
    Requester::Tailnet(Caller::from_whois(whois).unwrap())
}

fn user(grants: &[Value]) -> Requester {
    caller("bob@example.com", &[], grants)
}

fn machine(grants: &[Value]) -> Requester {
    caller_with_id(OWNER, "alice@example.com", &["tag:ci"], grants)
}

fn rules(mode: Authorization, owner: Option<i64>) -> AccessRules {
    AccessRules {
        mode,
        own_uid: OWN_UID,
        owner,
    }
}

/// A name, a requester, and the rights it has, each with the rule that gives it.
type AccessCase = (&'static str, Requester, Vec<(Right, AccessRule)>);

/// The expected rights in the mode `grant`, each with the first rule that applies.
fn table() -> Vec<AccessCase> {
    let all = |rule| RIGHTS.map(|right| (right, rule)).to_vec();
    let only = |right| vec![(right, AccessRule::Grant)];
    vec![
        (
            "own user at the socket",
            Requester::Local {
                uid: OWN_UID,
                pid: Some(1),
            },
            all(AccessRule::LocalSocket),
        ),
        (
            "root at the socket",
            Requester::Local { uid: 0, pid: None },
            all(AccessRule::LocalSocket),
        ),
        (
            "another user at the socket",
            Requester::Local {
                uid: 1001,
                pid: None,
            },
            vec![],
        ),
        (
            "the owner",
            caller_with_id(OWNER, "alice@example.com", &[], &[]),
            all(AccessRule::Owner),
        ),
        (
            "the owner under a new login",
            caller_with_id(OWNER, "alice.smith@example.com", &[], &[]),
            all(AccessRule::Owner),
        ),
        (
            "somebody else who was given the owner's login",
            caller("alice@example.com", &[], &[]),
            vec![],
        ),
        ("a user", user(&[]), vec![]),
        ("a machine", machine(&[]), vec![]),
        (
            "the internet",
            Requester::Tailnet(Caller::Funnel(SocketAddr::from(([203, 0, 113, 9], 4)))),
            vec![],
        ),
        (
            "list",
            user(&[json!({"methods": ["list"]})]),
            only(Right::List),
        ),
        (
            "generate",
            user(&[json!({"methods": ["generate"]})]),
            only(Right::Generate),
        ),
        (
            "remove",
            machine(&[json!({"methods": ["remove"]})]),
            only(Right::Remove),
        ),
        (
            "rotate",
            machine(&[json!({"methods": ["rotate"]})]),
            only(Right::Rotate),
        ),
        (
            "seeing the OpenID provider's clients",
            user(&[json!({"methods": ["oidc-view"]})]),
            only(Right::OidcView),
        ),
        (
            "changing them",
            machine(&[json!({"methods": ["oidc-edit"]})]),
            only(Right::OidcEdit),
        ),
        (
            "a star",
            user(&[json!({"methods": ["*"]})]),
            all(AccessRule::Grant),
        ),
        (
            "a star for a machine",
            machine(&[json!({"methods": ["*"]})]),
            all(AccessRule::Grant),
        ),
        (
            "two values",
            user(&[
                json!({"methods": ["list"]}),
                json!({"methods": ["rotate", "fly"]}),
            ]),
            vec![
                (Right::List, AccessRule::Grant),
                (Right::Rotate, AccessRule::Grant),
            ],
        ),
        ("no methods", user(&[json!({"methods": []})]), vec![]),
        ("an empty value", user(&[json!({})]), vec![]),
        (
            "a word for a list",
            user(&[json!({"methods": "*"})]),
            vec![],
        ),
        (
            "a list with a number",
            user(&[json!({"methods": ["*", 1]})]),
            vec![],
        ),
        (
            "a member we do not know",
            user(&[json!({"methods": ["*"], "keys": ["tb-1"]})]),
            vec![],
        ),
        ("another name", user(&[json!({"method": ["*"]})]), vec![]),
        ("a bare list", user(&[json!(["*"])]), vec![]),
        ("members by position", user(&[json!([["*"]])]), vec![]),
        ("a bare word", user(&[json!("*")]), vec![]),
        ("true", user(&[json!(true)]), vec![]),
        ("null", user(&[json!(null)]), vec![]),
        (
            "capitals",
            user(&[json!({"methods": ["List", "LIST"]})]),
            vec![],
        ),
        (
            "a pattern",
            user(&[json!({"methods": ["l*", "**", ""]})]),
            vec![],
        ),
    ]
}

#[test]
fn every_combination_with_grants() {
    for (name, requester, allowed) in table() {
        for right in RIGHTS {
            let decision = authorize(right, &requester, &rules(Authorization::Grant, Some(OWNER)));
            match allowed.iter().find(|(of, _)| *of == right) {
                Some((_, rule)) => assert_eq!(
                    decision,
                    AccessDecision::Allowed { rule: *rule },
                    "{name}: {right:?}"
                ),
                None => assert!(
                    matches!(decision, AccessDecision::Denied { .. }),
                    "{name}: {right:?}: {decision:?}"
                ),
            }
        }
    }
}

#[test]
fn open_lets_in_whoever_is_known_and_says_so() {
    for (name, requester, allowed) in table() {
        for right in RIGHTS {
            let decision = authorize(right, &requester, &rules(Authorization::Open, Some(OWNER)));
            if matches!(requester, Requester::Tailnet(Caller::Funnel(_))) {
                assert!(matches!(decision, AccessDecision::Denied { .. }), "{name}");
                continue;
            }
            let rule = allowed
                .iter()
                .find(|(of, _)| *of == right)
                .map_or(AccessRule::Open, |(_, rule)| *rule);
            assert_eq!(
                decision,
                AccessDecision::Allowed { rule },
                "{name}: {right:?}"
            );
        }
    }
}

#[test]
fn a_tagged_node_has_no_owner() {
    let nobody = rules(Authorization::Grant, None);
    for (name, requester, allowed) in table() {
        for right in RIGHTS {
            let by_owner = allowed.iter().any(|(_, rule)| *rule == AccessRule::Owner);
            let decision = authorize(right, &requester, &nobody);
            assert_eq!(
                matches!(decision, AccessDecision::Allowed { .. }),
                !by_owner && allowed.iter().any(|(of, _)| *of == right),
                "{name}"
            );
        }
    }
    // A machine is not the owner either, even if its shared profile has the owner's login.
    let denied = authorize(
        Right::List,
        &machine(&[]),
        &rules(Authorization::Grant, Some(OWNER)),
    );
    assert!(matches!(denied, AccessDecision::Denied { .. }));
}

#[test]
fn a_refusal_names_the_grant_that_is_missing() {
    let explanation = |requester: &Requester, owner: Option<i64>| match authorize(
        Right::Remove,
        requester,
        &rules(Authorization::Grant, owner),
    ) {
        AccessDecision::Denied { explanation } => explanation,
        allowed => panic!("{allowed:?}"),
    };
    assert_eq!(
        explanation(&user(&[json!({"methods": ["list"]})]), Some(OWNER)),
        "user:bob@example.com lacks the grant \"tailbone.dev/cap/admin\" with {\"methods\":[\"remove\"]} towards this server, \
         and is not the owner of the server's node"
    );
    assert_eq!(
        explanation(&machine(&[]), None),
        "node:laptop.example.ts.net lacks the grant \"tailbone.dev/cap/admin\" with {\"methods\":[\"remove\"]} towards this server"
    );
    assert_eq!(
        explanation(&Requester::Local { uid: 7, pid: None }, None),
        "the local admin socket is for the user that runs the server (uid 1000) and root, not for uid 7"
    );
}

#[test]
fn every_declared_method_is_in_the_table_once() {
    for path in DECLARED_METHODS {
        assert_eq!(
            METHODS.iter().filter(|(method, _)| method == path).count(),
            1,
            "{path}"
        );
        assert!(
            matches!(access(path), Some(Access::Right(_))),
            "{path} changes or tells something, so it needs a right"
        );
    }
    assert_eq!(DECLARED_METHODS.len(), 18);
    assert_eq!(access("/proto.AdminService/FormatDisk"), None);
    assert_eq!(access("/proto.AdminService/ListKeys/"), None);
}
