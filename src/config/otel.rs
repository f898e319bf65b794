//! OpenTelemetry's own variables, which apply if our settings for the export are not set.
//!
//! They are often set for all programs of a machine or a cluster. So an address that is wrong, or
//! that wants a protocol we do not speak, is a warning and does not keep the server from starting.
//! So are headers that cannot be read (`sections/telemetry.rs`).

use tailbone_telemetry::otlp::Signals;

use super::{
    parse::url,
    raw::{Environment, RawSettings},
    report::{Remark, ValueOrigin},
    sections::telemetry,
};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";

impl RawSettings {
    pub(super) fn take_otel(&mut self, environment: &Environment) {
        let disabled = environment.text("OTEL_SDK_DISABLED");
        if disabled.is_some_and(|word| word.eq_ignore_ascii_case("true")) {
            return;
        }
        if self.given(&telemetry::ENDPOINT).is_none() {
            let Some(endpoint) = environment.text(ENDPOINT) else {
                return;
            };
            let protocol = environment.text(PROTOCOL).unwrap_or("http/protobuf");
            let trouble = if protocol == "http/protobuf" {
                url(endpoint, &ValueOrigin::Variable(ENDPOINT.into())).err()
            } else {
                Some(format!(
                    "{PROTOCOL} is {protocol}, and only http/protobuf is spoken here; name a \
                     collector for that with {}",
                    telemetry::ENDPOINT.variable()
                ))
            };
            let signals = Signals {
                traces: self.exports(environment, "OTEL_TRACES_EXPORTER"),
                metrics: self.exports(environment, "OTEL_METRICS_EXPORTER"),
            };
            if !signals.traces && !signals.metrics {
                return;
            }
            self.otlp_signals = signals;
            if let Some(trouble) = trouble {
                self.warnings.push(Remark {
                    origin: ValueOrigin::Variable(ENDPOINT.into()),
                    // It may contain a password; `url` refuses that.
                    value: None,
                    sentence: format!("not used, so nothing is exported: {trouble}"),
                });
                return;
            }
        }
        for row in [&telemetry::ENDPOINT, &telemetry::HEADERS] {
            if self.given(row).is_none() {
                self.take_alias(row, environment);
            }
        }
    }

    /// Whether a signal goes out over OTLP, which is the default.
    fn exports(&mut self, environment: &Environment, name: &str) -> bool {
        let Some(words) = environment.text(name) else {
            return true;
        };
        let mut words = words.split(',').map(str::trim);
        if words.clone().any(|word| word == "otlp") {
            return true;
        }
        if let Some(other) = words.find(|word| *word != "none") {
            let sentence = "only otlp and none are known here, so nothing is exported; the \
                            component metrics serves what Prometheus reads";
            self.warnings.push(Remark {
                origin: ValueOrigin::Variable(name.to_owned()),
                value: Some(other.to_owned()),
                sentence: sentence.into(),
            });
        }
        false
    }
}
