//! Policies of the token exchange. Input: a policy file; its last line is also matched against the
//! file's patterns.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::Algorithm;
use serde_json::json;
use tailbone::{
    jwks::verify::{ParsedToken, SignatureCheck},
    sts::policy::{
        self, Audience, CheckedToken, ClaimPattern, ExchangePolicy, PolicyOutcome, RequestedAccess,
        fuzzing,
    },
};

const NOW: i64 = 1_800_000_000;

pub(super) fn run(data: &[u8]) {
    let Some(text) = super::text(data) else {
        return;
    };
    // The file may name other files, and none on this machine may be opened.
    if text.to_ascii_lowercase().contains("client_") || text.contains('\\') {
        return;
    }
    match fuzzing::parse(text) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                super::assert_one_line(&warning.to_string());
            }
            for policy in &loaded.policies {
                let warned = |field: &str| {
                    (loaded.warnings.iter()).any(|warning| warning.field.as_deref() == Some(field))
                };
                sound(policy, &warned);
                decides(policy);
                patterns(policy, text.lines().last().unwrap_or_default());
            }
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            for mistake in mistakes {
                super::assert_one_line(&mistake.to_string());
            }
        }
    }
}

fn sound(policy: &ExchangePolicy, warned: &dyn Fn(&str) -> bool) {
    assert!(!policy.issuers.is_empty() && !policy.issuers.iter().any(String::is_empty));
    assert!(!policy.algorithms.is_empty());
    for algorithm in &policy.algorithms {
        let shared = matches!(
            algorithm,
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512
        );
        assert!(!shared, "whoever verifies could sign");
    }
    assert!(!policy.scopes.is_empty());
    for scope in &policy.scopes {
        let fits = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
        assert!(!scope.is_empty() && scope.bytes().all(fits), "{scope:?}");
    }
    for tag in &policy.tags {
        let name = tag.strip_prefix("tag:").unwrap();
        assert!(!name.contains(|c: char| c.is_whitespace() || c == ',' || c == ':'));
    }
    assert!(policy.max_age.is_none_or(|age| !age.is_zero()));
    if let Audience::OneOf(audiences) = &policy.audience {
        assert!(!audiences.is_empty() && !audiences.iter().any(String::is_empty));
    }
    if policy.subject.is_none() && policy.conditions.is_empty() {
        assert!(warned("subject"), "wide open without a word");
    }
    for condition in &policy.conditions {
        assert!(!condition.wanted.is_empty(), "never met");
    }
}

/// For any file: without a valid signature, an issuer in the file and scopes in the file nothing is
/// granted.
fn decides(policy: &ExchangePolicy) {
    let issuer = policy.issuers[0].as_str();
    let claims = json!({"iss": issuer, "sub": policy.subject, "exp": NOW + 60, "iat": NOW - 1});
    let scopes = &policy.scopes[..1];
    let allowed = |claims: &serde_json::Value,
                   signature: SignatureCheck,
                   scopes: &[String],
                   tags: &[String]| {
        let algorithm = format!("{:?}", policy.algorithms[0]);
        let header = json!({"alg": algorithm});
        let part = |json: &serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let token =
            ParsedToken::read(&format!("{}.{}.{}", part(&header), part(claims), "AA")).unwrap();
        let checked_token = CheckedToken {
            token: &token,
            signatures: vec![(policy.source.clone(), signature)],
        };
        let request = RequestedAccess { scopes, tags };
        let now = Timestamp::from_second(NOW).unwrap();
        let policies = std::slice::from_ref(policy);
        let decision = policy::decide(policies, &checked_token, request, now, Duration::ZERO);
        if let PolicyOutcome::Refused(_, reason) = &decision.outcome {
            assert!(!reason.code().is_empty());
        }
        matches!(decision.outcome, PolicyOutcome::Allowed(_))
    };
    for signature in [
        SignatureCheck::Invalid,
        SignatureCheck::NoKeys,
        SignatureCheck::NoMatchingKey,
    ] {
        assert!(!allowed(&claims, signature, scopes, &[]));
    }
    let good = |claims: &serde_json::Value, scopes: &[String], tags: &[String]| {
        allowed(claims, SignatureCheck::Valid, scopes, tags)
    };
    assert!(!good(&claims, &[], &[]), "no scope was requested");
    let more = [scopes[0].clone(), "not\u{1}a-scope".to_owned()];
    assert!(!good(&claims, &more, &[]), "another scope");
    let others = ["tag:nobody-has-it".to_owned()];
    assert!(policy.any_tags || policy.tags.contains(&others[0]) || !good(&claims, scopes, &others));
    if ["all", "auth_keys"].contains(&scopes[0].as_str()) && policy.tags.is_empty() {
        assert!(policy.any_tags || !good(&claims, scopes, &[]), "any tag");
    }
    let with = |name: &str, value: serde_json::Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        claims
    };
    assert!(
        !good(&with("iss", format!("{issuer}/").into()), scopes, &[]) || policy.issuers.len() > 1
    );
    assert!(
        !good(&with("exp", (NOW - 1).into()), scopes, &[]),
        "expired"
    );
    assert!(
        !good(&with("nbf", (NOW + 1).into()), scopes, &[]),
        "not yet valid"
    );
    if policy.subject.is_some() {
        assert!(!good(
            &with("sub", "somebody \u{1} else".into()),
            scopes,
            &[]
        ));
    }
    if matches!(policy.audience, Audience::OneOf(_)) {
        assert!(!good(&claims, scopes, &[]), "made for nobody");
    }
    if policy.require_exp {
        let mut claims = claims.clone();
        claims.as_object_mut().unwrap().remove("exp");
        assert!(!good(&claims, scopes, &[]), "it never expires");
    }
    if let Some(age) = policy.max_age
        && age < Duration::from_secs(1_000_000)
    {
        let old = NOW - i64::try_from(age.as_secs()).unwrap() - 2;
        assert!(!good(&with("iat", old.into()), scopes, &[]), "too old");
    }
}

fn patterns(policy: &ExchangePolicy, text: &str) {
    let wanted = policy
        .conditions
        .iter()
        .flat_map(|condition| &condition.wanted);
    for pattern in wanted {
        if let ClaimPattern::Glob(pattern) = pattern {
            assert_eq!(
                fuzzing::matches(pattern, text),
                meets(pattern, text),
                "{pattern} {text}"
            );
        }
    }
}

/// The definition of a pattern: the positions in the text at which each part of it can end.
fn meets(pattern: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let mut ends = vec![false; text.len() + 1];
    ends[0] = true;
    let mut pattern = pattern.chars();
    while let Some(c) = pattern.next() {
        let mut next = vec![false; text.len() + 1];
        match c {
            '*' => {
                let first = ends.iter().position(|end| *end).unwrap_or(next.len());
                next[first..].fill(true);
            }
            c => {
                let wanted = match c {
                    '?' => None,
                    '\\' => Some(pattern.next().unwrap_or('\\')),
                    c => Some(c),
                };
                for (at, c) in text.iter().enumerate() {
                    next[at + 1] = ends[at] && wanted.is_none_or(|wanted| wanted == *c);
                }
            }
        }
        ends = next;
    }
    ends[text.len()]
}
