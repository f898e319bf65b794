//! What proxies tell the gate, and what the gate tells backends. Input: a user's name in the first
//! line, then a request (`request.rs`), which is read once as a proxy's question and once as a
//! caller's own request.

use std::{net::IpAddr, sync::Arc};

use http::{HeaderMap, HeaderValue, header, request::Parts};
use serde_json::json;
use tailbone::{
    gate::{Admitted, fuzzing},
    identity::Visitor,
    policy::Host,
};

pub(super) fn run(data: &[u8]) {
    let Some(text) = super::text(data) else {
        return;
    };
    let mut lines = text.split('\n');
    let (Some(name), Some(target)) = (lines.next(), lines.next()) else {
        return;
    };
    let Some(parts) = super::request::read(target, lines) else {
        return;
    };
    forwarded_request(&parts);
    passed_on(name, &parts);
}

/// The headers that a proxy may send only once, for the path that it uses.
fn told_once(path: &str) -> &'static [&'static str] {
    let envoy = path.strip_prefix("/auth/envoy");
    if envoy.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
        &["x-forwarded-proto"]
    } else if path == "/auth/forwarded" {
        &[
            "x-forwarded-host",
            "x-forwarded-method",
            "x-forwarded-proto",
            "x-forwarded-uri",
        ]
    } else {
        &[
            "expected-tailnet",
            "original-uri",
            "remote-addr",
            "x-forwarded-proto",
            "x-original-method",
            "x-original-uri",
            "x-original-url",
        ]
    }
}

fn forwarded_request(parts: &Parts) {
    let Some(asked) = fuzzing::forwarded_request(parts, None, None) else {
        return;
    };
    let names = told_once(parts.uri.path());
    for name in names {
        let told = parts.headers.get_all(*name).iter().count();
        assert!(told < 2, "{name} is there {told} times");
    }
    let lists = !names.contains(&"remote-addr");
    let name = if lists {
        "x-forwarded-for"
    } else {
        "remote-addr"
    };
    let values = parts.headers.get_all(name).iter();
    let values: Vec<&str> = values.filter_map(|value| value.to_str().ok()).collect();
    let chain = values.join(",");
    let last = chain.rsplit(',').next().unwrap().trim();
    assert_eq!(address(last), Some(asked.client), "{chain}");

    if lists {
        // A client may have sent anything; the proxy appended its own value.
        for invented in ["203.0.113.9", "\"", "for=203.0.113.9;x=\"", ""] {
            let mut parts = parts.clone();
            let chain = HeaderValue::from_str(&format!("{invented},{chain}")).unwrap();
            parts.headers.insert(name, chain);
            let again = fuzzing::forwarded_request(&parts, None, None);
            assert_eq!(again.as_ref(), Some(&asked), "{invented} in front");
        }
    }
    if let Some(host) = &asked.target.host {
        plain(host);
    }
}

/// An address in a proxy's notation: bare, in brackets, or with a port.
fn address(text: &str) -> Option<IpAddr> {
    let (bare, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => match text.matches(':').count() {
            1 => text.split_at(text.find(':')?),
            _ => (text, ""),
        },
    };
    if !port.is_empty() {
        port.strip_prefix(':')?.parse::<u16>().ok()?;
    }
    Some(bare.parse::<IpAddr>().ok()?.to_canonical())
}

fn plain(host: &Host) {
    let text = host.as_str();
    if text.contains(':') {
        assert!(text.parse::<std::net::Ipv6Addr>().is_ok(), "{text}");
    } else {
        assert_eq!(Host::parse(text).as_ref(), Ok(host));
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
        assert!(!text.is_empty() && text.bytes().all(fits), "{text}");
    }
}

fn passed_on(name: &str, parts: &Parts) {
    let Some(target) = fuzzing::direct_request(parts) else {
        return;
    };
    plain(target.host.as_ref().unwrap());
    let Some(host) = parts.headers.get(header::HOST) else {
        return;
    };
    let whois = json!({
        "node": {"id": "n2", "name": "laptop.a.ts.net"},
        "user": {"id": 7, "login": format!("{name}@example.com"), "display_name": name},
        "same_tailnet": true,
    });
    let visitor = Visitor::from_whois(serde_json::from_value(whois).unwrap(), "a.ts.net").unwrap();
    for admitted in [
        Admitted::Identified(Arc::new(visitor)),
        Admitted::Anonymous { funnel: false },
    ] {
        let mut headers = parts.headers.clone();
        fuzzing::pass_on(&mut headers, &admitted, [100, 64, 0, 2].into(), host);
        nothing_claimed(&headers, &admitted);
        nothing_of_the_connection(&headers, parts);
        as_forwarded(&headers, host);
    }
    if let Some(told) = fuzzing::identity(&Admitted::Identified(Arc::new(
        Visitor::from_whois(
            serde_json::from_value(json!({
                "node": {"id": "n2"}, "user": {"id": 7, "login": "a", "display_name": name},
                "same_tailnet": true,
            }))
            .unwrap(),
            "",
        )
        .unwrap(),
    )))
    .iter()
    .find(|(header, _)| header == "tailscale-user-name")
    {
        assert_eq!(decoded(told.1.to_str().unwrap()), name);
    }
}

