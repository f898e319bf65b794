//! The clients that files describe, applied at the start and on reload.
//!
//! Invariants
//! - At the start a mistake in a file is a reason not to start; later the clients stay as they are.
//! - No start and no reload removes a client: a folder that is not mounted yet, or half copied,
//!   would end everybody's logins. `tailbone oidc apply --prune` does, when a person says so.
//! - Of two reloads the later one counts, also if the store was away for both.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use jiff::Timestamp;
use tailbone_oidc::store::{
    ApplyMode, ApplyOptions, Client, ClientChange, Store, StoreError, WithoutFile,
};
use tokio::sync::Mutex;

use super::state::AGAIN;
use crate::config::{BadClientFiles, ClientFolder, Environment};

/// Names of clients without a file that one line of the log has.
const NAMED: usize = 10;

/// The folder, and how often it was read.
#[derive(Debug, Clone)]
pub(super) struct ClientFiles {
    folder: ClientFolder,
    turns: Arc<Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    newest: AtomicU64,
    /// Held while clients are applied.
    applying: Mutex<()>,
}

/// What the folder said at one reading.
#[derive(Debug)]
pub(super) struct FileClients {
    clients: Vec<Client>,
    turn: u64,
    turns: Arc<Turns>,
}

impl ClientFiles {
    pub(super) fn new(folder: &ClientFolder) -> Self {
        Self {
            folder: folder.clone(),
            turns: Arc::default(),
        }
    }

    pub(super) fn read(&self) -> Result<FileClients, BadClientFiles> {
        let environment = Environment::of_process();
        let clients = self.folder.read(&environment, Timestamp::now())?;
        Ok(FileClients {
            clients,
            turn: 1 + self.turns.newest.fetch_add(1, Ordering::AcqRel),
            turns: self.turns.clone(),
        })
    }

    /// Reads the folder again and applies it in a task.
    pub(super) fn reload(&self, store: &Arc<dyn Store>) {
        match self.read() {
            Ok(files) => {
                let store = store.clone();
                tokio::spawn(async move { files.apply(&*store).await });
            }
            Err(mistakes) => {
                for mistake in mistakes.0 {
                    tracing::warn!(target: "oidc", error = mistake, "a file of a client has a mistake; the clients stay as they are");
                }
            }
        }
    }
}

impl FileClients {
    /// Returns when it is done, or a later reading counts. Tries again while the store does not
    /// answer.
    pub(super) async fn apply(&self, store: &dyn Store) {
        let mut told = String::new();
        loop {
            let turn = self.turns.applying.lock().await;
            if self.turns.newest.load(Ordering::Acquire) != self.turn {
                return;
            }
            match self.try_apply(store).await {
                Ok(changes) => return log(&changes),
                Err(error) => {
                    let words = error.to_string();
                    if words != told {
                        tracing::error!(target: "oidc", error = words, "the clients of files could not be applied yet");
                        told = words;
                    }
                }
            }
            drop(turn);
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn try_apply(&self, store: &dyn Store) -> Result<Vec<ClientChange>, StoreError> {
        let options = ApplyOptions {
            mode: ApplyMode::Write,
            without_file: WithoutFile::Keep,
        };
        store
            .apply_clients(&self.clients, options, Timestamp::now())
            .await
    }
}

fn log(changes: &[ClientChange]) {
    let (mut added, mut changed, mut unchanged) = (0_u64, 0_u64, 0_u64);
    let mut without_file = Vec::new();
    for change in changes {
        let client = change.client();
        let file = client.owner.as_deref().unwrap_or_default();
        match change {
            ClientChange::Added(_) => {
                added += 1;
                tracing::info!(target: "oidc", client_id = client.id, file, "a client was added");
            }
            ClientChange::Changed { .. } => {
                changed += 1;
                tracing::info!(target: "oidc", client_id = client.id, file, "a client was changed");
            }
            ClientChange::Kept(_) | ClientChange::Removed(_) => {
                without_file.push(client.id.as_str());
            }
            ClientChange::Unchanged(_) => unchanged += 1,
        }
    }
    tracing::info!(target: "oidc", added, changed, unchanged, "the clients of files are applied");
    if !without_file.is_empty() {
        let count = without_file.len();
        without_file.truncate(NAMED);
        let clients = without_file.join(", ");
        tracing::warn!(target: "oidc", count, clients, "clients have no file any more and stay; tailbone oidc apply --prune removes them");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use tailbone_oidc::store::Sqlite;
    use tempfile::TempDir;

    use super::*;

    fn write(dir: &Path, name: &str) {
        let text = format!(
            "client_name = '{name}'\nredirect_uris = ['https://a/cb']\n\
             token_endpoint_auth_method = 'none'\n"
        );
        fs::write(dir.join("app.toml"), text).unwrap();
    }

    async fn metadata(store: &dyn Store) -> String {
        let client = store.client("app", Timestamp::now()).await.unwrap();
        client.map(|client| client.metadata).unwrap_or_default()
    }

    #[tokio::test]
    async fn a_later_reading_counts_and_no_reading_removes_a_client() {
        let dir = TempDir::new().unwrap();
        let store = Sqlite::open(&dir.path().join("oidc.db")).unwrap();
        let clients = dir.path().join("clients");
        fs::create_dir(&clients).unwrap();
        let files = ClientFiles::new(&ClientFolder {
            dir: clients.clone(),
            algorithms: Vec::new(),
            token_exchange: false,
        });
        write(&clients, "First");
        let first = files.read().unwrap();
        write(&clients, "Second");
        let second = files.read().unwrap();
        second.apply(&store).await;
        first.apply(&store).await;
        assert!(metadata(&store).await.contains("Second"));

        fs::write(clients.join("app.toml"), "client_name = 1").unwrap();
        let mistake = files.read().unwrap_err().to_string();
        assert!(
            mistake.contains("app.toml, line 1: client_name"),
            "{mistake}"
        );
        fs::remove_file(clients.join("app.toml")).unwrap();
        files.read().unwrap().apply(&store).await;
        assert!(
            metadata(&store).await.contains("Second"),
            "it has no file any more"
        );
    }
}
