//! The issuer's name, which the clouds trust: it must never change without being told to.
//!
//! Unless a setting names it, it is `https://` and the node's full name. A node whose name is taken
//! gets another one from the control server, and then every trust would break without a word. So
//! the name is kept in a file beside the keys, and a start under another name is refused.

use std::path::{Path, PathBuf};

use crate::{
    keys::disk::{self, DiskError, Probe},
    telemetry::readiness::LatchState,
};

/// The file in the directory of the keys.
const FILE: &str = "issuer";

/// Azure takes an issuer of 600 characters.
const MAX_BYTES: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum IssuerNameError {
    #[error(
        "the node has no full name, of which the issuer's name is made: turn MagicDNS on in the tailnet, or set workload.issuer"
    )]
    NoName,
    #[error(
        "the node is now called {now}, and tokens were issued by {kept} until now: clouds that trust that name would refuse new tokens. \
         Give the node its old name back, or set workload.issuer to the name that is meant ({})",
        path.display()
    )]
    Changed {
        kept: String,
        now: String,
        path: PathBuf,
    },
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// The issuer's name: the one of the settings, or that of the node if it is the kept one. `keep` is
/// the directory of the keys; without one nothing is kept.
pub(super) fn issuer_name(
    configured: Option<&str>,
    node: &str,
    keep: Option<&Path>,
) -> Result<String, IssuerNameError> {
    let name = match configured {
        Some(name) => name.to_owned(),
        None if node.is_empty() || !node.contains('.') => return Err(IssuerNameError::NoName),
        None => format!("https://{node}"),
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
            let now = name;
            return Err(IssuerNameError::Changed { kept, now, path });
        }
    }
    disk::make_directory(dir)?;
    disk::write(
        &path,
        format!("{name}\n").as_bytes(),
        0o600,
        &Probe::default(),
    )?;
    Ok(name)
}

/// Whether a name that was made of the node's is still that of the node.
pub(super) fn still_named(issuer: &str, node: &str) -> LatchState {
    if node.is_empty() || issuer == format!("https://{node}") {
        return LatchState::Released;
    }
    LatchState::Degraded(format!(
        "the node is now called {node}, and tokens still say {issuer}, where clouds no longer find \
         the keys: give the node its old name back, or set workload.issuer; the next start is \
         refused otherwise"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_name_is_refused_unless_a_setting_says_it() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Some(dir.path());
        let name = issuer_name(None, "a.b.ts.net", keep).unwrap();
        assert_eq!(name, "https://a.b.ts.net");
        assert_eq!(issuer_name(None, "a.b.ts.net", keep).unwrap(), name);

        let changed = issuer_name(None, "a-1.b.ts.net", keep).unwrap_err();
        assert!(matches!(changed, IssuerNameError::Changed { .. }));
        assert!(
            changed.to_string().contains("https://a.b.ts.net"),
            "{changed}"
        );

        let told = issuer_name(Some("https://a-1.b.ts.net"), "a-1.b.ts.net", keep).unwrap();
        assert_eq!(told, "https://a-1.b.ts.net");
        assert_eq!(issuer_name(None, "a-1.b.ts.net", keep).unwrap(), told);
        assert!(issuer_name(None, "a.b.ts.net", keep).is_err());
    }

    #[test]
    fn a_rename_while_the_server_runs_is_told() {
        let issuer = "https://a.b.ts.net";
        for same in ["a.b.ts.net", ""] {
            assert_eq!(still_named(issuer, same), LatchState::Released);
        }
        let LatchState::Degraded(told) = still_named(issuer, "c.b.ts.net") else {
            panic!("not told");
        };
        assert!(told.contains("now called c.b.ts.net"), "{told}");
    }

    #[test]
    fn a_node_without_a_full_name_needs_the_setting() {
        for name in ["", "a"] {
            let refused = issuer_name(None, name, None);
            assert!(matches!(refused, Err(IssuerNameError::NoName)), "{name:?}");
        }
    }
}
