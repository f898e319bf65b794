//! What a meter has counted, as somebody reads it who asks for metrics.

use prometheus_client::{encoding::text, registry::Registry};
use tailbone::telemetry::meter::Meter;

/// The lines of all counts whose names begin so.
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
