//! The names of a listener. A request that names another host is refused (421 Misdirected Request,
//! RFC 9110, sections 7.4 and 15.5.20).
//!
//! Identity comes from the connection, and somebody else's web page can make a visitor's browser
//! connect to us: the page's own name is made to resolve to our address (DNS rebinding), and then
//! the page may read our answers. The browser still sends the page's name in `Host`. So a listener
//! only accepts requests for its own names.
//!
//! Invariants
//! - A listener's own names are: on the tailnet the node's MagicDNS name, the first label of it,
//!   and the node's addresses; on loopback `localhost` and the loopback addresses; and on both what
//!   `server.allowedHosts` adds. Case, port, brackets and a final dot do not matter.
//! - The node's names follow its status. Known names are kept until others replace them. Until the
//!   first ones are known the answer is 503: nobody is refused for good, and nobody gets in.
//! - A request that names no host is accepted: HTTP/1.0 allows that, and browsers always name one.
//!
//! Not handled here: where the names come from (the composition root), and the hosts of the gate's
//! upstreams and rules (`gate`).

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{HeaderMap, Uri, Version, header};

use super::{Error, error::Kind};
use tailbone_values::web::{Allowed, Host, HostPattern};

/// Why the host that a request names is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnclearHost {
    /// Two different hosts, or none where one is required.
    Ambiguous,
    Bad,
}

impl From<UnclearHost> for Error {
    fn from(error: UnclearHost) -> Self {
        let words = match error {
            UnclearHost::Ambiguous => {
                "the request must name one host, in its Host header or its target"
            }
            UnclearHost::Bad => "the host is not a host name or address",
        };
        Self::new(Kind::BadRequest, "bad_host", words)
    }
}

