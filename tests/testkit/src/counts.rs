//! The counts of a meter, as a client that reads the metrics sees them.

use prometheus_client::{encoding::text, registry::Registry};
use tailbone_telemetry::meter::Meter;

/// The lines of all counts whose names begin with `name`.
pub fn counts(meter: &Meter, name: &str) -> Vec<String> {
    let mut registry = Registry::default();
    meter.register(&mut registry);
    let mut text = String::new();
    text::encode(&mut text, &registry).unwrap();
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with(name))
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}
