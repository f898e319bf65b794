//! The life of keys with real files.

mod azure;
mod crash;
mod directory;
mod go_directory;
mod go_fixture;
mod housekeeping;
mod publication;
mod remote;
mod replicas;
mod rotation;
mod set;
mod verifiers;

use std::{fs, path::Path, sync::Arc};

use jiff::Timestamp;
use jsonwebtoken::{DecodingKey, Validation, jwk::JwkSet};
use tailbone::{
    config::KeySpec,
    jwks::{
        Document, FilePublisher,
        life::{KeyLife, Report},
    },
    keys::{KeyStore, KeyView, disk::Probe},
};
use testkit::keys::policy;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_750_000_000 + seconds).unwrap()
}

/// A server with this directory that publishes to `jwks`, with small keys.
fn key_life(directory: &Path, jwks: &Path) -> KeyLife {
    with_probe(directory, jwks, &Probe::default())
}

fn with_probe(directory: &Path, jwks: &Path, probe: &Probe) -> KeyLife {
    KeyLife::new(
        KeyStore::new(directory).with_probe(probe.clone()),
        Arc::new(FilePublisher::with_probe(jwks, probe.clone())),
        policy(),
        "tb",
        KeySpec::Es256,
    )
    .in_told_time()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// All files in a folder, with their contents.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    names(folder)
        .into_iter()
        .map(|name| {
            (
                name.clone(),
                fs::read(folder.join(name)).unwrap_or_default(),
            )
        })
        .collect()
}

fn kids(jwks: &Path) -> Vec<String> {
    Document::parse(&fs::read(jwks).unwrap())
        .unwrap()
        .kids()
        .map(str::to_owned)
        .collect()
}

fn view<'a>(report: &'a Report, kid: &str) -> &'a KeyView {
    report
        .keys
        .iter()
        .find(|key| key.kid == kid)
        .unwrap_or_else(|| panic!("{kid} in {report:?}"))
}

/// Verifies as an outsider does, with only the document.
fn verify(token: &str, jwks: &[u8]) -> serde_json::Value {
    let set: JwkSet = serde_json::from_slice(jwks).unwrap();
    let header = jsonwebtoken::decode_header(token).unwrap();
    let jwk = set
        .find(header.kid.as_deref().unwrap())
        .expect("the key is published");
    let mut rules = Validation::new(header.alg);
    rules.required_spec_claims.clear();
    rules.validate_exp = false;
    jsonwebtoken::decode(token, &DecodingKey::from_jwk(jwk).unwrap(), &rules)
        .unwrap()
        .claims
}
