//! Which listeners there will be, so that two of them with one port are a mistake in the settings
//! before the second fails to listen.

use std::net::IpAddr;

use super::{
    load::Settings,
    meaning::Binding,
    read::Reader,
    report::Origin,
    sections::{
        admin,
        components::Component,
        gate, metrics, server,
        sts::{self, HostListener},
    },
    table::Row,
};

impl Reader<'_> {
    /// Records a mistake for each two listeners that need the same port of the same address.
    pub(super) fn compare_listeners(&mut self, settings: &Settings) {
        let listeners = listeners(settings);
        for (at, one) in listeners.iter().enumerate() {
            for other in listeners.iter().skip(at + 1) {
                if one.port != other.port || !one.place.overlaps(other.place) {
                    continue;
                }
                let (first, second) = (self.typed(one.row).origin, self.typed(other.row).origin);
                let (row, named) = if first == Origin::Default {
                    (other.row, format!("{} ({first})", one.row.key))
                } else {
                    (one.row, format!("{} ({second})", other.row.key))
                };
                self.mistake(
                    row,
                    Some(one.port.to_string()),
                    format!(
                        "{named} is the same: {} and {} need two ports",
                        one.name, other.name
                    ),
                );
            }
        }
    }
}

struct Listener {
    name: &'static str,
    /// The setting that has its port.
    row: &'static Row,
    port: u16,
    place: Place,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Host(IpAddr),
    Tailnet(Binding),
}

impl Place {
    /// Whether two listeners with one port would collide.
    fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Host(one), Self::Host(other)) => {
                one == other || one.is_unspecified() || other.is_unspecified()
            }
            (Self::Tailnet(Binding::Addr(one)), Self::Tailnet(Binding::Addr(other))) => {
                one == other
            }
            (Self::Tailnet(_), Self::Tailnet(_)) => true,
            // The machine has none of the node's addresses.
            (Self::Host(_), Self::Tailnet(_)) | (Self::Tailnet(_), Self::Host(_)) => false,
        }
    }
}

/// The listeners of the components that are switched on.
fn listeners(settings: &Settings) -> Vec<Listener> {
    let on = |component| settings.components.contains(&component);
    let mut all = Vec::new();
    let mut add = |there: bool, name, row, port, place| {
        if there {
            all.push(Listener {
                name,
                row,
                port,
                place,
            });
        }
    };
    let tailnet = Place::Tailnet;
    add(
        on(Component::Issuer),
        "issuer",
        &server::PORT,
        settings.server.port,
        tailnet(settings.server.binding),
    );
    add(
        on(Component::Admin),
        "admin API",
        &admin::PORT,
        settings.admin.port,
        tailnet(settings.admin.binding),
    );
    add(
        on(Component::Metrics),
        "metrics",
        &metrics::PORT,
        settings.metrics.port,
        match settings.metrics.binding {
            Binding::Addr(ip) if ip.is_loopback() => Place::Host(ip),
            binding => tailnet(binding),
        },
    );
    add(
        on(Component::Gate) && !settings.gate.upstreams.is_empty(),
        "gate",
        &gate::PORT,
        settings.gate.port,
        tailnet(settings.gate.binding),
    );
    add(
        on(Component::Gate) && !settings.gate.auth.proxies.is_empty(),
        "the gate's forward-auth",
        &gate::AUTH_PORT,
        settings.gate.auth.port,
        tailnet(settings.gate.binding),
    );
    add(
        on(Component::Sts),
        "sts",
        &sts::PORT,
        settings.sts.port,
        tailnet(settings.sts.binding),
    );
    if let Some(HostListener { addr, .. }) = settings.sts.host {
        add(
            on(Component::Sts),
            "sts at the host",
            &sts::HOST_LISTEN,
            addr.port(),
            Place::Host(addr.ip()),
        );
    }
    all
}
