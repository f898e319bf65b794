//! The clients of tsidp, as it keeps them in `oidc-funnel-clients.json`.
//!
//! Invariants
//! - The file is read and never written, so tsidp can be started again on it.
//! - A file that cannot be read as a whole is an error: a client left out would be a login that
//!   fails without a reason.
//! - A secret leaves this module as its digest.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};
use tailbone_keys::disk::{self, DiskError};
use zeroize::Zeroizing;

use super::{Client, ClientOrigin, ClientSecret, Digest, MAX_NAME};

/// The file's name in tsidp's directory.
pub const CLIENTS_FILE: &str = "oidc-funnel-clients.json";

/// Bytes: 10^5 clients take some 50 MB.
const MAX_FILE: u64 = 256 * 1024 * 1024;

/// Why the clients are not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("{path}: client {id:?}: {what}")]
    Client {
        path: PathBuf,
        id: String,
        what: &'static str,
    },
    /// Without what serde says, which repeats values.
    #[error("{path} is no file of tsidp's clients (line {line}, column {column})")]
    NotClients {
        path: PathBuf,
        line: usize,
        column: usize,
    },
}

/// A client object; those members that are metadata under the same name are read apart.
#[derive(Deserialize)]
struct Stored {
    #[serde(default)]
    client_id: String,
    #[serde(default)]
    client_secret: Option<String>,
    #[serde(default)]
    client_name: Option<String>,
    /// What `client_name` was called in `cmd/tsidp`.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    redirect_uris: Option<Vec<String>>,
    /// The only one that there could be, once.
    #[serde(default)]
    redirect_uri: Option<String>,
    #[serde(default)]
    created_at: Option<String>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// Members that are metadata as they are (RFC 7591), and one by which tsidp knows its own.
const METADATA: &[&str] = &[
    "application_type",
    "client_uri",
    "contacts",
    "dynamically_registered",
    "grant_types",
    "logo_uri",
    "response_types",
    "scope",
    "token_endpoint_auth_method",
];

/// Reads the clients of a directory of tsidp's; `None` if it has no such file.
pub fn read_clients(directory: &Path, now: Timestamp) -> Result<Option<Vec<Client>>, ImportError> {
    let path = directory.join(CLIENTS_FILE);
    let Some(bytes) = disk::read(&path, MAX_FILE)?.map(Zeroizing::new) else {
        return Ok(None);
    };
    parse(&bytes, &path, now).map(Some)
}

fn parse(bytes: &[u8], path: &Path, now: Timestamp) -> Result<Vec<Client>, ImportError> {
    // Go writes `null` for a table that was never made.
    let stored: Option<BTreeMap<String, Stored>> =
        serde_json::from_slice(bytes).map_err(|error| ImportError::NotClients {
            path: path.to_owned(),
            line: error.line(),
            column: error.column(),
        })?;
    stored
        .unwrap_or_default()
        .into_iter()
        .map(|(id, stored)| {
            client(id.clone(), stored, now).map_err(|what| ImportError::Client {
                path: path.to_owned(),
                id,
                what,
            })
        })
        .collect()
}

fn client(id: String, stored: Stored, now: Timestamp) -> Result<Client, &'static str> {
    if id.is_empty() || id.len() > MAX_NAME || id.contains('\0') {
        return Err("its id is empty, too long, or has a NUL character");
    }
    if !stored.client_id.is_empty() && stored.client_id != id {
        return Err("its member client_id says otherwise");
    }
    let mut metadata = Map::new();
    let name = stored.client_name.or(stored.name);
    if let Some(name) = name.filter(|name| !name.is_empty()) {
        metadata.insert("client_name".to_owned(), name.into());
    }
    let mut uris = stored.redirect_uris.unwrap_or_default();
    if uris.is_empty() {
        uris.extend(stored.redirect_uri.filter(|uri| !uri.is_empty()));
    }
    metadata.insert("redirect_uris".to_owned(), uris.into());
    for (member, value) in stored.others {
        if METADATA.contains(&member.as_str()) && !value.is_null() {
            metadata.insert(member, value);
        }
    }
    let created_at = match stored.created_at {
        Some(text) => text
            .parse()
            .map_err(|_| "its member created_at is no time")?,
        None => now,
    };
    let secret = stored.client_secret.map(Zeroizing::new);
    let secret = secret.filter(|secret| !secret.is_empty());
    Ok(Client {
        id,
        origin: ClientOrigin::Tsidp,
        owner: None,
        secrets: secret
            .iter()
            .map(|secret| ClientSecret {
                digest: Digest::of(secret),
                created_at,
                expires_at: None,
            })
            .collect(),
        registration_token: None,
        metadata: Value::Object(metadata).to_string(),
        created_at,
        updated_at: now,
        expires_at: None,
        version: 1,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn read(text: &str) -> Result<Vec<Client>, ImportError> {
        parse(text.as_bytes(), Path::new("/tsidp/file"), NOW)
    }

    fn metadata(client: &Client) -> Value {
        serde_json::from_str(&client.metadata).unwrap()
    }

    #[test]
    fn a_client_of_the_admin_page_comes_over() {
        let text = r#"{"0123456789abcdef0123456789abcdef": {
            "client_id": "0123456789abcdef0123456789abcdef", "client_secret": "s3cret",
            "client_name": "Grafana", "redirect_uris": ["https://g.example/cb"],
            "created_at": "0001-01-01T00:00:00Z", "redirect_uri": "https://g.example/cb"}}"#;
        let clients = read(text).unwrap();
        let [client] = &clients[..] else {
            panic!("{clients:?}");
        };
        assert_eq!(client.id, "0123456789abcdef0123456789abcdef");
        assert_eq!(client.origin, ClientOrigin::Tsidp);
        assert!(client.secrets[0].digest.matches("s3cret"));
        assert_eq!(client.created_at.to_string(), "0001-01-01T00:00:00Z");
        assert_eq!(
            metadata(client),
            json!({"client_name": "Grafana", "redirect_uris": ["https://g.example/cb"]})
        );
        assert!(!format!("{client:?}").contains("s3cret"));
    }