/// The host that a request names, with its port. It may be in the target (absolute form or
/// `:authority`), in `Host`, or in both if they agree.
pub fn requested_host(
    version: Version,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Option<(Host, Option<u16>)>, UnclearHost> {
    let mut values = headers.get_all(header::HOST).iter();
    let value = values.next();
    if values.next().is_some() {
        return Err(UnclearHost::Ambiguous);
    }
    let parse = |text: &str| Host::with_port(text).map_err(|_| UnclearHost::Bad);
    let named = match value {
        None => None,
        Some(value) => Some(parse(value.to_str().map_err(|_| UnclearHost::Bad)?)?),
    };
    let target = match uri.authority() {
        None => None,
        Some(authority) => Some(parse(authority.as_str())?),
    };
    match (target, named) {
        (Some((one, _)), Some((other, _))) if one != other => Err(UnclearHost::Ambiguous),
        // RFC 9112, section 3.2: an HTTP/1.1 request always names a host.
        (None, None) if version == Version::HTTP_11 => Err(UnclearHost::Ambiguous),
        (target, named) => Ok(target.or(named)),
    }
}

/// The current names of a node. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct NodeNames(Arc<ArcSwap<NameSet>>);

#[derive(Debug, Default, PartialEq, Eq)]
struct NameSet {
    names: Vec<Host>,
    addresses: Vec<IpAddr>,
}

impl NodeNames {
    /// Updates the names from the node's status: its MagicDNS name (or its host name if it has
    /// none) and its addresses. A part that is empty keeps its last value.
    pub fn set(&self, name: &str, hostname: &str, addresses: &[IpAddr]) {
        let old = self.0.load();
        let name = if name.is_empty() { hostname } else { name };
        let label = name.split('.').next().unwrap_or_default();
        let mut names: Vec<Host> = Vec::new();
        for name in [name, label] {
            names.extend(Host::parse(name).ok().filter(|name| !names.contains(name)));
        }
        if names.is_empty() {
            names.clone_from(&old.names);
        }
        let addresses = if addresses.is_empty() {
            old.addresses.clone()
        } else {
            addresses.to_vec()
        };
        let new = NameSet { names, addresses };
        if **old != new {
            self.0.store(Arc::new(new));
        }
    }
}

impl NodeNames {
    /// The node's full name, if this is one of its names or addresses.
    pub(super) fn full(&self, host: &Host) -> Option<Host> {
        let own = self.0.load();
        own.contains(host)
            .then(|| own.names.first().cloned())
            .flatten()
    }
}

impl NameSet {
    fn contains(&self, host: &Host) -> bool {
        match address(host) {
            Some(address) => self.addresses.contains(&address),
            None => self.names.contains(host),
        }
    }
}

/// The host, if it is an address.
fn address(host: &Host) -> Option<IpAddr> {
    let address = host.as_str().parse::<IpAddr>().ok();
    address.map(|address| address.to_canonical())
}

/// Where a listener's own names come from.
#[derive(Debug, Clone)]
enum OwnNames {
    Loopback,
    Node(NodeNames),
}

/// The hosts that a listener accepts. It is among the extensions of each request, where
/// [`super::layers`] finds it. Clones share one state.
#[derive(Debug, Clone)]
pub struct HostRule(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    own: OwnNames,
    extra: Vec<Allowed<HostPattern>>,
    refused: AtomicU64,
}

impl HostRule {
    /// For a listener on the tailnet.
    pub fn of_node(names: NodeNames, extra: &[Allowed<HostPattern>]) -> Self {
        Self::new(OwnNames::Node(names), extra)
    }

    /// For a listener on this machine's loopback.
    pub fn of_loopback(extra: &[Allowed<HostPattern>]) -> Self {
        Self::new(OwnNames::Loopback, extra)
    }

    fn new(own: OwnNames, extra: &[Allowed<HostPattern>]) -> Self {
        Self(Arc::new(Inner {
            own,
            extra: extra.to_vec(),
            refused: AtomicU64::new(0),
        }))
    }

    /// Refuses a request for another host.
    pub fn check(&self, version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), Error> {
        match requested_host(version, uri, headers)? {
            Some((host, _)) if !self.accepts(&host) => Err(self.refuse(&host)),
            _ => Ok(()),
        }
    }

    /// Whether this is a name of the listener.
    pub fn accepts(&self, host: &Host) -> bool {
        let own = match &self.0.own {
            OwnNames::Loopback => match address(host) {
                Some(address) => address.is_loopback(),
                None => host.as_str() == "localhost",
            },
            OwnNames::Node(names) => names.0.load().contains(host),
        };
        let named = |one: &Allowed<HostPattern>| one.allows(|pattern| pattern.matches(host));
        own || self.0.extra.iter().any(named)
    }

    /// The answer to a request for another host.
    pub fn refuse(&self, host: &Host) -> Error {
        let known = self.names_for_message();
        if known.is_empty() {
            let kind = Kind::Unavailable {
                retry_after: Duration::from_secs(1),
            };
            return Error::new(
                kind,
                "names_unknown",
                "this server does not know yet by which names it is called; try again",
            );
        }
        let host = host.as_str().get(..128).unwrap_or(host.as_str());
        // Log refusals 1, 2, 4, 8, …: one sender can cause very many.
        let before = self.0.refused.fetch_add(1, Ordering::Relaxed);
        if (before + 1).is_power_of_two() {
            tracing::warn!(target: "server", host, known, so_far = before + 1, "requests refused that name another host; server.allowedHosts adds names");
        }
        Error::new(
            Kind::Misdirected,
            "unknown_host",
            format!(
                "the request is for {host}, and this server is called {known}: use one of these, or add the name to its setting server.allowedHosts"
            ),
        )
    }

    /// The listener's names for a message; empty while they are unknown.
    fn names_for_message(&self) -> String {
        let mut words: Vec<String> = match &self.0.own {
            OwnNames::Loopback => ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into(),
            OwnNames::Node(names) => {
                let known = names.0.load();
                let names = known.names.iter().map(|name| name.as_str().to_owned());
                names
                    .chain(known.addresses.iter().map(ToString::to_string))
                    .collect()
            }
        };
        if !words.is_empty() {
            words.extend(self.0.extra.iter().map(ToString::to_string));
        }
        words.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn rule(extra: &[&str]) -> (HostRule, NodeNames) {
        let names = NodeNames::default();
        let extra: Vec<_> = extra
            .iter()
            .map(|word| Allowed::parse(word, HostPattern::parse).unwrap())
            .collect();
        (HostRule::of_node(names.clone(), &extra), names)
    }

    fn code(rule: &HostRule, version: Version, target: &str, hosts: &[&'static str]) -> String {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, HeaderValue::from_static(host));
        }
        rule.check(version, &target.parse().unwrap(), &headers)
            .map_or_else(|error| error.code.to_owned(), |()| String::new())
    }

    fn of(rule: &HostRule, host: &'static str) -> String {
        code(rule, Version::HTTP_11, "/issue", &[host])
    }

    #[test]
    fn a_listener_takes_its_own_names_in_every_spelling_and_no_others() {
        let (rule, names) = rule(&["keys.example.com", "*.lab.example.com"]);
        let addresses = ["100.64.0.1".parse().unwrap(), "fd7a::1".parse().unwrap()];
        names.set("tailbone.tail1.ts.net", "tailbone", &addresses);
        for own in [
            "tailbone",
            "Tailbone:80",
            "tailbone.",
            "tailbone.tail1.ts.net",
            "TAILBONE.tail1.TS.net.:8080",
            "100.64.0.1",
            "100.64.0.1:80",
            "[fd7a::1]",
            "[fd7a:0:0::1]:80",
            "[::ffff:100.64.0.1]",
            "keys.example.com",
            "a.lab.example.com:443",
        ] {
            assert_eq!(of(&rule, own), "", "{own}");
        }
        for other in [
            "evil.example",
            "evil.example:80",
            "tailbone.evil.example",
            "tailbone.tail1.ts.net.evil.example",
            "tailbone-1",
            "tail1.ts.net",
            "localhost",
            "127.0.0.1",
            "100.64.0.2",
            "example.com",
        ] {
            assert_eq!(of(&rule, other), "unknown_host", "{other}");
        }
    }

    #[test]
    fn the_refusal_says_which_host_came_which_are_known_and_which_setting_adds_one() {
        let (rule, names) = rule(&["keys.example.com"]);
        names.set(
            "tailbone.tail1.ts.net",
            "tailbone",
            &["100.64.0.1".parse().unwrap()],
        );
        let host = Host::parse("evil.example").unwrap();
        let error = rule.refuse(&host);
        assert_eq!(error.kind, Kind::Misdirected);
        assert_eq!(
            error.message,
            "the request is for evil.example, and this server is called tailbone.tail1.ts.net, tailbone, 100.64.0.1, \
             keys.example.com: use one of these, or add the name to its setting server.allowedHosts"
        );
    }

    #[test]
    fn names_follow_the_node_and_stay_while_it_says_nothing() {
        let (rule, names) = rule(&[]);
        assert_eq!(of(&rule, "tailbone"), "names_unknown");
        let address = ["100.64.0.1".parse().unwrap()];
        names.set("tailbone.a.ts.net", "tailbone", &address);
        assert_eq!(of(&rule, "tailbone.a.ts.net"), "");
        names.set("", "", &[]);
        assert_eq!(of(&rule, "tailbone.a.ts.net"), "");
        names.set("tailbone-1.b.ts.net", "tailbone", &[]);
        assert_eq!(of(&rule, "tailbone-1"), "");
        assert_eq!(of(&rule, "100.64.0.1"), "");
        assert_eq!(of(&rule, "tailbone"), "unknown_host");
        assert_eq!(of(&rule, "tailbone.a.ts.net"), "unknown_host");
        // Without MagicDNS a node may have only a host name.
        names.set("", "other", &address);
        assert_eq!(of(&rule, "other"), "");
    }

    #[test]
    fn a_request_names_one_host_wherever_it_says_so() {
        let (rule, names) = rule(&[]);
        names.set("tailbone.a.ts.net", "tailbone", &[]);
        let code =
            |version, target: &str, hosts: &[&'static str]| code(&rule, version, target, hosts);
        assert_eq!(code(Version::HTTP_10, "/issue", &[]), "");
        assert_eq!(code(Version::HTTP_11, "/issue", &[]), "bad_host");
        assert_eq!(
            code(Version::HTTP_11, "/issue", &["tailbone", "tailbone"]),
            "bad_host"
        );
        assert_eq!(code(Version::HTTP_11, "/issue", &["a b"]), "bad_host");
        assert_eq!(
            code(Version::HTTP_10, "/issue", &["evil.example"]),
            "unknown_host"
        );
        let absolute = "http://tailbone/issue";
        assert_eq!(code(Version::HTTP_11, absolute, &["tailbone:80"]), "");
        assert_eq!(
            code(Version::HTTP_11, absolute, &["evil.example"]),
            "bad_host"
        );
        assert_eq!(code(Version::HTTP_2, absolute, &[]), "");
        assert_eq!(
            code(Version::HTTP_2, "http://evil.example/", &[]),
            "unknown_host"
        );
        assert_eq!(
            code(Version::HTTP_11, "http://evil.example/", &["evil.example"]),
            "unknown_host"
        );
    }

    #[test]
    fn a_listener_on_loopback_is_localhost() {
        let rule = HostRule::of_loopback(&[]);
        for own in ["localhost:9090", "127.0.0.1", "127.0.0.2", "[::1]:9090"] {
            assert_eq!(of(&rule, own), "", "{own}");
        }
        for other in [
            "evil.example",
            "tailbone",
            "100.64.0.1",
            "localhost.evil.example",
        ] {
            assert_eq!(of(&rule, other), "unknown_host", "{other}");
        }
    }

    #[test]
    fn a_star_takes_every_host() {
        let (rule, names) = rule(&["*"]);
        names.set("tailbone.a.ts.net", "tailbone", &[]);
        assert_eq!(of(&rule, "evil.example"), "");
    }
}
