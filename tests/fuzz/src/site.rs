//! Hosts and origins: which requests a listener accepts, and which come from a page of another
//! site. Input: a Host, an Origin and a Sec-Fetch-Site, each in a line; an empty line means no such
//! header.

use std::net::IpAddr;

use http::{HeaderMap, HeaderValue, Uri, Version, header};
use tailbone::{
    http::{
        host::{HostRule, NodeNames},
        origin::{self, Destination},
    },
    web::{Host, Origin},
};
use url::Url;

const NAMES: [&str; 2] = ["tailbone.a.ts.net", "tailbone"];
const ADDRESSES: [&str; 2] = ["100.64.0.7", "fd7a:115c:a1e0::7"];

pub(super) fn run(data: &[u8]) {
    let Some(text) = super::text(data) else {
        return;
    };
    let mut lines = text.split('\n');
    let mut line = || lines.next().unwrap_or_default();
    let (host, origin, site) = (line(), line(), line());
    let mut headers = HeaderMap::new();
    for (name, text) in [("host", host), ("origin", origin), ("sec-fetch-site", site)] {
        if !text.is_empty() {
            let Ok(value) = HeaderValue::from_str(text) else {
                return;
            };
            headers.insert(name, value);
        }
    }
    one_form(host);
    misdirected(host, &headers);
    if let Ok(origin) = Origin::parse(origin) {
        assert_eq!(Origin::parse(&origin.to_string()).as_ref(), Ok(&origin));
    }
    foreign(host, origin, site, &headers);
}

/// The canonical form of a host is stable, and agrees with that of a URL parser.
fn one_form(text: &str) {
    let Ok((host, port)) = Host::with_port(text) else {
        return;
    };
    let shown = match host.as_str() {
        address if address.contains(':') => format!("[{address}]"),
        name => name.to_owned(),
    };
    assert_eq!(Host::with_port(&shown), Ok((host.clone(), None)));
    let Ok(url) = Url::parse(&format!("http://{text}/")) else {
        return;
    };
    // Browsers read a number in any notation as an address.
    match url.host() {
        Some(url::Host::Domain(name)) => {
            assert_eq!(name.strip_suffix('.').unwrap_or(name), host.as_str());
        }
        Some(url::Host::Ipv6(address)) => assert_eq!(address.to_string(), host.as_str()),
        _ => {}
    }
    assert_eq!(url.port().unwrap_or(80), port.unwrap_or(80), "{text}");
}

/// A listener accepts its own names and addresses and no others.
fn misdirected(host: &str, headers: &HeaderMap) {
    let names = NodeNames::default();
    names.set(
        NAMES[0],
        NAMES[1],
        &ADDRESSES.map(|text| text.parse().unwrap()),
    );
    let rule = HostRule::of_node(names, &[]);
    let taken = rule
        .check(Version::HTTP_11, &Uri::from_static("/"), headers)
        .is_ok();
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap(),
        None => host.split(':').next().unwrap(),
    };
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    let name = NAMES.iter().any(|name| name.eq_ignore_ascii_case(bare));
    let address = bare.parse::<IpAddr>().map(|address| address.to_canonical());
    let address = address.is_ok_and(|address| {
        ADDRESSES
            .iter()
            .any(|text| text.parse::<IpAddr>() == Ok(address))
    });
    assert!(!taken || name || address, "{host} is taken");
}

/// A request that may do harm is only accepted from a program, or from a page of the site itself.
fn foreign(host: &str, origin: &str, site: &str, headers: &HeaderMap) {
    assert_eq!(
        origin::by_browser(headers),
        !origin.is_empty() || !site.is_empty()
    );
    if origin::by_browser(headers) {
        assert!(origin::for_programs(headers, &[]).is_err());
    }
    let Ok((known, port)) = Host::with_port(host) else {
        return;
    };
    let destination = Destination {
        host: &known,
        port,
        port_known: true,
    };
    if origin::is_cross_origin(headers, destination, &[]) {
        return;
    }
    if !site.is_empty() {
        assert!(["same-origin", "none"].contains(&site), "{site}");
    } else if let (Ok(page), Ok(asked)) =
        (Url::parse(origin), Url::parse(&format!("http://{host}/")))
        && headers.contains_key(header::ORIGIN)
        && page.scheme() == "http"
    {
        let known = |url: &Url| {
            let host = url.host_str().unwrap_or_default();
            let host = host.strip_suffix('.').unwrap_or(host).to_owned();
            (host, url.port_or_known_default())
        };
        assert_eq!(known(&page), known(&asked), "{origin} asks {host}");
    }
}
