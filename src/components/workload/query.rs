//! The parameters of a request, read as Go's `net/url` reads them, which tsiam does: the first of
//! several values counts, a pair that cannot be decoded is dropped, and so is one with a `;`.

use url::form_urlencoded;

/// The first value of the parameter, trimmed; empty if there is none.
pub(super) fn first(query: &str, name: &str) -> String {
    let pairs = query.split('&').filter(|pair| is_readable(pair));
    pairs
        .flat_map(|pair| form_urlencoded::parse(pair.as_bytes()))
        .find(|(found, _)| found == name)
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default()
}

/// Whether every `%` begins an escape, and no `;` is in it.
fn is_readable(pair: &str) -> bool {
    let escapes = pair.split('%').skip(1).all(|after| {
        after
            .as_bytes()
            .get(..2)
            .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    escapes && !pair.contains(';')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_reads_it() {
        for (query, value) in [
            ("resource=a", "a"),
            ("resource=a&resource=b", "a"),
            ("resource=%20a+b%20", "a b"),
            ("resource=%zz&resource=b", "b"),
            ("resource=a;x&resource=b", "b"),
            ("Resource=a", ""),
            ("res%6furce=a", "a"),
            ("resource", ""),
            ("resource=%", ""),
            ("", ""),
        ] {
            assert_eq!(first(query, "resource"), value, "{query}");
        }
    }
}
