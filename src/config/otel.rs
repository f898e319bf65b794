//! OpenTelemetry's own variables, where our settings for the export were not typed.
//!
//! They are often set for everything on a machine or in a cluster, by somebody who does not think of us. So an address that is wrong or
//! not for us is a warning and does not keep the server from starting; headers that cannot be read are another (`load/otlp.rs`).

use super::{
    meaning::url,
    raw::{Environment, Raw},
    report::{Origin, Remark},
    table,
};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";

impl Raw {
    pub(super) fn take_otel(&mut self, environment: &Environment) {
        let disabled = environment.text("OTEL_SDK_DISABLED");
        if disabled.is_some_and(|word| word.eq_ignore_ascii_case("true")) {
            return;
        }
        if self.typed(&table::OTLP_ENDPOINT).is_none() {
            let Some(endpoint) = environment.text(ENDPOINT) else {
                return;
            };
            let protocol = environment.text(PROTOCOL).unwrap_or("http/protobuf");
            let trouble = if protocol == "http/protobuf" {
                url(endpoint, &Origin::Variable(ENDPOINT.into())).err()
            } else {
                Some(format!(
                    "{PROTOCOL} is {protocol}, and only http/protobuf is spoken here; name a collector for that with {}",
                    table::OTLP_ENDPOINT.variable()
                ))
            };
            if let Some(trouble) = trouble {
                self.warnings.push(Remark {
                    origin: Origin::Variable(ENDPOINT.into()),
                    // It may hold a password, which is one of the troubles.
                    value: None,
                    sentence: format!("not used, so nothing is exported: {trouble}"),
                });
                return;
            }
        }
        for row in [&table::OTLP_ENDPOINT, &table::OTLP_HEADERS] {
            if self.typed(row).is_none() {
                self.take_alias(row, environment);
            }
        }
    }
}
