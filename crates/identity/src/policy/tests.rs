//! Tests of the rules as a whole: order, doubt, and mistakes in a file.

use std::collections::BTreeMap;

use ::http::Method;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use tailbone_tailnet::{WhoIs, WhoIsNode, WhoIsUser};

fn visitor(login: &str, change: impl FnOnce(&mut WhoIs)) -> Visitor {
    let mut whois = WhoIs {
        node: WhoIsNode {
            id: "n1".into(),
            name: "laptop.tail1.ts.net".into(),
            ..WhoIsNode::default()
        },
        user: WhoIsUser {
            id: 1,
            login: login.into(),
            ..WhoIsUser::default()
        },
        caps: BTreeMap::new(),
        same_tailnet: true,
    };
    change(&mut whois);
    Visitor::from_whois(whois, "tail1.ts.net").unwrap()
}

fn user(login: &str) -> Visitor {
    visitor(login, |_| {})
}

fn machine(tag: &str) -> Visitor {
    visitor("tagged-devices", |whois| whois.node.tags = vec![tag.into()])
}

fn granted(values: Value) -> Visitor {
    visitor("alice@example.com", |whois| {
        whois.caps = BTreeMap::from([(CAPABILITY.into(), values.as_array().unwrap().clone())]);
    })
}

fn target(host: &str, path: &str, method: Method) -> Target {
    Target {
        host: Some(Host::parse(host).unwrap()),
        path: Some(Path::parse(path).unwrap()),
        method: Some(method),
    }
}

fn get(path: &str) -> Target {
    target("app.example.com", path, Method::GET)
}

