//! Files of private keys. Input: the type of key (`ec`, `ec384`, `ec521`, `ed` or `rsa`) in the
//! first line, then a JSON object with members to replace in a valid file; `null` removes one.

use std::{collections::BTreeMap, sync::LazyLock};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};
use tailbone::keys::{KeyId, PrivateJwk};

const PRIVATE: [&str; 6] = ["d", "p", "q", "dp", "dq", "qi"];

type Members = Map<String, Value>;

/// Keys for this alone. They are always the same: what a fuzzer tries next depends on them.
static FILES: LazyLock<BTreeMap<&str, Members>> = LazyLock::new(|| {
    [
        ("ec", include_str!("../keys/ec.jwk")),
        ("ec384", include_str!("../keys/ec384.jwk")),
        ("ec521", include_str!("../keys/ec521.jwk")),
        ("ed", include_str!("../keys/ed.jwk")),
        ("rsa", include_str!("../keys/rsa.jwk")),
    ]
    .map(|(kind, file)| (kind, serde_json::from_str(file).unwrap()))
    .into()
});

pub(super) fn run(data: &[u8]) {
    let name: KeyId = "from-the-file-name".parse().unwrap();
    if let Err(error) = PrivateJwk::from_file(data, &name) {
        super::assert_one_line(&error.to_string());
    }
    let Some((kind, patch)) = super::text(data).and_then(|text| text.split_once('\n')) else {
        return;
    };
    let (Some(good), Ok(patch)) = (FILES.get(kind), serde_json::from_str::<Members>(patch)) else {
        return;
    };
    let mut members = good.clone();
    for (name, value) in patch {
        match value {
            Value::Null => members.remove(&name),
            value => members.insert(name, value),
        };
    }
    let file = serde_json::to_vec(&members).unwrap();
    match PrivateJwk::from_file(&file, &name) {
        Ok(key) => {
            same_numbers(good, &members);
            let written = key.to_file();
            let again = PrivateJwk::from_file(&written, &name).unwrap();
            assert_eq!(again.public(), key.public());
            assert_eq!(again.to_file(), written);
            let public = key.public().to_value();
            assert!(PRIVATE.iter().all(|name| public.get(*name).is_none()));
            let kid = key.public().kid.as_str();
            assert!(!kid.contains(['/', '\\']) && !kid.starts_with('.'));
            quotes_nothing(&members, &format!("{key:?}"));
        }
        Err(error) => {
            super::assert_one_line(&error.to_string());
            quotes_nothing(&members, &format!("{error} {error:?}"));
            let kid = members.get("kid");
            let same = |name: &&String| good.get(*name) == members.get(*name) || *name == "kid";
            let harmless = kid.is_none_or(|kid| kid == "tb-1" || kid == "");
            assert!(
                !good.keys().all(|name| same(&name)) || !harmless || !unread(&members),
                "a good key is refused: {error}"
            );
        }
    }
}

/// No other matching key is found by chance: an accepted key is the valid one, perhaps with leading
/// zeros in a number.
fn same_numbers(good: &Members, taken: &Members) {
    for name in PRIVATE.into_iter().chain(["e", "n", "x", "y"]) {
        let number = |members: &Members| {
            let text = members.get(name)?.as_str()?;
            let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            Some(bytes[zeros..].to_vec())
        };
        if good.contains_key(name) {
            assert_eq!(number(good), number(taken), "{name} was changed and taken");
        }
    }
}

/// Members that the valid file does not have are ignored if they are strings.
fn unread(members: &Members) -> bool {
    members.values().all(Value::is_string)
}

/// No message and no `Debug` output shows a private part.
fn quotes_nothing(members: &Members, shown: &str) {
    for name in PRIVATE {
        let Some(secret) = members.get(name).and_then(Value::as_str) else {
            continue;
        };
        let elsewhere = members.iter().any(|(other, value)| {
            !PRIVATE.contains(&other.as_str()) && value.to_string().contains(secret)
        });
        // A private part has 43 letters and more, and no blanks. The words of a message have less,
        // and a private part that is one of them is no secret.
        let is_word = secret.len() < 24 || secret.contains(' ');
        if !is_word && !elsewhere {
            assert!(!shown.contains(secret), "{name} is shown: {shown}");
        }
    }
}
