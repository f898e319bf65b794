//! Which keys of another program were taken over (`taken-over.json`): each of them once, so that
//! one that was removed, or whose time is over, does not come back with the next start.

use serde::{Deserialize, Serialize};
use tailbone_values::Object;

use crate::{History, KeyId, KeyStore, PrivateJwk, PublicJwk, StoreError};

const NAME: &str = "taken-over.json";
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    /// Thumbprints of the keys: they need not have ids.
    keys: Vec<String>,
}

/// Writes the key into the directory under this name, unless that was done before. The key comes
/// first: killed in between, the next start finds it there. Call with the lock held.
pub(super) fn take(
    store: &KeyStore,
    name: &KeyId,
    key: PrivateJwk,
    history: &History,
) -> Result<Option<PublicJwk>, StoreError> {
    let thumbprint = key.public().thumbprint();
    let mut file = match store.read_note(NAME)? {
        None => File {
            version: VERSION,
            keys: Vec::new(),
        },
        Some(json) => match serde_json::from_slice(&json) {
            Ok(Object(
                file @ File {
                    version: VERSION, ..
                },
            )) => file,
            _ => return Err(StoreError::Note(store.directory().join(NAME))),
        },
    };
    if file.keys.contains(&thumbprint) {
        return Ok(None);
    }
    let public = key.public().clone();
    let contents = store.load()?;
    let there = |known: &PublicJwk| known.parts == public.parts;
    let known = contents.keys.iter().filter_map(|key| key.public.as_ref());
    let new = !known.into_iter().any(there);
    if new {
        store.add_as(name, &key, history)?;
    }
    file.keys.push(thumbprint);
    // Plain data, so serialising cannot fail.
    let mut json = serde_json::to_vec_pretty(&file).unwrap_or_default();
    json.push(b'\n');
    store.write_note(NAME, &json)?;
    Ok(new.then_some(public))
}
