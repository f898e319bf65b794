//! The name of an issuer, which others trust: it must never change without being told to.
//!
//! Unless a setting names it, it is `https://` and the node's full name. A node whose name is taken
//! gets another one from the control server, and then every trust would break without a word. So
//! the name is kept in a file beside the keys, and a start under another name is refused.

use std::path::{Path, PathBuf};

use tailbone_telemetry::readiness::LatchState;

use crate::disk::{self, DiskError, Probe};

/// The file in the directory of the keys.
const FILE: &str = "issuer";

/// Azure takes an issuer of 600 characters.
const MAX_BYTES: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum IssuerNameError {
    #[error(
        "the node has no full name, of which the issuer's name is made: turn MagicDNS on in the tailnet, or set {setting}"
    )]
    NoName { setting: &'static str },
    #[error(
        "the node is now called {now}, and tokens were issued by {kept} until now: {who} that trust that name would refuse new tokens. \
         Give the node its old name back, or set {setting} to the name that is meant ({})",
        path.display()
    )]
    Changed {
        kept: String,
        now: String,
        path: PathBuf,
        who: &'static str,
        setting: &'static str,
    },
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// What an issuer is, in the words of its messages.
#[derive(Debug, Clone, Copy)]
pub struct Issuer {
    /// The setting that names it.
    pub setting: &'static str,
    /// Who trusts it, as a plural.
    pub who: &'static str,
    /// The port in the name, unless it is the usual one.
    pub port: Option<u16>,
}

impl Issuer {
    /// The issuer's name: the one of the settings, or that of the node if it is the kept one.
    /// `keep` is the directory of the keys; without one nothing is kept.
    pub fn name(
        &self,
        configured: Option<&str>,
        node: &str,
        keep: Option<&Path>,
    ) -> Result<String, IssuerNameError> {
        let (who, setting) = (self.who, self.setting);
        let name = match configured {
            Some(name) => name.to_owned(),
            None if node.is_empty() || !node.contains('.') => {
                return Err(IssuerNameError::NoName { setting });
            }
            None => self.of_node(node),
        };
        let Some(dir) = keep else {
            return Ok(name);
        };
        let path = dir.join(FILE);
        if let Some(kept) = disk::read(&path, MAX_BYTES)? {
            let kept = String::from_utf8_lossy(&kept).trim_end().to_owned();
            if kept == name {
                return Ok(name);
            }
            if configured.is_none() {
                return Err(IssuerNameError::Changed {
                    kept,
                    now: name,
                    path,
                    who,
                    setting,
                });
            }
        }
        disk::make_directory(dir)?;
        let line = format!("{name}\n");
        disk::write(&path, line.as_bytes(), 0o600, &Probe::default())?;
        Ok(name)
    }

    /// Whether a name that was made of the node's is still that of the node.
    pub fn still_named(&self, issuer: &str, node: &str) -> LatchState {
        if node.is_empty() || issuer == self.of_node(node) {
            return LatchState::Released;
        }
        let Self { setting, who, .. } = self;
        LatchState::Degraded(format!(
            "the node is now called {node}, and tokens still say {issuer}, where {who} no longer \
             find the keys: give the node its old name back, or set {setting}; the next start is \
             refused otherwise"
        ))
    }

    /// The name of the issuer on a node.
    pub fn of_node(&self, node: &str) -> String {
        match self.port {
            None | Some(443) => format!("https://{node}"),
            Some(port) => format!("https://{node}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOUD: Issuer = Issuer {
        setting: "workload.issuer",
        who: "clouds",
        port: None,
    };

    #[test]
    fn a_changed_name_is_refused_unless_a_setting_says_it() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Some(dir.path());
        let name = CLOUD.name(None, "a.b.ts.net", keep).unwrap();
        assert_eq!(name, "https://a.b.ts.net");
        assert_eq!(CLOUD.name(None, "a.b.ts.net", keep).unwrap(), name);

        let changed = CLOUD.name(None, "a-1.b.ts.net", keep).unwrap_err();
        assert!(matches!(changed, IssuerNameError::Changed { .. }));
        assert!(
            changed.to_string().contains("https://a.b.ts.net"),
            "{changed}"
        );

        let told = CLOUD
            .name(Some("https://a-1.b.ts.net"), "a-1.b.ts.net", keep)
            .unwrap();
        assert_eq!(told, "https://a-1.b.ts.net");
        assert_eq!(CLOUD.name(None, "a-1.b.ts.net", keep).unwrap(), told);
        assert!(CLOUD.name(None, "a.b.ts.net", keep).is_err());
    }

    #[test]
    fn a_rename_while_the_server_runs_is_told() {
        let issuer = "https://a.b.ts.net";
        for same in ["a.b.ts.net", ""] {
            assert_eq!(CLOUD.still_named(issuer, same), LatchState::Released);
        }
        let LatchState::Degraded(told) = CLOUD.still_named(issuer, "c.b.ts.net") else {
            panic!("not told");
        };
        assert!(told.contains("now called c.b.ts.net"), "{told}");
    }

    #[test]
    fn a_node_without_a_full_name_needs_the_setting() {
        for name in ["", "a"] {
            let refused = CLOUD.name(None, name, None);
            assert!(
                matches!(refused, Err(IssuerNameError::NoName { .. })),
                "{name:?}"
            );
        }
    }

    #[test]
    fn a_port_that_is_not_the_usual_one_belongs_to_the_name() {
        let with = |port| {
            Issuer { port, ..CLOUD }
                .name(None, "a.b.ts.net", None)
                .unwrap()
        };
        assert_eq!(with(Some(443)), "https://a.b.ts.net");
        assert_eq!(with(Some(8443)), "https://a.b.ts.net:8443");
    }
}
