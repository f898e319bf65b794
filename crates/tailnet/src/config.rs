//! Settings of a node, as Go gets them. Go checks them; here the strings only pass through.

use std::{
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    path::PathBuf,
};

use serde::Serialize;
use zeroize::Zeroizing;

use super::Error;
use tailbone_values::Secret;

/// Settings of an embedded node.
#[derive(Debug, Clone)]
pub struct Config {
    pub hostname: String,
    /// Where the node keeps its state.
    pub dir: PathBuf,
    /// Needed only if there is no state yet.
    pub auth_key: Option<Secret>,
    /// `None` means Tailscale's own.
    pub control_url: Option<String>,
    /// Whether the control server forgets the node when it goes away.
    pub ephemeral: bool,
    pub tags: Vec<String>,
    pub store: StateStore,
    /// OAuth client secret, instead of an auth key.
    pub client_secret: Option<Secret>,
    /// OAuth client of a federated identity, with `id_token` or `audience`.
    pub client_id: Option<String>,
    pub id_token: Option<Secret>,
    pub audience: Option<String>,
    /// How much the node logs about itself.
    pub log_level: LogLevel,
    /// Whether the node's log is sent to Tailscale.
    pub upload_logs: bool,
    /// Whether sockets are bound to a network interface; needs privileges and costs a probe at the
    /// start.
    pub netns: bool,
    /// With how many online peers the node makes contact when it comes up, so that their first
    /// packet to us is not lost (docs/design/first-contact.md).
    pub greet_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hostname: String::new(),
            dir: PathBuf::new(),
            auth_key: None,
            control_url: None,
            ephemeral: false,
            tags: Vec::new(),
            store: StateStore::default(),
            client_secret: None,
            client_id: None,
            id_token: None,
            audience: None,
            log_level: LogLevel::default(),
            upload_logs: false,
            netns: false,
            greet_max: 64,
        }
    }
}

/// Where the node's state is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StateStore {
    /// Files in [`Config::dir`].
    #[default]
    Dir,
    /// Nowhere: lost when the process ends.
    Memory,
    /// A Kubernetes secret of this name.
    Kube(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Trace,
    Debug,
    #[default]
    Info,
    Warn,
    Error,
    Off,
}

impl Config {
    /// Whether the node can join without a person.
    pub fn has_key(&self) -> bool {
        self.auth_key.is_some() || self.client_secret.is_some() || self.client_id.is_some()
    }

    /// The JSON that Go gets. It holds secrets, so it is wiped when dropped. Go duplicates
    /// `id_tokens`, on which it asks for an ID token.
    pub(super) fn json(
        &self,
        id_tokens: Option<BorrowedFd<'_>>,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        // Go requires an absolute path. A relative one refers to our own working directory.
        let dir = match std::path::absolute(&self.dir) {
            Ok(dir) => dir,
            Err(_) => self.dir.clone(),
        };
        let Some(dir) = dir.to_str() else {
            return Err(Error::Invalid(format!(
                "the state directory {} is not UTF-8",
                self.dir.display()
            )));
        };
        let store = match &self.store {
            StateStore::Dir => String::new(),
            StateStore::Memory => "mem:".into(),
            StateStore::Kube(name) => format!("kube:{name}"),
        };
        let message = ConfigMessage {
            dir,
            hostname: &self.hostname,
            auth_key: reveal(self.auth_key.as_ref()),
            client_secret: reveal(self.client_secret.as_ref()),
            client_id: self.client_id.as_deref().unwrap_or_default(),
            id_token: reveal(self.id_token.as_ref()),
            audience: self.audience.as_deref().unwrap_or_default(),
            id_token_fd: id_tokens.map(|socket| socket.as_raw_fd()),
            control_url: self.control_url.as_deref().unwrap_or_default(),
            ephemeral: self.ephemeral,
            tags: &self.tags,
            store,
            log_level: self.log_level,
            upload_logs: self.upload_logs,
            netns: self.netns,
            greet_max: self.greet_max,
        };
        // Large enough that the buffer seldom grows, since growing leaves copies of secrets behind.
        let mut json = Zeroizing::new(Vec::with_capacity(16 * 1024));
        serde_json::to_writer(&mut *json, &message).map_err(|e| Error::Internal(e.to_string()))?;
        Ok(json)
    }
}

fn reveal(secret: Option<&Secret>) -> &str {
    secret.map_or("", Secret::reveal)
}

#[derive(Serialize)]
struct ConfigMessage<'a> {
    dir: &'a str,
    hostname: &'a str,
    auth_key: &'a str,
    client_secret: &'a str,
    client_id: &'a str,
    id_token: &'a str,
    audience: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id_token_fd: Option<RawFd>,
    control_url: &'a str,
    ephemeral: bool,
    tags: &'a [String],
    store: String,
    log_level: LogLevel,
    upload_logs: bool,
    netns: bool,
    greet_max: u32,
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    use super::*;

    #[test]
    fn a_directory_that_is_not_utf8_is_refused_not_mended() {
        let config = Config {
            dir: PathBuf::from(OsStr::from_bytes(b"/state/\xff")),
            ..Config::default()
        };
        assert!(matches!(config.json(None), Err(Error::Invalid(_))));
    }

    #[test]
    fn a_relative_directory_is_made_absolute() {
        let config = Config {
            dir: PathBuf::from("state"),
            ..Config::default()
        };
        let json: serde_json::Value = serde_json::from_slice(&config.json(None).unwrap()).unwrap();
        let here = std::env::current_dir().unwrap().join("state");
        assert_eq!(json["dir"], here.to_str().unwrap());
    }

    #[test]
    fn secrets_reach_go_but_are_not_printed() {
        let config = Config {
            auth_key: Some(Secret::new("tskey-x")),
            ..Config::default()
        };
        assert!(!format!("{config:?}").contains("tskey-x"));
        let json: serde_json::Value = serde_json::from_slice(&config.json(None).unwrap()).unwrap();
        assert_eq!(json["auth_key"], "tskey-x");
        assert_eq!(json["log_level"], "info");
    }
}
