//! The gate's file of rules. Input: the file.

use std::sync::LazyLock;

use http::Method;
use tailbone::{
    identity::Visitor,
    policy::{CAPABILITY, Effect, Host, Path, RuleId, Rules, Target, Verdict, Who},
};

const ALICE: &str = r#"{"node":{"id":"n2","name":"laptop.a.ts.net","tags":[]},
"user":{"id":7,"login":"alice@example.com","display_name":"Alice"},"same_tailnet":true}"#;
const MACHINE: &str = r#"{"node":{"id":"n7","name":"ci.a.ts.net","tags":["tag:ci"]},
"user":{"id":3,"login":"tagged-devices"},"same_tailnet":true}"#;
const FOREIGN: &str = r#"{"node":{"id":"n9","name":"phone.b.ts.net","tags":[]},
"user":{"id":9,"login":"bob@example.org","display_name":"Bob"},"same_tailnet":false}"#;

static VISITORS: LazyLock<[Visitor; 3]> = LazyLock::new(|| {
    [ALICE, MACHINE, FOREIGN]
        .map(|whois| Visitor::from_whois(serde_json::from_str(whois).unwrap(), "a.ts.net").unwrap())
});

/// The requests to decide about; the first is that of a proxy that reports nothing.
static REQUESTS: LazyLock<Vec<Target>> = LazyLock::new(|| {
    let hosts = [None, Some("wiki.example.com"), Some("example.com")];
    let paths = [None, Some("/"), Some("/admin/x"), Some("/public/../admin")];
    let methods = [None, Some(Method::GET), Some(Method::POST)];
    let mut requests = Vec::new();
    for host in hosts {
        for path in paths {
            for method in &methods {
                requests.push(Target {
                    host: host.map(|host| Host::parse(host).unwrap()),
                    path: path.map(|path| Path::parse(path).unwrap()),
                    method: method.clone(),
                });
            }
        }
    }
    requests
});

pub(super) fn run(data: &[u8]) {
    let Some(text) = super::text(data) else {
        return;
    };
    let rules = match Rules::parse(text, CAPABILITY) {
        Ok(rules) => rules,
        Err(mistakes) => {
            assert!(!mistakes.0.is_empty());
            assert!(mistakes.0.is_sorted_by_key(|mistake| mistake.line));
            let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
            for mistake in &mistakes.0 {
                assert!((1..=lines).contains(&mistake.line), "{mistake}");
                super::assert_one_line(&mistake.to_string());
            }
            return;
        }
    };
    let then_deny = format!("{text}\n[[rule]]\nname = 'the last'\ndecision = 'deny'\n");
    let then_deny = Rules::parse(&then_deny, CAPABILITY).ok();

    for (at, target) in REQUESTS.iter().enumerate() {
        for who in callers() {
            let decision = rules.decide(who, target);
            assert_eq!(rules.explain(who, target).1, decision);
            known_to_be_allowed(who, &decision, text);
            if let Some(longer) = &then_deny
                && decision.rule != RuleId::End
            {
                let again = longer.decide(who, target);
                assert_eq!(again, decision, "a later rule changed it");
            }
        }
        doubt_lets_nobody_in(&rules, at);
    }
}

fn callers() -> impl Iterator<Item = Who<'static>> {
    let known = VISITORS.iter().map(Who::Known);
    [Who::Doubt, Who::Funnel, Who::Nobody]
        .into_iter()
        .chain(known)
}

fn known_to_be_allowed(who: Who<'_>, decision: &Verdict, text: &str) {
    if decision.rule == RuleId::End {
        assert_eq!(decision.effect, Effect::Deny);
    }
    match decision.effect {
        Effect::Allow => {
            assert!(matches!(who, Who::Known(_)), "nobody's identity is told");
            if let Who::Known(visitor) = who {
                let says_so = text.contains("foreign") || text.contains('\\');
                assert!(!visitor.foreign() || says_so);
            }
        }
        Effect::Anonymous => assert!(
            text.contains("anonymous") || text.contains('\\'),
            "no rule says so"
        ),
        Effect::Deny => {}
    }
}

/// Access that is granted although something is unknown must be granted for every possible value.
fn doubt_lets_nobody_in(rules: &Rules, at: usize) {
    let vague = &REQUESTS[at];
    for who in callers() {
        if rules.decide(who, vague).effect == Effect::Deny {
            continue;
        }
        for clear in REQUESTS.iter().filter(|clear| fits(vague, clear)) {
            let decision = rules.decide(who, clear);
            assert_ne!(
                decision.effect,
                Effect::Deny,
                "{vague:?} passes, {clear:?} does not"
            );
        }
    }
    if rules.decide(Who::Doubt, vague).effect != Effect::Deny {
        for who in callers() {
            let decision = rules.decide(who, vague);
            assert_ne!(
                decision.effect,
                Effect::Deny,
                "in doubt, but not for {who:?}"
            );
        }
    }
}

/// Whether `clear` equals `vague` with more values known.
fn fits(vague: &Target, clear: &Target) -> bool {
    fn told<T: PartialEq>(vague: &Option<T>, clear: &Option<T>) -> bool {
        vague.is_none() || vague == clear
    }
    told(&vague.host, &clear.host)
        && told(&vague.path, &clear.path)
        && told(&vague.method, &clear.method)
}
