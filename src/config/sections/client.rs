//! `admin.client.*`: the commands that call the admin API of a server.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use super::{
    keys,
    output::{NO_CONFIRMATION, OutputFormat},
    tailscale,
};
use crate::config::{
    parse::{ParsedValue, text},
    read::SettingsReader,
    report::ValueOrigin,
    table::{FlagScope, HOUR, ValueKind, duration, row, rows},
};

rows! {
    HOST = row("admin.client.host", ValueKind::Text)
        .flag("host", FlagScope::Keys)
        .default("")
        .example("tailbone")
        .help("Server to administer; the local admin socket if empty");
    PORT = row("admin.client.port", ValueKind::Port)
        .flag("port", FlagScope::Keys)
        .default("50051")
        .help("Port of that server's admin API");
    TIMEOUT = row("admin.client.timeout", duration(Duration::from_millis(100), HOUR))
        .flag("timeout", FlagScope::Keys)
        .default("30s")
        .help("Time limit of one call of the admin API");
}

/// The settings of `tailbone keys …` and other clients of the admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSettings {
    /// A name, or an address without brackets; empty means the local socket.
    pub host: String,
    pub port: u16,
    /// The time limit of one call.
    pub timeout: Duration,
    pub output: OutputFormat,
    pub no_confirmation: bool,
    /// `admin.socket`: the local admin socket of a server with the same settings. It may not exist.
    pub socket: PathBuf,
    /// `keys.dir`, for `--local`.
    pub keys_dir: PathBuf,
    /// `keys.size` if it is set; otherwise the server decides.
    pub key_size: Option<u32>,
    /// `keys.algorithm` in its proper spelling if it is set; otherwise the server decides.
    pub key_algorithm: Option<String>,
}

impl SettingsReader<'_> {
    pub(in crate::config) fn client(&mut self) -> Option<ClientSettings> {
        let host = self.read(&HOST, host);
        let port = self.port(&PORT);
        let timeout = self.duration(&TIMEOUT);
        let output = self.output();
        let no_confirmation = self.bool(&NO_CONFIRMATION);
        let state_dir = self.path(&tailscale::DIR);
        let socket = self.admin_socket(state_dir.as_deref());
        let keys_dir = self.path(&keys::DIR);
        let size = self.key_size();
        let algorithm = self.key_algorithm();
        // If they are not set here, the server's own settings apply.
        let size_is_set = self.is_set(&keys::SIZE);
        let algorithm_is_set = self.is_set(&keys::ALGORITHM);
        Some(ClientSettings {
            host: host?,
            port: port?,
            timeout: timeout?,
            output: output?,
            no_confirmation: no_confirmation?,
            socket: socket?,
            keys_dir: keys_dir?,
            key_size: size.map(|bits| size_is_set.then_some(bits))?,
            key_algorithm: algorithm.map(|name| algorithm_is_set.then(|| name.to_owned()))?,
        })
    }
}

fn host(input: &str, origin: &ValueOrigin) -> Result<ParsedValue<String>, String> {
    let reading = text(input, origin)?;
    let host = reading.value.trim();
    // The Go program required brackets around an IPv6 address; here they are optional.
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    if bare.parse::<IpAddr>().is_err() {
        if bare.contains("://") || bare.contains('/') || bare.contains(char::is_whitespace) {
            return Err("not a host name or an IP address".into());
        }
        if bare.contains(':') {
            return Err(
                "not a host name or an IP address; the port is another setting (admin.client.port)"
                    .into(),
            );
        }
    }
    Ok(ParsedValue::new(bare.to_owned(), bare))
}