fn rules(text: &str) -> Rules {
    Rules::parse(text, CAPABILITY).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

fn told(rules: &Rules, who: Who<'_>, target: &Target) -> String {
    let decision = rules.decide(who, target);
    format!("{} {}", decision.effect.as_str(), decision.rule)
}

const STAFF: &str = r#"
[groups]
staff = ["alice@example.com", "*@staff.example.com", "tag:desk"]

[[rule]]
name = "no-admin"
decision = "deny"
paths = ["/admin"]

[[rule]]
name = "public"
decision = "anonymous"
paths = ["/public"]

[[rule]]
name = "staff"
decision = "allow"
who = ["group:staff"]
"#;

#[test]
fn the_first_rule_that_matches_decides_and_the_end_denies() {
    let rules = rules(STAFF);
    let alice = user("Alice@Example.com");
    assert_eq!(
        told(&rules, Who::Known(&alice), &get("/x")),
        "allow rule:staff"
    );
    assert_eq!(
        told(&rules, Who::Known(&alice), &get("/admin/x")),
        "deny rule:no-admin"
    );
    assert_eq!(
        told(&rules, Who::Known(&user("x@staff.example.com")), &get("/")),
        "allow rule:staff"
    );
    assert_eq!(
        told(
            &rules,
            Who::Known(&user("x@evil-staff.example.com")),
            &get("/")
        ),
        "deny end"
    );
    assert_eq!(
        told(&rules, Who::Known(&machine("tag:desk")), &get("/")),
        "allow rule:staff"
    );
    assert_eq!(
        told(&rules, Who::Known(&machine("tag:ci")), &get("/")),
        "deny end"
    );
    assert_eq!(
        told(
            &Rules::grants_only(CAPABILITY),
            Who::Known(&alice),
            &get("/")
        ),
        "deny end"
    );
}

#[test]
fn without_identity_only_anonymous_rules_let_through() {
    let rules = rules(STAFF);
    for who in [Who::Nobody, Who::Funnel, Who::Doubt] {
        assert_eq!(
            told(&rules, who, &get("/public/x")),
            "anonymous rule:public"
        );
        assert_eq!(rules.decide(who, &get("/x")).effect, Effect::Deny);
        assert_eq!(told(&rules, who, &get("/admin")), "deny rule:no-admin");
    }
}

#[test]
fn a_rule_that_denies_everybody_means_those_without_identity_too() {
    let rules = rules(
        "[[rule]]\ndecision = \"deny\"\nwho = [\"*\"]\npaths = [\"/admin\"]\n[[rule]]\ndecision = \"anonymous\"\n",
    );
    for who in [Who::Nobody, Who::Funnel, Who::Doubt] {
        assert_eq!(
            rules.decide(who, &get("/admin")).effect,
            Effect::Deny,
            "{who:?}"
        );
        assert_eq!(
            rules.decide(who, &get("/")).effect,
            Effect::Anonymous,
            "{who:?}"
        );
    }
}

#[test]
fn doubt_about_the_caller_never_reaches_a_later_rule() {
    let rules = rules(
        "[[rule]]\ndecision = \"deny\"\nwho = [\"bob@example.com\"]\n[[rule]]\ndecision = \"anonymous\"\n",
    );
    assert_eq!(rules.decide(Who::Doubt, &get("/")).effect, Effect::Deny);
    assert_eq!(
        rules.decide(Who::Nobody, &get("/")).effect,
        Effect::Anonymous
    );
}

#[test]
fn tricks_with_paths_never_open_and_never_evade() {
    let rules = rules(
        "[[rule]]\nname = \"admin\"\ndecision = \"deny\"\npaths = [\"/admin\"]\n[[rule]]\nname = \"public\"\ndecision = \"allow\"\npaths = [\"/public\"]\n[[rule]]\nname = \"docs\"\ndecision = \"allow\"\npaths = [\"/docs\"]\n",
    );
    let alice = user("alice@example.com");
    for path in [
        "/public/../admin",
        "/public/%2e%2e/admin",
        "//admin",
        "/ADMIN",
        "/public/%2e%2e%2fadmin",
        "/admin;x=1/y",
        "/%61dmin",
    ] {
        assert_eq!(
            told(&rules, Who::Known(&alice), &get(path)),
            "deny rule:admin",
            "{path}"
        );
    }
    for path in [
        "/public/../secret",
        "/public%2f..%2fsecret",
        "/public/..;/secret",
        "/public%3f",
    ] {
        assert_eq!(
            rules.decide(Who::Known(&alice), &get(path)).effect,
            Effect::Deny,
            "{path}"
        );
    }
    // Odd but harmless: every reading is below the prefix.
    for path in [
        "/public/a%20b",
        "/public//x",
        "/public/a%2Fb",
        "/docs/x;v=1",
    ] {
        assert_eq!(
            rules.decide(Who::Known(&alice), &get(path)).effect,
            Effect::Allow,
            "{path}"
        );
    }
}

#[test]
fn what_the_proxy_does_not_tell_opens_nothing() {
    let rules = rules(
        "[[rule]]\nname = \"a\"\ndecision = \"allow\"\npaths = [\"/public\"]\n[[rule]]\nname = \"b\"\ndecision = \"deny\"\nmethods = [\"DELETE\"]\n[[rule]]\nname = \"c\"\ndecision = \"allow\"\n",
    );
    let alice = user("alice@example.com");
    assert_eq!(
        told(&rules, Who::Known(&alice), &Target::default()),
        "deny rule:b"
    );
    let no_path = Target {
        method: Some(Method::GET),
        ..Target::default()
    };
    assert_eq!(told(&rules, Who::Known(&alice), &no_path), "allow rule:c");
}

#[test]
fn hosts_and_methods() {
    let rules = rules(
        "[[rule]]\ndecision = \"allow\"\nhosts = [\"wiki.example.com\", \"*.lab.example.com\"]\nmethods = [\"GET\"]\n",
    );
    let alice = user("alice@example.com");
    let effect = |host, method| {
        rules
            .decide(Who::Known(&alice), &target(host, "/", method))
            .effect
    };
    assert_eq!(effect("WIKI.example.com:8080", Method::GET), Effect::Allow);
    assert_eq!(effect("a.lab.example.com", Method::HEAD), Effect::Allow);
    assert_eq!(effect("lab.example.com", Method::GET), Effect::Deny);
    assert_eq!(effect("wiki.example.com", Method::POST), Effect::Deny);
    assert_eq!(
        effect("wiki.example.com", Method::from_bytes(b"get").unwrap()),
        Effect::Deny
    );
    assert!(rules.name_methods());
}

#[test]
fn a_denied_method_is_denied_in_any_case() {
    let rules = rules(
        "[[rule]]\ndecision = \"deny\"\nmethods = [\"DELETE\"]\n[[rule]]\ndecision = \"allow\"\n",
    );
    let alice = user("alice@example.com");
    let lower = target("a", "/", Method::from_bytes(b"delete").unwrap());
    assert_eq!(
        rules.decide(Who::Known(&alice), &lower).effect,
        Effect::Deny
    );
}

#[test]
fn callers_of_other_tailnets_need_a_rule_that_names_them() {
    let foreign = visitor("bob@other.org", |whois| {
        whois.same_tailnet = false;
        whois.node.name = "device-of-shared-to-user".into();
    });
    let open = rules("[[rule]]\ndecision = \"allow\"\nwho = [\"*\", \"bob@other.org\"]\n");
    assert_eq!(told(&open, Who::Known(&foreign), &get("/")), "deny end");
    let named =
        rules("[[rule]]\ndecision = \"allow\"\nforeign = true\nwho = [\"bob@other.org\"]\n");
    assert_eq!(
        told(&named, Who::Known(&foreign), &get("/")),
        "allow rule:1"
    );
    assert_eq!(
        told(&named, Who::Known(&user("bob@other.org")), &get("/")),
        "deny end"
    );
    let denied = rules(
        "[[rule]]\ndecision = \"deny\"\nwho = [\"*@other.org\"]\n[[rule]]\ndecision = \"allow\"\nforeign = true\n",
    );
    assert_eq!(
        told(&denied, Who::Known(&foreign), &get("/")),
        "deny rule:1"
    );
}

#[test]
fn the_tailnet_is_compared_without_its_final_dot() {
    let alice = user("alice@example.com");
    for (written, same) in [
        ("tail1.ts.net", true),
        ("Tail1.ts.net.", true),
        ("tail1", true),
        ("tail2", false),
        ("ts.net", false),
        ("il1.ts.net", false),
    ] {
        let rules = rules(&format!(
            "[[rule]]\ndecision = \"allow\"\ntailnet = \"{written}\"\n"
        ));
        assert_eq!(
            rules.decide(Who::Known(&alice), &get("/")).effect == Effect::Allow,
            same,
            "{written}"
        );
    }
    assert!(!same_tailnet("", "") && !same_tailnet("x", "") && !same_tailnet("", "x"));
}

#[test]
fn a_local_rule_may_ask_for_a_grant_with_a_value() {
    let text = |condition| format!("[[rule]]\ndecision = \"allow\"\ngrant = {condition}\n");
    let holder = visitor("alice@example.com", |whois| {
        whois.caps = BTreeMap::from([
            (
                "example.com/cap/wiki".into(),
                vec![json!({"role": ["reader", "writer"], "n": 3})],
            ),
            ("example.com/cap/bare".into(), vec![]),
        ]);
    });
    let effect = |condition| {
        rules(&text(condition))
            .decide(Who::Known(&holder), &get("/"))
            .effect
    };
    assert_eq!(effect(r#""example.com/cap/wiki""#), Effect::Allow);
    assert_eq!(effect(r#""example.com/cap/bare""#), Effect::Allow);
    assert_eq!(
        effect(r#"{ capability = "example.com/cap/wiki", has = { role = "writer", n = 3 } }"#),
        Effect::Allow
    );
    assert_eq!(
        effect(r#"{ capability = "example.com/cap/wiki", has = { role = "owner" } }"#),
        Effect::Deny
    );
    assert_eq!(effect(r#""example.com/cap/other""#), Effect::Deny);
}

#[test]
fn grants_come_before_local_rules_and_denying_ones_first() {
    let deny_all = rules("[[rule]]\ndecision = \"deny\"\n");
    let allow_all = rules("[[rule]]\ndecision = \"allow\"\n");
    let told = |rules: &Rules, values, path| told(rules, Who::Known(&granted(values)), &get(path));
    assert_eq!(told(&deny_all, json!([{}]), "/"), "allow grant:1");
    assert_eq!(
        told(&deny_all, json!([{"paths": ["/docs"]}]), "/docs/x"),
        "allow grant:1"
    );
    assert_eq!(
        told(&deny_all, json!([{"paths": ["/docs"]}]), "/x"),
        "deny rule:1"
    );
    assert_eq!(
        told(
            &allow_all,
            json!([{}, {"decision": "deny", "paths": ["/admin"]}]),
            "/admin"
        ),
        "deny grant:2"
    );
    assert_eq!(told(&allow_all, json!([]), "/"), "allow rule:1");
    // Values that cannot be read may have been meant to deny.
    for value in [
        json!([{"path": ["/x"]}]),
        json!(["x"]),
        // Neither a value without members nor one with its members by position.
        json!([[]]),
        json!([["allow"]]),
        json!([{"paths": ["x"]}]),
        json!([{"decision": "maybe"}]),
    ] {
        assert_eq!(told(&allow_all, value, "/"), "deny grant:1");
    }
    let other_name = Rules::grants_only("example.com/cap/other");
    assert_eq!(
        other_name
            .decide(Who::Known(&granted(json!([{}]))), &get("/"))
            .effect,
        Effect::Deny
    );
}

#[test]
fn a_grant_means_callers_of_other_tailnets_only_if_it_says_so() {
    let foreign = |value: Value| {
        visitor("bob@other.org", |whois| {
            whois.same_tailnet = false;
            whois.caps = BTreeMap::from([(CAPABILITY.into(), vec![value])]);
        })
    };
    let rules = Rules::grants_only(CAPABILITY);
    assert_eq!(
        rules
            .decide(Who::Known(&foreign(json!({}))), &get("/"))
            .effect,
        Effect::Deny
    );
    assert_eq!(
        rules
            .decide(Who::Known(&foreign(json!({"foreign": true}))), &get("/"))
            .effect,
        Effect::Allow
    );
}

#[test]
fn explain_tells_every_rule_up_to_the_one_that_decides() {
    let rules = rules(STAFF);
    let (steps, decision) = rules.explain(Who::Known(&user("bob@example.com")), &get("/x"));
    let told: Vec<_> = steps
        .iter()
        .map(|step| format!("{}: {}", step.rule, step.why))
        .collect();
    assert_eq!(
        told,
        [
            "rule:no-admin: another path",
            "rule:public: another path",
            "rule:staff: not for this caller"
        ]
    );
    assert_eq!(decision.rule, RuleId::End);
}

#[test]
fn a_login_without_a_domain_is_a_login() {
    for word in ["alice", "alice@", "Alice"] {
        let rules = rules(&format!(
            "[groups]\nstaff = [{word:?}]\n[[rule]]\ndecision = \"allow\"\nwho = [{word:?}]\n\
             [[rule]]\ndecision = \"anonymous\"\nwho = [\"group:staff\"]\n"
        ));
        let told = |login: &str| told(&rules, Who::Known(&user(login)), &get("/"));
        assert_eq!(told("alice"), "allow rule:1", "{word}");
        assert_eq!(told("alice@example.com"), "deny end", "{word}");
        assert_eq!(told("malice"), "deny end", "{word}");
    }
    // Logins that are keywords or look like mistakes, with the `@` that makes them logins.
    for login in ["anyone", "funnel", "all", "nobody", "10.0.0.1"] {
        let rules = rules(&format!(
            "[[rule]]\ndecision = \"allow\"\nwho = [\"{login}@\"]\n"
        ));
        assert_eq!(
            told(&rules, Who::Known(&user(login)), &get("/")),
            "allow rule:1"
        );
        assert_eq!(
            told(&rules, Who::Known(&user("bob")), &get("/")),
            "deny end"
        );
        assert_eq!(told(&rules, Who::Funnel, &get("/")), "deny end");
    }
    // A machine is not a login, whatever it is called.
    let tagged = rules("[[rule]]\ndecision = \"allow\"\nwho = [\"tagged-devices@\"]\n");
    assert_eq!(
        told(&tagged, Who::Known(&machine("tag:ci")), &get("/")),
        "deny end"
    );
}

#[test]
fn words_that_were_hardly_meant_as_a_login_are_refused() {
    let refused = |word: &str| {
        let text = format!(
            "[groups]\nstaff = [\"alice\"]\n[[rule]]\ndecision = \"deny\"\nwho = [{word:?}]\n"
        );
        Rules::parse(&text, CAPABILITY)
            .err()
            .map(|mistakes| mistakes.to_string())
    };
    for (word, advice) in [
        ("staff", "group:staff"),
        ("tagged-devices", "name their tags"),
        ("anyon", "did you mean \"anyone\""),
        ("Funnel", "did you mean \"funnel\""),
        ("everyone", "is *"),
        ("nobody", "nobody@"),
        ("100.64.0.7", "is an address"),
        ("fd7a::1", "names nobody"),
        ("user:alice", "names nobody"),
        ("autogroup:member", "names nobody"),
        ("@", "names nobody"),
        ("@example.com", "names nobody"),
        ("a/b", "names nobody"),
        ("al*", "names nobody"),
        ("", "names nobody"),
    ] {
        let told = refused(word).unwrap_or_else(|| panic!("{word:?} is taken"));
        assert!(told.contains(advice), "{word}: {told}");
    }
    assert_eq!(refused("alice"), None);
    let inside = "[groups]\nstaff = [\"crew\"]\ncrew = [\"alice\"]\n";
    let told = Rules::parse(inside, CAPABILITY).unwrap_err().to_string();
    assert!(told.contains("\"crew\" is a group of this file"), "{told}");
}

#[test]
fn a_mistake_is_one_line_whatever_the_keys_of_the_file_are_called() {
    let text = "[groups]\n\"a\\nb\\u001b[2J\" = [7]\n\"c\\nd\" = 1\n";
    let mistakes = Rules::parse(text, CAPABILITY).unwrap_err();
    assert_eq!(mistakes.0.len(), 2);
    for mistake in mistakes.0 {
        let told = mistake.to_string();
        assert!(!told.chars().any(char::is_control), "{told:?}");
    }
}

#[test]
fn every_mistake_of_a_file_is_told_at_once_with_its_line() {
    let text = r#"
versoin = 1
[groups]
staff = ["*"]
[[rule]]
name = "a"
decision = "alow"
who = ["group:stuff", "nobody"]
paths = ["admin", "/x/../y"]
[[rule]]
name = "a"
hosts = []
methods = ["get"]
foreign = "no"
[[rule]]
decision = "allow"
who = ["anyone"]
grant = { capabilty = "x", has = { a = [1] } }
host = ["x"]
"#;
    let mistakes = Rules::parse(text, CAPABILITY).unwrap_err();
    insta::assert_snapshot!(mistakes.to_string(), @r#"
    line 2: versoin: is not known here (did you mean "version"?)
    line 4: groups.staff: "*" cannot be a member: groups hold users, *@domain and tags
    line 7: rule[1].decision: "alow" is not allow, deny or anonymous
    line 8: rule[1].who: there is no group "stuff" under [groups] (did you mean "staff"?)
    line 8: rule[1].who: "nobody" is not a word of rules; leave the rule out. A user with that login is "nobody@"
    line 9: rule[1].paths: "admin" is no path prefix: it starts with /, is written without %, //, . and .., no name in it ends with a dot, and it holds all below it (no *)
    line 9: rule[1].paths: "/x/../y" is no path prefix: it starts with /, is written without %, //, . and .., no name in it ends with a dot, and it holds all below it (no *)
    line 10: rule[2].decision: is missing: allow, deny or anonymous
    line 10: rule[2].name: "a" is the name of the rule in line 5 already
    line 12: rule[2].hosts: is empty; leave it out, or say whom or what is meant
    line 13: rule[2].methods: "get" is no method: they are written in capitals
    line 14: rule[2].foreign: must be true or false, not a string
    line 17: rule[3].who: "anyone" has no identity to allow: use decision = "anonymous"
    line 18: rule[3].grant.capabilty: is not known here (did you mean "capability"?)
    line 18: rule[3].grant.capability: is missing
    line 18: rule[3].grant.has.a: compare with a string, a whole number or true and false
    line 19: rule[3].host: is not known here (did you mean "hosts"?)
    "#);
}

#[test]
fn a_broken_file_is_told_by_line() {
    let mistakes = Rules::parse("[[rule]]\ndecision = \"allow\nwho = [\n", CAPABILITY).unwrap_err();
    assert!(
        mistakes.0.iter().any(|mistake| mistake.line == 2),
        "{mistakes}"
    );
}

/// A segment as a client might send it.
fn segment() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("admin".to_owned()),
        Just("public".to_owned()),
        Just("..".to_owned()),
        Just(".".to_owned()),
        Just(String::new()),
        Just("%2e%2e".to_owned()),
        Just("%252e%252e".to_owned()),
        Just("..;x".to_owned()),
        Just("x%2f..".to_owned()),
        Just("..\\admin".to_owned()),
        Just("%61dmin".to_owned()),
        "[a-z%;.\\\\]{0,4}",
    ]
}

/// How a strict server that decodes once and then resolves dots reads the path. Written
/// independently of the code that it checks.
fn as_most_servers_read_it(raw: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = raw.as_bytes();
    while let [first, tail @ ..] = rest {
        let pair = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match pair.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' && !tail.starts_with(b"+") => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut stack: Vec<&str> = Vec::new();
    for segment in text.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                stack.pop();
            }
            other => stack.push(other),
        }
    }
    format!("/{}", stack.join("/"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// For any path: what most servers would read as /admin is denied, and what is allowed as
    /// /public is nothing else.
    #[test]
    fn no_path_evades(segments in proptest::collection::vec(segment(), 0..7)) {
        let raw = format!("/{}", segments.join("/"));
        let Ok(path) = Path::parse(&raw) else { return Ok(()) };
        let rules = rules("[[rule]]\ndecision = \"deny\"\npaths = [\"/admin\"]\n[[rule]]\ndecision = \"allow\"\npaths = [\"/public\"]\n");
        let asked = Target { path: Some(path), ..get("/") };
        let effect = rules.decide(Who::Known(&user("a@b.c")), &asked).effect;
        let read = as_most_servers_read_it(&raw);
        let below = |prefix: &str| read == prefix || read.starts_with(&format!("{prefix}/"));
        if below("/admin") {
            prop_assert_eq!(effect, Effect::Deny);
        }
        if effect == Effect::Allow {
            prop_assert!(below("/public"), "{} is read as {}", raw, read);
        }
    }

    /// The first match decides, compared with the simplest possible model.
    #[test]
    fn first_match_decides(
        list in proptest::collection::vec((0..3_usize, 0..3_usize, 0..3_usize), 0..6),
        caller in 0..2_usize,
        at in 0..2_usize,
    ) {
        const DECISIONS: [&str; 3] = ["allow", "deny", "anonymous"];
        const LOGINS: [&str; 2] = ["a@x.y", "b@x.y"];
        const PATHS: [&str; 2] = ["/a", "/b"];
        let mut text = String::new();
        for (decision, who, path) in &list {
            text += &format!("[[rule]]\ndecision = \"{}\"\n", DECISIONS[*decision]);
            if let Some(login) = LOGINS.get(*who) {
                text += &format!("who = [\"{login}\"]\n");
            }
            if let Some(path) = PATHS.get(*path) {
                text += &format!("paths = [\"{path}\"]\n");
            }
        }
        let expected = list
            .iter()
            .position(|(_, who, path)| (*who == caller || *who == 2) && (*path == at || *path == 2));
        let decision = rules(&text).decide(Who::Known(&user(LOGINS[caller])), &get(PATHS[at]));
        match expected {
            None => prop_assert_eq!(decision.rule, RuleId::End),
            Some(number) => {
                prop_assert_eq!(decision.rule.to_string(), format!("rule:{}", number + 1));
                prop_assert_eq!(decision.effect.as_str(), DECISIONS[list[number].0]);
            }
        }
    }
}

#[test]
fn the_nearest_rule_is_one_that_needs_the_fewest_changes() {
    let rules = rules(
        r#"
        [[rule]]
        name = "docs-of-alice"
        decision = "allow"
        who = ["alice@example.com"]
        paths = ["/docs"]
        [[rule]]
        name = "docs-of-all"
        decision = "allow"
        who = ["*"]
        paths = ["/docs"]
        [[rule]]
        name = "not-x"
        decision = "deny"
        paths = ["/x"]
        [[rule]]
        name = "alice"
        decision = "allow"
        who = ["alice@example.com"]
        "#,
    );
    let bob = user("bob@example.com");
    let nearest = |who, path| {
        let near = rules.nearest(who, &get(path)).unwrap();
        format!("{}: {}", near.rule, near.misses.join(", "))
    };
    // One part is missing in two rules: other callers are more often meant than other paths.
    assert_eq!(
        nearest(Who::Known(&bob), "/y"),
        "rule:alice: not for this caller"
    );
    // Of rules that are equally near, the first one is named.
    assert_eq!(
        nearest(Who::Funnel, "/docs"),
        "rule:docs-of-alice: not for callers from the internet"
    );
    let alice = user("alice@example.com");
    assert_eq!(nearest(Who::Known(&alice), "/x"), "rule:alice: ");
    assert_eq!(
        Rules::grants_only(CAPABILITY).nearest(Who::Nobody, &get("/")),
        None
    );
}