    #[test]
    fn a_registered_client_keeps_its_metadata() {
        let text = r#"{"a": {"client_id": "a", "client_secret": "s", "redirect_uris": ["x:/y"],
            "token_endpoint_auth_method": "client_secret_post", "grant_types": ["refresh_token"],
            "response_types": ["code"], "scope": "openid", "client_uri": "https://u.example",
            "logo_uri": "https://l.example", "contacts": ["me@example.com"],
            "application_type": "native", "dynamically_registered": true,
            "created_at": "2025-07-01T02:03:04.5Z", "redirect_uri": "", "unknown": 1}}"#;
        let clients = read(text).unwrap();
        assert_eq!(
            metadata(&clients[0]),
            json!({
                "redirect_uris": ["x:/y"], "token_endpoint_auth_method": "client_secret_post",
                "grant_types": ["refresh_token"], "response_types": ["code"], "scope": "openid",
                "client_uri": "https://u.example", "logo_uri": "https://l.example",
                "contacts": ["me@example.com"], "application_type": "native",
                "dynamically_registered": true,
            })
        );
    }

    #[test]
    fn legacy_members_count_where_the_new_ones_are_missing() {
        let text = r#"{"a": {"client_id": "a", "name": "Old", "redirect_uri": "https://a"},
            "b": {"name": "Old", "client_name": "New", "redirect_uri": "https://a",
                  "redirect_uris": ["https://b"]},
            "c": {"redirect_uris": null}}"#;
        let clients = read(text).unwrap();
        let all: Vec<_> = clients.iter().map(metadata).collect();
        assert_eq!(
            all,
            [
                json!({"client_name": "Old", "redirect_uris": ["https://a"]}),
                json!({"client_name": "New", "redirect_uris": ["https://b"]}),
                json!({"redirect_uris": []}),
            ]
        );
        assert!(clients.iter().all(|client| client.secrets.is_empty()));
    }

    #[test]
    fn what_is_no_file_of_clients_is_refused_without_its_values() {
        for (text, words) in [
            ("", "no file of tsidp's clients"),
            ("[]", "no file of tsidp's clients"),
            (r#"{"a": {"client_secret": ["s3cret"]}}"#, "line 1, column"),
            (
                r#"{"a": {"client_id": "b"}}"#,
                "client \"a\": its member client_id",
            ),
            (r#"{"": {}}"#, "its id is empty"),
            (
                r#"{"a": {"created_at": "now"}}"#,
                "its member created_at is no time",
            ),
        ] {
            let said = read(text).unwrap_err().to_string();
            assert!(
                said.contains(words) && said.starts_with("/tsidp/file"),
                "{said}"
            );
            assert!(!said.contains("s3cret"), "{said}");
        }
        assert_eq!(read("null").unwrap(), []);
    }

    #[test]
    fn no_file_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_clients(folder.path(), NOW).unwrap().is_none());
        std::fs::write(folder.path().join(CLIENTS_FILE), r#"{"a": {}}"#).unwrap();
        assert_eq!(read_clients(folder.path(), NOW).unwrap().unwrap().len(), 1);
    }
}
