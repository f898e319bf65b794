//! `server.*`: the issuer's listener, and what concerns the server as a whole.

use std::time::Duration;

use super::{
    memory::{MEMORY, MemoryLimit},
    tailscale::TailscaleSettings,
};
use crate::{
    config::{
        Limits, Otlp,
        listen::Listen,
        load::Purpose,
        read::SettingsReader,
        reload::Reloaded,
        table::{FlagScope, HOUR, ValueKind, duration, row, rows},
    },
    web::{Allowed, HostPattern, Origin},
};

rows! {
    PORT = row("server.port", ValueKind::Port)
        .short("port", 'p', FlagScope::Start)
        .default("80")
        .help("Port of the issuer on the tailnet");
    BINDING = row("server.binding", ValueKind::Binding)
        .short("binding", 'b', FlagScope::Start)
        .default("auto")
        .help("Tailnet address of the issuer; auto means every address of the node");
    LISTEN = row("server.listen", ValueKind::Words(&[]))
        .flag("listen", FlagScope::Start)
        .example("tailnet://:80,http://127.0.0.1:8080")
        .help(
            "Where the issuer listens, separated by commas or blanks, instead of server.port \
             and server.binding; docs/reference/listeners.md lists the forms",
        );
    ALLOWED_HOSTS = row("server.allowedHosts", ValueKind::Words(&[]))
        .flag("allowed-hosts", FlagScope::Start)
        .example("tailbone.example.com")
        .help(
            "Further host names of the listeners, besides the node's names and addresses; \
             *.name includes all names below it, * every host",
        );
    ALLOWED_ORIGINS = row("server.allowedOrigins", ValueKind::Words(&[]))
        .flag("allowed-origins", FlagScope::Start)
        .example("https://app.example.com")
        .help(
            "Origins whose web pages may request tokens from the issuer and the exchange; * \
             allows every page",
        );
    GRACE = row("server.grace", duration(Duration::ZERO, HOUR))
        .flag("grace", FlagScope::Start)
        .default("10s")
        .help("Time that open requests have to finish when the server stops");
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSettings {
    /// The issuer's listeners.
    pub listen: Vec<Listen>,
    /// Names of the listeners besides the node's own.
    pub allowed_hosts: Vec<Allowed<HostPattern>>,
    /// Whose pages may ask for tokens.
    pub allowed_origins: Vec<Allowed<Origin>>,
    /// Time given to open requests on a stop.
    pub grace: Duration,
    pub limits: Limits,
    /// `server.limits.memory`
    pub memory: MemoryLimit,
    pub tailscale: TailscaleSettings,
    /// `server.telemetry.otlp.*`; nothing is exported when absent.
    pub otlp: Option<Otlp>,
}

impl ServerSettings {
    pub(in crate::config) fn reload(&mut self, new: &Self, reloaded: &mut Reloaded) {
        let Self {
            listen,
            allowed_hosts,
            allowed_origins,
            grace,
            limits,
            memory,
            tailscale,
            otlp,
        } = new;
        reloaded.apply("server.limits", &mut self.limits, limits);
        reloaded.apply(GRACE.key, &mut self.grace, grace);
        let listener = "server.port or server.binding";
        reloaded.leave(listener, &self.listen, listen);
        let allowed = "server.allowedHosts or server.allowedOrigins";
        reloaded.leave(allowed, &self.allowed_hosts, allowed_hosts);
        reloaded.leave(allowed, &self.allowed_origins, allowed_origins);
        reloaded.leave(MEMORY.key, &self.memory, memory);
        self.tailscale.reload(tailscale, reloaded);
        reloaded.leave("server.telemetry", &self.otlp, otlp);
    }
}

impl SettingsReader<'_> {
    pub(in crate::config) fn server(&mut self, purpose: Purpose) -> Option<ServerSettings> {
        let port = self.port(&PORT);
        let binding = self.binding(&BINDING);
        let older = Listen::tailnet(binding, port).map(|listen| vec![listen]);
        let listen = self.listen(&LISTEN, &[&PORT, &BINDING], older);
        let allowed_hosts = self.allowed(&ALLOWED_HOSTS, HostPattern::parse);
        let allowed_origins = self.allowed(&ALLOWED_ORIGINS, Origin::parse);
        let grace = self.duration(&GRACE);
        let limits = self.limits();
        let memory = self.memory();
        let tailscale = self.tailscale(purpose);
        let otlp = self.otlp(purpose);
        Some(ServerSettings {
            listen: listen?,
            allowed_hosts: allowed_hosts?,
            allowed_origins: allowed_origins?,
            grace: grace?,
            limits: limits?,
            memory: memory?,
            tailscale: tailscale?,
            otlp: otlp?,
        })
    }
}
