//! `metrics.*`: the listener of the Prometheus metrics.

use std::net::SocketAddr;

use crate::config::{
    listen::Listen,
    meaning::Binding,
    read::Reader,
    table::{Kind, Scope, row, rows},
};

rows! {
    PORT = row("metrics.port", Kind::Port)
        .flag("metrics-port", Scope::Start)
        .default("9090")
        .help("Port of the metrics");
    BINDING = row("metrics.binding", Kind::Binding)
        .flag("metrics-binding", Scope::Start)
        .default("auto")
        .example("127.0.0.1")
        .help(
            "Tailnet address of the metrics, or a loopback address of the machine; auto means \
             every address of the node",
        );
    LISTEN = row("metrics.listen", Kind::Words(&[]))
        .flag("metrics-listen", Scope::Start)
        .example("http://127.0.0.1:9090")
        .help(
            "Where the metrics component listens, separated by commas or blanks, instead of \
             metrics.port and metrics.binding; docs/reference/listeners.md lists the forms",
        );
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    pub listen: Vec<Listen>,
}

impl Reader<'_> {
    pub(in crate::config) fn metrics(&mut self) -> Option<Metrics> {
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
        Some(Metrics { listen: listen? })
    }
}
