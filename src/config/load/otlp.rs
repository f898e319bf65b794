//! The settings of the export over OTLP.

use super::{Purpose, Reader, Remark, Row};
use crate::config::{Origin, Otlp, Secret, table};

impl Reader<'_> {
    /// `Some(None)`: nothing is exported.
    pub(super) fn otlp(&mut self, purpose: Purpose) -> Option<Option<Otlp>> {
        let endpoint = self.url(&table::OTLP_ENDPOINT);
        let interval = self.duration(&table::OTLP_INTERVAL);
        // Housekeeping exports nothing, so a secret that it may not even read is no mistake of its own.
        let headers = match purpose {
            Purpose::Housekeeping => Some(Vec::new()),
            Purpose::Start => self.otlp_headers(),
        };
        let (endpoint, headers, interval) = (endpoint?, headers?, interval?);
        Some(endpoint.map(|endpoint| Otlp {
            endpoint,
            headers,
            interval,
        }))
    }

    fn otlp_headers(&mut self) -> Option<Vec<(String, Secret)>> {
        let row = &table::OTLP_HEADERS;
        let text = self.secret(row)?;
        match headers(text.as_ref().map_or("", Secret::reveal)) {
            Ok(headers) => Some(headers),
            // In both cases without the value, which is a secret.
            Err(sentence) => match self.typed(row).origin {
                origin @ Origin::Variable(_) if origin != ours(row) => {
                    self.warnings.push(Remark {
                        origin,
                        value: None,
                        sentence: format!("not used: {sentence}"),
                    });
                    Some(Vec::new())
                }
                _ => {
                    self.mistake(row, None, sentence);
                    None
                }
            },
        }
    }
}

/// The origin of a value that was typed for us and not for everybody.
fn ours(row: &Row) -> Origin {
    Origin::Variable(row.variable())
}

/// `name=value,name=value`, values percent-encoded where they have to be, as OpenTelemetry defines its variable. An error tells
/// which pair is wrong, and no value.
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
                return Err(format!("pair {place} has no header's name before ="));
            }
            let value = unescaped(value.trim());
            match value {
                Some(value) if http::HeaderValue::from_str(&value).is_ok() => {
                    Ok((name, Secret::new(value)))
                }
                _ => Err(format!("the value of {name} cannot be a header's")),
            }
        })
        .collect()
}

/// `None`: what is left is no text. A percent sign that begins no escape stands for itself.
fn unescaped(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = (byte == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        plain.push(escaped.unwrap_or(byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8(plain).ok()
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
