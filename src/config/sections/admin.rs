//! `admin.*`: the admin API, and the local socket over which it can also be reached.
//! The settings of its clients are in `client.rs`.

use std::path::{Path, PathBuf};

use crate::config::{
    listen::Listen,
    parse::path,
    read::SettingsReader,
    table::{FlagScope, ValueKind, row, rows},
};

rows! {
    PORT = row("admin.port", ValueKind::Port)
        .flag("admin-port", FlagScope::Start)
        .default("50051")
        .help("Port of the admin API on the tailnet");
    BINDING = row("admin.binding", ValueKind::Binding)
        .flag("admin-binding", FlagScope::Start)
        .default("auto")
        .help("Tailnet address of the admin API; auto means every address of the node");
    LISTEN = row("admin.listen", ValueKind::Words(&[]))
        .flag("admin-listen", FlagScope::Start)
        .example("tailnet://:50051")
        .help(
            "Where the admin API listens, separated by commas or blanks, instead of admin.port \
             and admin.binding; docs/reference/listeners.md lists the forms",
        );
    AUTHORIZATION = row("admin.authorization", ValueKind::Word(&["grant", "open"]))
        .flag("admin-authorization", FlagScope::Start)
        .default("grant")
        .help(
            "Who may administer: with grant the node's owner, the local socket and callers with \
             a grant; with open every caller that reaches the port",
        );
    SOCKET = row("admin.socket", ValueKind::Path)
        .flag("admin-socket", FlagScope::Start)
        .flag("admin-socket", FlagScope::Keys)
        .flag("admin-socket", FlagScope::Policy)
        .derived("admin.sock in server.tailscale.dir")
        .example("/run/tailbone/admin.sock")
        .help("Path of the local admin socket");
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminSettings {
    /// The listeners of the API, besides the local socket.
    pub listen: Vec<Listen>,
    pub authorization: Authorization,
    /// The local admin socket; the default is `admin.sock` in `server.tailscale.dir`.
    pub socket: PathBuf,
}

/// The system's limit for the path of a unix socket: `sun_path` without its final NUL.
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Who may administer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authorization {
    /// The node's owner, users of the local socket, and callers with a grant.
    Grant,
    /// Every caller that can reach the port, as in the Go program.
    Open,
}

impl SettingsReader<'_> {
    pub(in crate::config) fn admin(&mut self, state_dir: Option<&Path>) -> Option<AdminSettings> {
        let port = self.port(&PORT);
        let binding = self.binding(&BINDING);
        let older = Listen::tailnet(binding, port).map(|listen| vec![listen]);
        let listen = self.listen(&LISTEN, &[&PORT, &BINDING], older);
        let authorization = self.word(&AUTHORIZATION);
        let socket = self.admin_socket(state_dir);
        Some(AdminSettings {
            listen: listen?,
            authorization: match authorization? {
                "open" => Authorization::Open,
                _ => Authorization::Grant,
            },
            socket: socket?,
        })
    }

    pub(in crate::config) fn admin_socket(&mut self, state_dir: Option<&Path>) -> Option<PathBuf> {
        if !self.is_set(&SOCKET) {
            let socket = state_dir?.join("admin.sock");
            self.derived(&SOCKET, &socket.display().to_string());
            return Some(socket);
        }
        self.read(&SOCKET, |input, origin| {
            if input.len() > MAX_SOCKET_PATH_BYTES {
                return Err(format!(
                    "longer than a Unix socket's path can be ({MAX_SOCKET_PATH_BYTES} bytes)"
                ));
            }
            path(input, origin)
        })
    }
}
