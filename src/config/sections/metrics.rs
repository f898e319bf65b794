//! `metrics.*`: the listener of the Prometheus metrics.

use std::net::SocketAddr;

use crate::config::{
    listen::Listen,
    parse::Binding,
    read::SettingsReader,
    table::{FlagScope, ValueKind, row, rows},
};

rows! {
    PORT = row("metrics.port", ValueKind::Port)
        .flag("metrics-port", FlagScope::Start)
        .default("9090")
        .help("Port of the metrics");
    BINDING = row("metrics.binding", ValueKind::Binding)
        .flag("metrics-binding", FlagScope::Start)
        .default("auto")
        .example("127.0.0.1")
        .help(
            "Tailnet address of the metrics, or a loopback address of the machine; auto means \
             every address of the node",
        );
    LISTEN = row("metrics.listen", ValueKind::Words(&[]))
        .flag("metrics-listen", FlagScope::Start)
        .example("http://127.0.0.1:9090")
        .help(
            "Where the metrics component listens, separated by commas or blanks, instead of \
             metrics.port and metrics.binding; docs/reference/listeners.md lists the forms",
        );
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsSettings {
    pub listen: Vec<Listen>,
}

impl SettingsReader<'_> {
    pub(in crate::config) fn metrics(&mut self) -> Option<MetricsSettings> {
        let port = self.port(&PORT);
        let binding = self.binding(&BINDING);
        let older = match (binding, port) {
            // A loopback address belongs to the machine, any other address to the tailnet.
            (Some(Binding::Addr(ip)), Some(port)) if ip.is_loopback() => Some(Listen::Host {
                addr: SocketAddr::new(ip, port),
                tls: None,
            }),
            (binding, port) => Listen::tailnet(binding, port),
        };
        let older = older.map(|listen| vec![listen]);
        let listen = self.listen(&LISTEN, &[&PORT, &BINDING], older);
        Some(MetricsSettings { listen: listen? })
    }
}
