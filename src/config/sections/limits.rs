//! `server.limits.*`: the limits of every listener and its connections.

use std::time::Duration;

use crate::config::{
    Limits,
    read::SettingsReader,
    table::{FlagScope, HOUR, Row, count, duration, row, rows},
};

rows! {
    CONNECTIONS = row("server.limits.connections", count(1, 1_000_000))
        .flag("limit-connections", FlagScope::Start)
        .default("16384")
        .help("Connections of one listener at once; further ones wait");
    CONNECTIONS_PER_PEER = row("server.limits.connectionsPerPeer", count(1, 1_000_000))
        .flag("limit-connections-per-peer", FlagScope::Start)
        .default("1024")
        .help("Connections of one peer to one listener; further ones get 503");
    REQUESTS = row("server.limits.requests", count(1, 1_000_000))
        .flag("limit-requests", FlagScope::Start)
        .default("4096")
        .help(
            "Requests of one listener that are handled at once; further ones get 503",
        );
    REQUEST_RATE = row("server.limits.requestRate", count(0, 1_000_000))
        .flag("limit-request-rate", FlagScope::Start)
        .default("1000")
        .help(
            "Average requests per second of one peer; further ones get 429; 0 means no limit",
        );
    REQUEST_BURST = row("server.limits.requestBurst", count(1, 1_000_000))
        .flag("limit-request-burst", FlagScope::Start)
        .default("5000")
        .help("Requests of one peer at once before the rate applies");
    CALLER_RATE = row("server.limits.callerRate", count(0, 1_000_000))
        .flag("limit-caller-rate", FlagScope::Start)
        .default("2000")
        .help(
            "Average requests per second of one caller (a user with all devices, or a tagged \
             machine); further ones get 429; 0 means no limit",
        );
    CALLER_BURST = row("server.limits.callerBurst", count(1, 1_000_000))
        .flag("limit-caller-burst", FlagScope::Start)
        .default("10000")
        .help("Requests of one caller at once before that rate applies");
    HEADER_BYTES = row("server.limits.headerBytes", count(8 << 10, 1 << 20))
        .flag("limit-header-bytes", FlagScope::Start)
        .default("16384")
        .help("Largest head of a request, in bytes; a larger one gets 431");
    BODY_BYTES = row("server.limits.bodyBytes", count(1 << 10, 64 << 20))
        .flag("limit-body-bytes", FlagScope::Start)
        .default("65536")
        .help(
            "Largest body of a request, in bytes, except through the gate; a larger one gets \
             413",
        );
    HEADER_TIME = row("server.limits.headerTime", duration(Duration::from_millis(100), HOUR))
        .flag("limit-header-time", FlagScope::Start)
        .default("60s")
        .help(
            "Time limit for the head of a request; on a new connection it starts at once",
        );
    IDLE_TIME = row("server.limits.idleTime", duration(Duration::from_millis(100), HOUR))
        .flag("limit-idle-time", FlagScope::Start)
        .default("60s")
        .help(
            "Longest silence between two requests of a connection; over HTTP/2 the time after \
             which a ping checks that the peer is still there",
        );
    REQUEST_TIME = row("server.limits.requestTime", duration(Duration::from_millis(100), HOUR))
        .flag("limit-request-time", FlagScope::Start)
        .default("30s")
        .help(
            "Time limit for answering a request, including its body, except through the gate; \
             then 408",
        );
    CALL_TIME = row("server.limits.callTime", duration(Duration::from_secs(1), HOUR))
        .flag("limit-call-time", FlagScope::Start)
        .default("2m")
        .help(
            "The same for a call of the admin API, which may have to wait for other changes of \
             keys",
        );
    WRITE_TIME = row("server.limits.writeTime", duration(Duration::from_millis(100), HOUR))
        .flag("limit-write-time", FlagScope::Start)
        .default("30s")
        .help("Longest time that a part of an answer waits to be read");
}

impl SettingsReader<'_> {
    pub(in crate::config) fn limits(&mut self) -> Option<Limits> {
        let connections = self.size(&CONNECTIONS);
        let connections_per_peer = self.size(&CONNECTIONS_PER_PEER);
        let requests = self.size(&REQUESTS);
        let request_rate = self.count(&REQUEST_RATE);
        let request_burst = self.count(&REQUEST_BURST);
        let caller_rate = self.count(&CALLER_RATE);
        let caller_burst = self.count(&CALLER_BURST);
        let header_bytes = self.size(&HEADER_BYTES);
        let body_bytes = self.size(&BODY_BYTES);
        let header_time = self.duration(&HEADER_TIME);
        let idle_time = self.duration(&IDLE_TIME);
        let request_time = self.duration(&REQUEST_TIME);
        let call_time = self.duration(&CALL_TIME);
        let write_time = self.duration(&WRITE_TIME);
        Some(Limits {
            connections: connections?,
            connections_per_peer: connections_per_peer?,
            requests: requests?,
            request_rate: request_rate?,
            request_burst: request_burst?,
            caller_rate: caller_rate?,
            caller_burst: caller_burst?,
            header_bytes: header_bytes?,
            body_bytes: body_bytes?,
            header_time: header_time?,
            idle_time: idle_time?,
            request_time: request_time?,
            call_time: call_time?,
            write_time: write_time?,
        })
    }

    fn size(&mut self, row: &'static Row) -> Option<usize> {
        self.count(row).map(|number| number as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawSettings;

    #[test]
    fn defaults_are_those_of_a_listener() {
        let input = SettingsReader::new(&RawSettings::default()).limits();
        assert_eq!(input, Some(Limits::default()));
    }
}
