//! Which addresses foreign names may lead to.
//!
//! Invariant: an address that is not known to be public is private.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use tailbone_values::web::{Host, HostPattern};

/// Hosts and networks that are permitted although their addresses are private.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrivateHosts(pub Vec<PrivateHost>);

/// A host by its name (`sso.internal`, `*.corp.example`), or a network (`10.1.0.0/16`, `10.1.2.3`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrivateHost {
    Named(HostPattern),
    Network { address: IpAddr, bits: u8 },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a host (sso.internal, *.corp.example) nor a network (10.1.0.0/16)")]
pub struct BadPrivateHost(String);

impl PrivateHosts {
    /// Whether a connection may be made to this address, to which this name or literal led.
    pub fn permit(&self, host: &str, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_public(address) || self.0.iter().any(|listed| listed.contains(host, address))
    }
}

impl PrivateHost {
    fn contains(&self, host: &str, address: IpAddr) -> bool {
        match self {
            Self::Named(pattern) => Host::parse(host).is_ok_and(|host| pattern.matches(&host)),
            Self::Network {
                address: network,
                bits,
            } => prefix(*network, *bits) == prefix(address, *bits),
        }
    }
}

/// The first `bits` of an address; addresses of the two families differ.
fn prefix(address: IpAddr, bits: u8) -> (bool, u128) {
    let (is_v4, value) = match address {
        IpAddr::V4(address) => (true, u128::from(address.to_bits()) << 96),
        IpAddr::V6(address) => (false, address.to_bits()),
    };
    let shift = 128_u32.saturating_sub(bits.into());
    (is_v4, value.checked_shr(shift).unwrap_or_default())
}

impl FromStr for PrivateHost {
    type Err = BadPrivateHost;

    fn from_str(text: &str) -> Result<Self, BadPrivateHost> {
        let bad = || BadPrivateHost(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let most = |address: &IpAddr| if address.is_ipv4() { 32 } else { 128 };
        match (address.parse::<IpAddr>(), bits) {
            (Ok(address), bits) => {
                let most = most(&address);
                let bits = match bits {
                    None => most,
                    Some(bits) => bits
                        .parse()
                        .ok()
                        .filter(|bits| *bits <= most)
                        .ok_or_else(bad)?,
                };
                Ok(Self::Network { address, bits })
            }
            (Err(_), None) => {
                let pattern = HostPattern::parse(text).map_err(|_| bad())?;
                // `10.1.2.3.` is an address as well: a name may end in a dot.
                match pattern.to_string().parse::<IpAddr>() {
                    Ok(address) => Ok(Self::Network {
                        address,
                        bits: most(&address),
                    }),
                    Err(_) => Ok(Self::Named(pattern)),
                }
            }
            (Err(_), Some(_)) => Err(bad()),
        }
    }
}

impl fmt::Display for PrivateHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(pattern) => pattern.fmt(f),
            Self::Network { address, bits } => write!(f, "{address}/{bits}"),
        }
    }
}

/// By the registries of special addresses (RFC 6890 and its updates).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// Networks that are not reached over the internet, or mean something else than one host in it.
const PRIVATE_V4: &[([u8; 4], u8)] = &[
    ([0, 0, 0, 0], 8),       // this network
    ([10, 0, 0, 0], 8),      // private
    ([100, 64, 0, 0], 10),   // shared; tailnets
    ([127, 0, 0, 0], 8),     // loopback
    ([169, 254, 0, 0], 16),  // link local; metadata of clouds
    ([172, 16, 0, 0], 12),   // private
    ([192, 0, 0, 0], 24),    // protocol assignments
    ([192, 0, 2, 0], 24),    // documentation
    ([192, 88, 99, 0], 24),  // relays of 6to4
    ([192, 168, 0, 0], 16),  // private
    ([198, 18, 0, 0], 15),   // benchmarks
    ([198, 51, 100, 0], 24), // documentation
    ([203, 0, 113, 0], 24),  // documentation
    ([224, 0, 0, 0], 3),     // multicast, reserved, broadcast
];

/// The same within `2000::/3`, outside of which nothing is public but NAT64.
const PRIVATE_V6: &[([u16; 2], u8)] = &[
    ([0x2001, 0x0000], 23), // protocol assignments, Teredo among them
    ([0x2001, 0x0db8], 32), // documentation
    ([0x2002, 0x0000], 16), // 6to4, which contains an IPv4 address
    ([0x3fff, 0x0000], 20), // documentation
];

fn is_public_v4(address: Ipv4Addr) -> bool {
    let address = IpAddr::V4(address);
    PRIVATE_V4.iter().all(|(network, bits)| {
        prefix(address, *bits) != prefix(IpAddr::V4(Ipv4Addr::from(*network)), *bits)
    })
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, third, fourth, fifth, sixth, high, low] = address.segments();
    // NAT64 leads to the IPv4 address at its end (RFC 6052).
    if [first, second, third, fourth, fifth, sixth] == [0x64, 0xff9b, 0, 0, 0, 0] {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    let address = IpAddr::V6(address);
    first & 0xe000 == 0x2000
        && PRIVATE_V6.iter().all(|([first, second], bits)| {
            let network = Ipv6Addr::new(*first, *second, 0, 0, 0, 0, 0, 0);
            prefix(address, *bits) != prefix(IpAddr::V6(network), *bits)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(hosts: &[&str], host: &str, address: &str) -> bool {
        let hosts = hosts.iter().map(|text| text.parse().unwrap()).collect();
        PrivateHosts(hosts).permit(host, address.parse().unwrap())
    }

    #[test]
    fn only_public_addresses_are_permitted_without_a_setting() {
        for public in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.32.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "64:ff9b::1.1.1.1",
            "::ffff:1.1.1.1",
        ] {
            assert!(permits(&[], "a.example", public), "{public}");
        }
        for private in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.19.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "fc00::1",
            "fd7a:115c:a1e0::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!permits(&[], "a.example", private), "{private}");
        }
    }

    #[test]
    fn a_setting_permits_hosts_by_name_and_networks() {
        assert!(permits(&["sso.internal"], "SSO.internal.", "10.0.0.1"));
        assert!(!permits(&["sso.internal"], "x.sso.internal", "10.0.0.1"));
        assert!(permits(&["*.corp.example"], "a.corp.example", "fd00::1"));
        assert!(!permits(&["*.corp.example"], "corp.example", "fd00::1"));
        assert!(permits(&["10.1.0.0/16"], "any.example", "10.1.255.1"));
        assert!(permits(&["10.1.0.0/16"], "any.example", "::ffff:10.1.2.3"));
        assert!(!permits(&["10.1.0.0/16"], "any.example", "10.2.0.1"));
        assert!(permits(&["fd00::/8"], "[fd12::1]", "fd12::1"));
        assert!(permits(&["127.0.0.1"], "127.0.0.1", "127.0.0.1"));
        assert!(permits(&["10.1.2.3."], "any.example", "10.1.2.3"));
        assert!(!permits(&["127.0.0.1"], "localhost", "127.0.0.2"));
        assert!(permits(&["0.0.0.0/0"], "localhost", "127.0.0.2"));
        assert!(!permits(&["0.0.0.0/0"], "localhost", "::1"));
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/x",
            "a.example/8",
            "a.example:443",
            "*",
        ] {
            assert!(bad.parse::<PrivateHost>().is_err(), "{bad}");
        }
    }
}
