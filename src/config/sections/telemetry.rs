//! `server.telemetry.otlp.*`: the export of traces and metrics over OTLP.
//! OpenTelemetry's own variables are in `otel.rs`.

use std::time::Duration;

use crate::config::{
    Otlp, Secret,
    load::Purpose,
    read::SettingsReader,
    report::ValueOrigin,
    table::{FlagScope, HOUR, ValueKind, duration, row, rows},
};

rows! {
    ENDPOINT = row("server.telemetry.otlp.endpoint", ValueKind::Url)
        .flag("otlp-endpoint", FlagScope::Start)
        .aliases(&["OTEL_EXPORTER_OTLP_ENDPOINT"])
        .example("http://127.0.0.1:4318")
        .help(
            "Collector that traces and metrics are sent to (OTLP, http/protobuf); nothing is \
             sent if empty. OTEL_EXPORTER_OTLP_ENDPOINT does the same",
        );
    HEADERS = row("server.telemetry.otlp.headers", ValueKind::Secret)
        .flag("otlp-headers", FlagScope::Start)
        .aliases(&["OTEL_EXPORTER_OTLP_HEADERS"])
        .example("file:/run/secrets/otlp-headers")
        .help(
            "Headers for the collector, name=value separated by commas, or file:PATH of a file \
             that contains them. OTEL_EXPORTER_OTLP_HEADERS does the same",
        );
    INTERVAL = row("server.telemetry.otlp.interval", duration(Duration::from_millis(100), HOUR))
        .flag("otlp-interval", FlagScope::Start)
        .default("1m")
        .help("Time between two exports of the metrics");
}

impl SettingsReader<'_> {
    /// `Some(None)`: nothing is exported.
    pub(in crate::config) fn otlp(&mut self, purpose: Purpose) -> Option<Option<Otlp>> {
        let endpoint = self.url(&ENDPOINT);
        let interval = self.duration(&INTERVAL);
        // Housekeeping exports nothing, so a secret that it cannot read is no mistake there.
        let headers = match purpose {
            Purpose::Housekeeping => Some(Vec::new()),
            Purpose::Start => self.otlp_headers(),
        };
        let (endpoint, headers, interval) = (endpoint?, headers?, interval?);
        Some(endpoint.map(|endpoint| Otlp {
            endpoint,
            headers,
            interval,
            signals: self.raw.otlp_signals,
        }))
    }

    fn otlp_headers(&mut self) -> Option<Vec<(String, Secret)>> {
        let text = self.secret_with_blanks(&HEADERS)?;
        let sentence = match headers(text.as_ref().map_or("", Secret::reveal)) {
            Ok(headers) => return Some(headers),
            Err(sentence) => sentence,
        };
        // Neither remark contains the value, which is a secret.
        let ours = ValueOrigin::Variable(HEADERS.variable());
        match self.lookup(&HEADERS).origin {
            // OpenTelemetry's variable is often set for all programs of a machine.
            origin @ ValueOrigin::Variable(_) if origin != ours => {
                self.warn(origin, format!("not used: {sentence}"));
                Some(Vec::new())
            }
            _ => {
                self.mistake(&HEADERS, None, sentence);
                None
            }
        }
    }
}

/// Reads `name=value,name=value` with percent-encoded values, as OpenTelemetry defines its
/// variable. An error names the pair that is wrong, and contains no value.
fn headers(text: &str) -> Result<Vec<(String, Secret)>, String> {
    let pairs = text.split(',').map(str::trim).enumerate();
    pairs
        .filter(|(_, pair)| !pair.is_empty())
        .map(|(at, pair)| {
            let place = at + 1;
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("pair {place} is not name=value"))?;
            let name = name.trim().to_ascii_lowercase();
            if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
                return Err(format!("pair {place} has no header name before ="));
            }
            let value = unescaped(value.trim());
            match value {
                Some(value) if http::HeaderValue::from_str(&value).is_ok() => {
                    Ok((name, Secret::new(value)))
                }
                _ => Err(format!("the value of {name} cannot be sent in a header")),
            }
        })
        .collect()
}

/// Decodes percent-encoding. A percent sign that begins no escape stands for itself. `None`: the
/// result is not UTF-8.
fn unescaped(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut shown = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = (byte == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        shown.push(escaped.unwrap_or(byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8(shown).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_pairs_with_escapes_and_an_error_tells_no_value() {
        let read = |text| {
            headers(text).map(|all| {
                all.into_iter()
                    .map(|(name, value)| (name, value.reveal().to_owned()))
                    .collect::<Vec<_>>()
            })
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(read(""), Ok(vec![]));
        assert_eq!(
            read("Authorization=Basic%20YTpi=, x-scope = 1 2 ,"),
            Ok(vec![
                pair("authorization", "Basic YTpi="),
                pair("x-scope", "1 2")
            ])
        );
        assert_eq!(read("a=100%"), Ok(vec![pair("a", "100%")]));
        for (text, words) in [
            ("a=1,hush", "pair 2 is not"),
            ("a b=hush", "pair 1 has no"),
            ("a=hush%0d%0ab:c", "the value of a "),
            ("a=hush%ff", "the value of a "),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(words) && !error.contains("hush"), "{error}");
        }
    }
}
