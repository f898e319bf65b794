//! Which listeners there would be, so that two of one port are told before the second fails.

use std::net::IpAddr;

use crate::config::{
    Binding, Component, HostListener, Settings,
    table::{self, Row},
};

pub(super) struct Listener {
    pub(super) name: &'static str,
    /// The setting that has its port.
    pub(super) row: &'static Row,
    pub(super) port: u16,
    pub(super) place: Place,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    Host(IpAddr),
    Tailnet(Binding),
}

impl Place {
    /// Whether two listeners of one port would meet.
    pub(super) fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Host(one), Self::Host(other)) => {
                one == other || one.is_unspecified() || other.is_unspecified()
            }
            (Self::Tailnet(Binding::Addr(one)), Self::Tailnet(Binding::Addr(other))) => {
                one == other
            }
            (Self::Tailnet(_), Self::Tailnet(_)) => true,
            // The node's addresses are not the machine's own.
            (Self::Host(_), Self::Tailnet(_)) | (Self::Tailnet(_), Self::Host(_)) => false,
        }
    }
}

/// Those of the components that are on.
pub(super) fn listeners(settings: &Settings) -> Vec<Listener> {
    let Settings {
        components,
        server,
        admin,
        metrics,
        gate,
        sts,
        ..
    } = settings;
    let on = |component| components.contains(&component);
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
        &table::SERVER_PORT,
        server.port,
        tailnet(server.binding),
    );
    add(
        on(Component::Admin),
        "admin API",
        &table::ADMIN_PORT,
        admin.port,
        tailnet(admin.binding),
    );
    add(
        on(Component::Metrics),
        "metrics",
        &table::METRICS_PORT,
        metrics.port,
        match metrics.binding {
            Binding::Addr(ip) if ip.is_loopback() => Place::Host(ip),
            binding => tailnet(binding),
        },
    );
    add(
        on(Component::Gate) && !gate.upstreams.is_empty(),
        "gate",
        &table::GATE_PORT,
        gate.port,
        tailnet(gate.binding),
    );
    add(
        on(Component::Gate) && !gate.auth.proxies.is_empty(),
        "the gate's forward-auth",
        &table::GATE_AUTH_PORT,
        gate.auth.port,
        tailnet(gate.binding),
    );
    add(
        on(Component::Sts),
        "sts",
        &table::STS_PORT,
        sts.port,
        tailnet(sts.binding),
    );
    if let Some(HostListener { addr, .. }) = sts.host {
        add(
            on(Component::Sts),
            "sts at the host",
            &table::STS_HOST_LISTEN,
            addr.port(),
            Place::Host(addr.ip()),
        );
    }
    all
}
