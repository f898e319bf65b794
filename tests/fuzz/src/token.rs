//! Tokens of outside issuers. Input: header, payload and a change to the text, each in a line. The
//! first two are signed here with a key that the verifier trusts. The same input is also parsed as
//! it is, as a token without a valid signature.

use std::{fmt, sync::LazyLock};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Value, json};
use tailbone::jwks::{
    fetch::KeySet,
    verify::{ParsedToken, SignatureCheck, TimeClaim},
};

const KID: &str = "k1";

struct Issuer {
    key: Ed25519KeyPair,
    set: KeySet,
}

static ISSUER: LazyLock<Issuer> = LazyLock::new(|| {
    // Always the same key and so the same signatures: what a fuzzer tries next depends on them.
    let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let x = URL_SAFE_NO_PAD.encode(key.public_key());
    let document = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": KID, "x": x}]});
    Issuer {
        key,
        set: KeySet::parse(document.to_string().as_bytes()).unwrap(),
    }
});

pub(super) fn run(data: &[u8]) {
    let Some(input) = super::text(data) else {
        return;
    };
    if let Ok(token) = ParsedToken::read(input) {
        agrees(&token, input, "");
        assert_ne!(
            token.signature(&ISSUER.set),
            SignatureCheck::Valid,
            "nobody signed it"
        );
    }
    let mut lines = input.split('\n');
    if let (Some(header), Some(payload)) = (lines.next(), lines.next()) {
        signed(header, payload, lines.next().unwrap_or_default());
    }
}

fn signed(header: &str, payload: &str, change: &str) {
    let message = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(payload)
    );
    let signature = ISSUER.key.sign(message.as_bytes());
    let text = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));

    let told: Option<Value> = serde_json::from_str(header).ok();
    let told = told.filter(|_| distinct(header) && distinct(payload));
    let member = |name: &str| told.as_ref().and_then(|header| header.get(name));
    let known_key = member("kid").is_none_or(|kid| kid == KID);
    let good = member("alg").is_some_and(|alg| alg == "EdDSA" || alg == "Ed25519")
        && member("crit").is_none()
        && known_key
        && serde_json::from_str::<Value>(payload).is_ok_and(|payload| payload.is_object());
    match ParsedToken::read(&text) {
        Ok(token) => {
            agrees(&token, &text, change);
            let found = token.signature(&ISSUER.set);
            assert_eq!(
                found == SignatureCheck::Valid,
                good,
                "{found:?} for {header} {payload}"
            );
        }
        Err(error) => assert!(!good, "{error} for {header} {payload}"),
    }
    if let Some(changed) = changed(&text, change)
        && let Ok(token) = ParsedToken::read(&changed)
    {
        assert_ne!(
            token.signature(&ISSUER.set),
            SignatureCheck::Valid,
            "{changed} passes for {text}"
        );
    }
}

/// The text with one character inserted, removed or replaced: `put 3 A`, `take 3`, `set 3 A`.
fn changed(text: &str, change: &str) -> Option<String> {
    let mut words = change.split(' ');
    let (what, at) = (words.next()?, words.next()?.parse::<usize>().ok()?);
    let with = words.next().and_then(|word| word.chars().next());
    let at = at % text.len();
    let mut changed = text.to_owned();
    match what {
        "put" => changed.insert(at, with?),
        "take" => drop(changed.remove(at)),
        "set" => changed.replace_range(at..=at, with?.encode_utf8(&mut [0; 4])),
        _ => return None,
    }
    (changed != text).then_some(changed)
}

/// The token's claims must equal those that a plain JSON parser finds in its payload.
fn agrees(token: &ParsedToken, text: &str, pointer: &str) {
    let payload = text.split('.').nth(1).unwrap();
    let payload = URL_SAFE_NO_PAD.decode(payload).unwrap();
    assert!(
        distinct(std::str::from_utf8(&payload).unwrap()),
        "a claim stands twice"
    );
    let whole: Value = serde_json::from_slice(&payload).unwrap();
    for (name, value) in whole.as_object().unwrap() {
        if !name.starts_with('/') {
            assert_eq!(token.claims.find(name), Some(value));
        }
        assert_eq!(token.claims.text(name), value.as_str());
        let when = match value.as_f64() {
            Some(seconds) => TimeClaim::At(seconds),
            None => TimeClaim::NotANumber,
        };
        assert_eq!(token.claims.time(name), when);
    }
    if pointer.starts_with('/') {
        assert_eq!(
            token.claims.find(pointer),
            whole.pointer(pointer),
            "{pointer}"
        );
    }
    let audiences = match &whole["aud"] {
        Value::Null if whole.get("aud").is_none() => Some(Vec::new()),
        Value::String(one) => Some(vec![one.as_str()]),
        Value::Array(many) => many.iter().map(Value::as_str).collect(),
        _ => None,
    };
    assert_eq!(token.claims.audiences(), audiences);
    let shown = format!("{token:?}");
    let signature = text.rsplit('.').next().unwrap();
    // Whoever wrote the token may have put the same text into the key's name.
    let elsewhere = token.kid().is_some_and(|kid| kid.contains(signature));
    assert!(signature.len() < 32 || elsewhere || !shown.contains(signature));
}

/// Whether an object has no duplicate member at its first level.
fn distinct(object: &str) -> bool {
    struct Names(bool);

    impl<'de> Deserialize<'de> for Names {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Seen;

            impl<'de> Visitor<'de> for Seen {
                type Value = Names;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("an object")
                }

                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                    let mut names = Vec::new();
                    while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                        names.push(name);
                    }
                    let all = names.len();
                    names.sort();
                    names.dedup();
                    Ok(Names(names.len() == all))
                }
            }

            deserializer.deserialize_map(Seen)
        }
    }

    serde_json::from_str::<Names>(object).is_ok_and(|names| names.0)
}
