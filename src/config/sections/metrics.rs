//! `metrics.*`: the listener of the Prometheus metrics.

use crate::config::{
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
            "Tailnet address of the metrics; auto takes all of the node's, a loopback address the \
             machine's own",
        );
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metrics {
    pub port: u16,
    /// A loopback address belongs to the machine, any other address to the tailnet.
    pub binding: Binding,
}

impl Reader<'_> {
    pub(in crate::config) fn metrics(&mut self) -> Option<Metrics> {
        let port = self.port(&PORT);
        let binding = self.binding(&BINDING);
        Some(Metrics {
            port: port?,
            binding: binding?,
        })
    }
}