/// Every header that names the caller has only our value, even for a backend that treats `-`, `_`
/// and `.` alike.
fn nothing_claimed(headers: &HeaderMap, admitted: &Admitted) {
    let told = fuzzing::identity(admitted);
    let careless = |name: &str| {
        name.to_ascii_uppercase()
            .replace(|c: char| !c.is_ascii_alphanumeric(), "_")
    };
    for (name, value) in &told {
        let values: Vec<_> = headers.get_all(name).iter().collect();
        let wanted: Vec<_> = [value]
            .into_iter()
            .filter(|value| !value.is_empty())
            .collect();
        assert_eq!(values, wanted, "{name}");
    }
    let ours: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
    let also = [
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-real-ip",
    ];
    for name in headers.keys().map(|name| name.as_str()) {
        if ours.contains(&name) || also.contains(&name) {
            continue;
        }
        let same = |ours: &&&str| careless(ours) == careless(name);
        let claimed = ours.iter().chain(&also).find(same);
        assert!(claimed.is_none(), "{name} passes for {claimed:?}");
    }
}

/// Checks RFC 9110, section 7.6.1.
fn nothing_of_the_connection(headers: &HeaderMap, before: &Parts) {
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
    ] {
        assert!(!headers.contains_key(name), "{name}");
    }
    let before = &before.headers;
    for options in before
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
    {
        for option in options
            .split(',')
            .map(|option| option.trim().to_ascii_lowercase())
        {
            let kept = ["content-length", "host", "te"].contains(&option.as_str())
                || option.starts_with("tailscale-")
                || option.starts_with("x-forwarded-")
                || ["forwarded", "x-real-ip"].contains(&option.as_str());
            assert!(kept || !headers.contains_key(&option), "{option}");
        }
    }
    for name in ["content-length", "host"] {
        let all = |headers: &HeaderMap| headers.get_all(name).iter().cloned().collect::<Vec<_>>();
        assert_eq!(all(headers), all(before), "{name}");
    }
    assert!(headers.get("te").is_none_or(|te| te == "trailers"));
}

/// Parses a `Forwarded` header, which must have one element with our parameters only.
fn as_forwarded(headers: &HeaderMap, host: &HeaderValue) {
    let value = headers["forwarded"].to_str().unwrap();
    let host = host.to_str().unwrap();
    assert_eq!(value, format!("for=100.64.0.2;host=\"{host}\";proto=http"));
    assert!(!host.contains(['"', ',', ';', '\\']), "{host}");
    assert_eq!(headers.get_all("forwarded").iter().count(), 1);
}

/// Decodes RFC 2047, Q encoding; other text stays as it is.
fn decoded(value: &str) -> String {
    if !value.starts_with("=?utf-8?q?") {
        return value.to_owned();
    }
    let mut bytes = Vec::new();
    for word in value.split(' ') {
        assert!(word.len() <= 75, "{word}");
        let word = word
            .strip_prefix("=?utf-8?q?")
            .and_then(|word| word.strip_suffix("?="));
        let word = word.unwrap().as_bytes();
        let start = bytes.len();
        let mut at = 0;
        while at < word.len() {
            match word[at] {
                b'_' => bytes.push(b' '),
                b'=' => {
                    let digits = std::str::from_utf8(&word[at + 1..at + 3]).unwrap();
                    bytes.push(u8::from_str_radix(digits, 16).unwrap());
                    at += 2;
                }
                byte => {
                    assert!(byte.is_ascii_graphic() && byte != b'?');
                    bytes.push(byte);
                }
            }
            at += 1;
        }
        assert!(
            std::str::from_utf8(&bytes[start..]).is_ok(),
            "a character in two words"
        );
    }
    String::from_utf8(bytes).unwrap()
}
