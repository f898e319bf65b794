//! The signing key as tsidp keeps it, in `oidc-key.json`: a number as its id, and an RSA key in
//! PEM.
//!
//! Invariant: the file is read and never written, so tsidp can be started again on it. tsidp makes
//! a new key where it cannot read this file; here that is an error, since every verifier would
//! refuse what the new key signs.

use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{FutureExt as _, future::BoxFuture};
use serde::Deserialize;
use tailbone_values::Object;
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    KeyId, PrivateJwk,
    tsiam::{Found, KeySource, Refused, SourceError, read_file},
};

/// The file's name in tsidp's directory.
pub const KEY_FILE: &str = "oidc-key.json";

/// What stands at the ends of an RSA key in PEM, between rows of dashes.
const LABEL: &str = "RSA PRIVATE KEY";

/// The file in a directory of tsidp's. One that is not there is no key.
#[derive(Debug)]
pub struct TsidpKeyFile {
    path: PathBuf,
    place: String,
}

impl TsidpKeyFile {
    pub fn in_directory(directory: &Path) -> Self {
        let path = directory.join(KEY_FILE);
        Self {
            place: path.display().to_string(),
            path,
        }
    }
}

impl KeySource for TsidpKeyFile {
    fn place(&self) -> &str {
        &self.place
    }

    fn read(&self) -> BoxFuture<'_, Result<Option<Found>, SourceError>> {
        let (path, place) = (self.path.clone(), self.place.clone());
        async move {
            let read = tokio::task::spawn_blocking(move || {
                let Some(found) = read_file(&path)? else {
                    return Ok(None);
                };
                let json = jwk(&found.json).map_err(|reason| SourceError::Refused {
                    place: path.display().to_string(),
                    reason,
                })?;
                Ok(Some(Found { json, ..found }))
            });
            read.await.unwrap_or_else(|error| {
                let detail = error.to_string();
                Err(SourceError::Unavailable { place, detail })
            })
        }
        .boxed()
    }
}

/// The key as a JWK, under the id that tsidp's tokens and documents have.
fn jwk(file: &[u8]) -> Result<Zeroizing<Vec<u8>>, Refused> {
    #[derive(Deserialize)]
    struct Stored {
        // A random number of 64 bits.
        kid: u64,
        key: String,
    }
    let Ok(Object(Stored { kid, mut key })) = serde_json::from_slice(file) else {
        return Err(Refused::NotTsidp(
            "no object with a number kid and a text key",
        ));
    };
    let der = der(&key);
    key.zeroize();
    let kid: KeyId = kid.to_string().parse().map_err(crate::JwkError::from)?;
    Ok(PrivateJwk::from_pkcs1(kid, &der?)?.to_compact())
}

fn der(pem: &str) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let dashes = "-----";
    let (begin, end) = (
        format!("{dashes}BEGIN {LABEL}{dashes}"),
        format!("{dashes}END {LABEL}{dashes}"),
    );
    let body = pem
        .split_once(&begin)
        .and_then(|(_, rest)| rest.split_once(&end))
        .ok_or(Refused::NotTsidp(
            "its key is no PEM of an RSA key in PKCS#1",
        ))?
        .0;
    let text: Zeroizing<String> = Zeroizing::new(body.split_whitespace().collect());
    STANDARD
        .decode(text.as_bytes())
        .map(Zeroizing::new)
        .map_err(|_| Refused::NotTsidp("its key is no base64"))
}

#[cfg(test)]
pub(crate) mod tests {
    use aws_lc_rs::{
        encoding::AsDer as _,
        rsa::{KeyPair, KeySize},
    };
    use rsa::{PrivateKey, pkcs1::EncodeRsaPrivateKey as _, pkcs8::DecodePrivateKey as _};
    use serde_json::json;

    use super::*;

    /// Above 2^53, as most of tsidp's are.
    pub(crate) const KID: u64 = 17_293_822_569_102_704_641;

    pub(crate) fn file(key: &str) -> Vec<u8> {
        json!({"kid": KID, "key": key}).to_string().into_bytes()
    }

    pub(crate) fn pem() -> String {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let key = PrivateKey::from_pkcs8_der(pair.as_der().unwrap().as_ref()).unwrap();
        let text = STANDARD.encode(key.to_pkcs1_der().unwrap().as_bytes());
        let lines: Vec<_> = text
            .as_bytes()
            .chunks(64)
            .map(String::from_utf8_lossy)
            .collect();
        let dashes = "-----";
        format!(
            "{dashes}BEGIN {LABEL}{dashes}\n{}\n{dashes}END {LABEL}{dashes}\n",
            lines.join("\n")
        )
    }

    #[tokio::test]
    async fn what_is_no_key_of_tsidps_is_an_error_without_its_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(KEY_FILE);
        let source = TsidpKeyFile::in_directory(folder.path());
        assert!(source.read().await.unwrap().is_none());
        let dashes = "-----";
        let framed = |body: &str| {
            format!("{dashes}BEGIN {LABEL}{dashes}\n{body}\n{dashes}END {LABEL}{dashes}")
        };
        for (bytes, words) in [
            (b"{}".to_vec(), "a number kid"),
            (b"s3cret".to_vec(), "a number kid"),
            (br#"{"kid": -1, "key": ""}"#.to_vec(), "a number kid"),
            (file("s3cret"), "no PEM of an RSA key"),
            (file(&framed("s3cret!")), "no base64"),
            (file(&framed("c2VjcmV0")), "no RSA key in PKCS#1"),
        ] {
            std::fs::write(&path, &bytes).unwrap();
            let error = source.read().await.unwrap_err().to_string();
            assert!(
                error.contains(words) && error.contains(KEY_FILE),
                "{words}: {error}"
            );
            assert!(
                !error.contains("s3cret") && !error.contains("c2Vj"),
                "{error}"
            );
        }
    }
}
