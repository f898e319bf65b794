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

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use jiff::Timestamp;

    use crate::{
        Algorithm, KeyPolicy, KeySpec, KeyStore,
        jwks::{FilePublisher, KeySet},
        tsidp::{
            KEY_FILE, TsidpKeyFile,
            tests::{KID, file, pem},
        },
    };

    #[tokio::test]
    async fn tsidps_key_signs_under_its_id_and_the_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let theirs = folder.path().join(KEY_FILE);
        let bytes = file(&pem());
        std::fs::write(&theirs, &bytes).unwrap();
        let policy = KeyPolicy {
            token_life: Duration::from_secs(3600),
            cache_time: Duration::from_secs(300),
            skew: Duration::ZERO,
            rotate_every: None,
            withdrawn_grace: Duration::ZERO,
        };
        let open = || {
            let specs = [KeySpec::Rs256 { bits: 2048 }, KeySpec::Es256];
            KeySet::new(
                "oidc",
                KeyStore::new(folder.path().join("keys")),
                Arc::new(FilePublisher::new(folder.path().join("jwks.json"))),
                &policy,
                "tb",
                specs[0],
                &specs,
            )
            .taking_over(Arc::new(TsidpKeyFile::in_directory(folder.path())))
        };
        let now = Timestamp::now();
        let set = open();
        set.start(now).await.unwrap();
        let signer = set.signer(Algorithm::Rs256).unwrap();
        assert_eq!(signer.kid().as_str(), KID.to_string());
        let document = set.document().unwrap();
        let kids: Vec<_> = document
            .document
            .keys()
            .iter()
            .map(|key| &key["alg"])
            .collect();
        assert_eq!(kids.len(), 2, "one of each algorithm: {kids:?}");
        assert!(document.document.find(&KID.to_string()).is_some());
        assert_eq!(std::fs::read(&theirs).unwrap(), bytes);

        // A second start has the same key, also without tsidp's file.
        drop(set);
        std::fs::remove_file(&theirs).unwrap();
        let set = open();
        set.start(now).await.unwrap();
        let signer = set.signer(Algorithm::Rs256).unwrap();
        assert_eq!(signer.kid().as_str(), KID.to_string());
    }
}
