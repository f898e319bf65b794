//! `admin.*`: the admin API, and the local socket over which it can also be reached.
//! The settings of its clients are in `client.rs`.

use std::path::{Path, PathBuf};

use crate::config::{
    listen::Listen,
    meaning::path,
    read::Reader,
    table::{Kind, Scope, row, rows},
};

rows! {
    PORT = row("admin.port", Kind::Port)
        .flag("admin-port", Scope::Start)
        .default("50051")
        .help("Port of the admin API on the tailnet");
    BINDING = row("admin.binding", Kind::Binding)
        .flag("admin-binding", Scope::Start)
        .default("auto")
        .help("Tailnet address of the admin API; auto means every address of the node");
    LISTEN = row("admin.listen", Kind::Words(&[]))
        .flag("admin-listen", Scope::Start)
        .example("tailnet://:50051")
        .help(
            "Where the admin API listens, separated by commas or blanks, instead of admin.port \
             and admin.binding; docs/reference/listeners.md lists the forms",
        );
    AUTHORIZATION = row("admin.authorization", Kind::Word(&["grant", "open"]))
        .flag("admin-authorization", Scope::Start)
        .default("grant")
        .help(
            "Who may administer: with grant the node's owner, the local socket and callers with \
             a grant; with open every caller that reaches the port",
        );
    SOCKET = row("admin.socket", Kind::Path)
        .flag("admin-socket", Scope::Start)
        .flag("admin-socket", Scope::Keys)
        .flag("admin-socket", Scope::Policy)
        .derived("admin.sock in server.tailscale.dir")
        .example("/run/tailbone/admin.sock")
        .help("Path of the local admin socket");
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// The listeners of the API, besides the local socket.
    pub listen: Vec<Listen>,
    pub authorization: Authorization,
    /// The local admin socket; the default is `admin.sock` in `server.tailscale.dir`.
    pub socket: PathBuf,
}

/// Who may administer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authorization {
    /// The node's owner, users of the local socket, and callers with a grant.
    Grant,
    /// Every caller that can reach the port, as in the Go program.
    Open,
}

impl Reader<'_> {
    pub(in crate::config) fn admin(&mut self, state_dir: Option<&Path>) -> Option<Admin> {
        let port = self.port(&PORT);
        let binding = self.binding(&BINDING);
        let older = Listen::tailnet(binding, port).map(|listen| vec![listen]);
        let listen = self.listen(&LISTEN, &[&PORT, &BINDING], older);
        let authorization = self.word(&AUTHORIZATION);
        let socket = self.admin_socket(state_dir);
        Some(Admin {
            listen: listen?,
            authorization: match authorization? {
                "open" => Authorization::Open,
                _ => Authorization::Grant,
            },
            socket: socket?,
        })
    }

    pub(in crate::config) fn admin_socket(&mut self, state_dir: Option<&Path>) -> Option<PathBuf> {
        if !self.is_typed(&SOCKET) {
            let socket = state_dir?.join("admin.sock");
            self.derived(&SOCKET, &socket.display().to_string());
            return Some(socket);
        }
        self.read(&SOCKET, |typed, origin| {
            // The system's own limit: sun_path has 108 bytes, and the last one is a NUL.
            if typed.len() > 107 {
                return Err("longer than a Unix socket's path can be (107 bytes)".into());
            }
            path(typed, origin)
        })
    }
}
