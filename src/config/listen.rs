//! Where a component listens: the kinds of listeners, and which of them each component has.
//!
//! Every component can be served by a listener of any kind, except that only those with routes for
//! the internet can stand on Funnel. The kind decides what is known of a caller: on the tailnet
//! their identity, on a host address and through Funnel their address, on a unix socket their user
//! and process.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use super::{
    load::Settings,
    parse::Binding,
    read::SettingsReader,
    report::ValueOrigin,
    sections::{
        admin,
        components::Component,
        gate, metrics, oidc, server,
        sts::{self, TlsFiles},
        workload,
    },
    table::{self, Row},
};

const EXPECTED_FORMS: &str = "not a listener such as tailnet://:80, tailnet+tls://:443, https://0.0.0.0:8443?cert=PATH&key=PATH, http://127.0.0.1:8080, funnel://:443 or unix:///run/tailbone.sock";

/// The ports on which Tailscale takes connections from the internet.
const FUNNEL_PORTS: [u16; 3] = [443, 8443, 10000];

const INVALID_PORT: &str = "the port is a number from 1 to 65535";

/// The mode of a unix socket that names none: for our own user alone.
const DEFAULT_SOCKET_MODE: u32 = 0o600;

/// A place to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// An address of the node, or all of them. WireGuard encrypts what comes there; with TLS,
    /// browsers and other programs that ask for https come too.
    Tailnet {
        binding: Binding,
        port: u16,
        tls: Option<TailnetTls>,
    },
    /// The same place, for callers that ask for http there: they are sent to https at the port
    /// `to`.
    Redirect {
        binding: Binding,
        port: u16,
        to: u16,
    },
    /// An address of the machine. Without TLS only on loopback, or where a setting says that a
    /// proxy in front ends TLS.
    Host {
        addr: SocketAddr,
        tls: Option<TlsFiles>,
    },
    Unix {
        path: PathBuf,
        mode: u32,
    },
    /// A port of the node's name on the internet, always with TLS.
    Funnel {
        port: u16,
        tls: TailnetTls,
    },
}

/// The certificate of a listener with TLS on the tailnet or on Funnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TailnetTls {
    Files(TlsFiles),
    /// That of the node's name in the tailnet, by ACME.
    Node,
}

/// As a setting writes it; [`Listen::parse`] reads it.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tailnet { tls: None, .. } => write!(f, "tailnet://{}", self.addr()),
            Self::Tailnet {
                tls: Some(TailnetTls::Node),
                ..
            } => write!(f, "tailnet+tls://{}", self.addr()),
            Self::Tailnet {
                tls: Some(TailnetTls::Files(TlsFiles { cert, key })),
                ..
            } => {
                let (cert, key) = (cert.display(), key.display());
                write!(f, "tailnet+tls://{}?cert={cert}&key={key}", self.addr())
            }
            Self::Redirect { to, .. } => write!(f, "redirect://{}?to={to}", self.addr()),
            Self::Host { addr, tls: None } if addr.ip().is_loopback() => write!(f, "http://{addr}"),
            Self::Host { addr, tls: None } => write!(f, "http://{addr}?plain"),
            Self::Host {
                addr,
                tls: Some(TlsFiles { cert, key }),
            } => {
                let (cert, key) = (cert.display(), key.display());
                write!(f, "https://{addr}?cert={cert}&key={key}")
            }
            Self::Unix { path, mode } => write!(f, "unix://{}?mode={mode:04o}", path.display()),
            Self::Funnel {
                tls: TailnetTls::Node,
                ..
            } => write!(f, "funnel://{}", self.addr()),
            Self::Funnel {
                tls: TailnetTls::Files(TlsFiles { cert, key }),
                ..
            } => {
                let (cert, key) = (cert.display(), key.display());
                write!(f, "funnel://{}?cert={cert}&key={key}", self.addr())
            }
        }
    }
}

impl Listen {
    /// On the tailnet, as `port` and `binding` of a component say.
    pub(super) fn tailnet(binding: Option<Binding>, port: Option<u16>) -> Option<Self> {
        let (binding, port) = (binding?, port?);
        Some(Self::Tailnet {
            binding,
            port,
            tls: None,
        })
    }

    /// Reads one word of a `listen` setting.
    ///
    /// | Word | Listens at |
    /// |---|---|
    /// | `tailnet://:80`, `tailnet://100.64.0.1:80` | all addresses of the node, or one |
    /// | `tailnet+tls://:443` | the same with TLS, with the certificate of the node's name |
    /// | `tailnet+tls://:443?cert=PATH&key=PATH` | the same for another name; PEM files |
    /// | `redirect://:80?to=443` | the same, where callers are sent to https; 443 without `to` |
    /// | `http://127.0.0.1:8080` | a loopback address of the machine |
    /// | `http://0.0.0.0:8080?plain` | any of its addresses, where a proxy in front ends TLS |
    /// | `https://0.0.0.0:8443?cert=PATH&key=PATH` | the same with TLS; PEM files |
    /// | `funnel://:443` | the internet: that port of the node's name, with its certificate |
    /// | `funnel://:443?cert=PATH&key=PATH` | the same for another name; PEM files |
    /// | `unix:///run/x.sock?mode=0660` | a unix socket; the mode is 0600 without one |
    pub fn parse(word: &str) -> Result<Self, String> {
        let (kind, rest) = word.split_once("://").ok_or(EXPECTED_FORMS)?;
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut options = QueryOptions::parse(query)?;
        let listen = match kind {
            "tailnet" => {
                let (binding, port) = parse_tailnet_address(address)?;
                Self::Tailnet {
                    binding,
                    port,
                    tls: None,
                }
            }
            "tailnet+tls" => {
                let (binding, port) = parse_tailnet_address(address)?;
                Self::Tailnet {
                    binding,
                    port,
                    tls: Some(options.tailnet_tls(kind)?),
                }
            }
            "redirect" => {
                let (binding, port) = parse_tailnet_address(address)?;
                let to = match options.take("to") {
                    None => 443,
                    Some(to) => to.parse().ok().filter(|to| *to != 0).ok_or(INVALID_PORT)?,
                };
                Self::Redirect { binding, port, to }
            }
            "funnel" => Self::Funnel {
                port: parse_funnel_port(address)?,
                tls: options.tailnet_tls(kind)?,
            },
            "unix" => Self::parse_unix(address, options.take("mode"))?,
            "http" => Self::Host {
                addr: parse_host_address(address)?,
                tls: None,
            },
            "https" => Self::Host {
                addr: parse_host_address(address)?,
                tls: Some(options.tls_files(kind)?),
            },
            _ => return Err(EXPECTED_FORMS.into()),
        };
        if let Self::Host { addr, tls: None } = &listen
            && options.take("plain").is_none()
            && !addr.ip().is_loopback()
        {
            return Err("outside of loopback, tokens need TLS: use https, or add ?plain if a proxy in front terminates TLS".into());
        }
        options.done()?;
        Ok(listen)
    }

    fn parse_unix(address: &str, mode: Option<&str>) -> Result<Self, String> {
        if !address.starts_with('/') {
            return Err("the path of a unix socket is absolute: unix:///run/tailbone.sock".into());
        }
        let mode = match mode {
            None => DEFAULT_SOCKET_MODE,
            Some(mode) => file_mode(mode)?,
        };
        Ok(Self::Unix {
            path: address.into(),
            mode,
        })
    }

    /// The address as logs and `tailbone status` show it. Tailnet and Funnel may both serve a
    /// port.
    pub fn label(&self) -> String {
        let addr = self.addr();
        match self {
            Self::Funnel { .. } => format!("funnel{addr}"),
            _ => addr,
        }
    }

    fn addr(&self) -> String {
        match self {
            Self::Tailnet { binding, port, .. } | Self::Redirect { binding, port, .. } => {
                match binding {
                    Binding::Auto => format!(":{port}"),
                    Binding::Addr(ip) => SocketAddr::new(*ip, *port).to_string(),
                }
            }
            Self::Host { addr, .. } => addr.to_string(),
            Self::Unix { path, .. } => path.display().to_string(),
            Self::Funnel { port, .. } => format!(":{port}"),
        }
    }

    /// The place, if it is one of the node's.
    fn on_the_tailnet(&self) -> Option<(Binding, u16)> {
        match self {
            Self::Tailnet { binding, port, .. } | Self::Redirect { binding, port, .. } => {
                Some((*binding, *port))
            }
            Self::Host { .. } | Self::Unix { .. } | Self::Funnel { .. } => None,
        }
    }

    /// Whether both cannot be listened at. The node's addresses are not the machine's own.
    pub fn collides(&self, other: &Self) -> bool {
        if let (Some((binding, port)), Some((other, others))) =
            (self.on_the_tailnet(), other.on_the_tailnet())
        {
            let apart =
                matches!((binding, other), (Binding::Addr(one), Binding::Addr(two)) if one != two);
            return port == others && !apart;
        }
        match (self, other) {
            (Self::Host { addr, .. }, Self::Host { addr: other, .. }) => {
                let any = |ip: IpAddr| ip.is_unspecified();
                let same = addr.ip() == other.ip() || any(addr.ip()) || any(other.ip());
                addr.port() == other.port() && same
            }
            (Self::Unix { path, .. }, Self::Unix { path: other, .. }) => path == other,
            (Self::Funnel { port, .. }, Self::Funnel { port: other, .. }) => port == other,
            _ => false,
        }
    }
}

fn parse_tailnet_address(address: &str) -> Result<(Binding, u16), String> {
    match address.strip_prefix(':') {
        Some(port) => match port.parse() {
            Ok(port) if port != 0 => Ok((Binding::Auto, port)),
            _ => Err(INVALID_PORT.into()),
        },
        None => {
            let addr = parse_host_address(address)?;
            Ok((Binding::Addr(addr.ip()), addr.port()))
        }
    }
}

fn parse_funnel_port(address: &str) -> Result<u16, String> {
    let port = address.strip_prefix(':').and_then(|port| port.parse().ok());
    port.filter(|port| FUNNEL_PORTS.contains(port))
        .ok_or_else(|| "Funnel has the ports :443, :8443 and :10000 alone".into())
}

pub(super) fn file_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text.trim(), 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| "not a file mode in octal, such as 0660".into())
}

fn parse_host_address(address: &str) -> Result<SocketAddr, String> {
    match address.parse::<SocketAddr>() {
        Ok(addr) if addr.port() != 0 => Ok(addr),
        _ => Err("not an IP address with a port such as 127.0.0.1:8080 or [::1]:8080".into()),
    }
}

/// What follows the question mark. Paths stand there as they are, so nothing is percent-decoded.
struct QueryOptions<'a>(Vec<(&'a str, &'a str)>);

impl<'a> QueryOptions<'a> {
    fn parse(query: &'a str) -> Result<Self, String> {
        let mut all: Vec<(&str, &str)> = Vec::new();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            if all.iter().any(|(known, _)| *known == name) {
                return Err(format!("{name} occurs twice"));
            }
            all.push((name, value));
        }
        Ok(Self(all))
    }

    fn take(&mut self, name: &str) -> Option<&'a str> {
        let at = self.0.iter().position(|(known, _)| *known == name)?;
        Some(self.0.remove(at).1)
    }

    /// Without files the certificate is that of the node's name.
    fn tailnet_tls(&mut self, kind: &str) -> Result<TailnetTls, String> {
        if self.0.is_empty() {
            return Ok(TailnetTls::Node);
        }
        Ok(TailnetTls::Files(self.tls_files(kind)?))
    }

    fn tls_files(&mut self, kind: &str) -> Result<TlsFiles, String> {
        match (self.take("cert"), self.take("key")) {
            (Some(cert), Some(key)) => Ok(TlsFiles {
                cert: cert.into(),
                key: key.into(),
            }),
            _ => Err(format!("{kind} needs both files: ?cert=PATH&key=PATH")),
        }
    }

    fn done(self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(format!("{name} means nothing for this kind of listener")),
        }
    }
}

impl SettingsReader<'_> {
    /// The listeners of a component: those of its `listen` setting, or else those of the older
    /// settings in `legacy_rows`, which have no effect if `listen` is set.
    pub(super) fn listen(
        &mut self,
        row: &'static Row,
        legacy_rows: &[&'static Row],
        legacy_listeners: Option<Vec<Listen>>,
    ) -> Option<Vec<Listen>> {
        let listen = self.words(row, Listen::parse)?;
        if listen.is_empty() {
            return legacy_listeners;
        }
        for legacy_row in legacy_rows {
            if self.is_set(legacy_row) {
                let origin = self.lookup(legacy_row).origin;
                self.warn(origin, format!("has no effect: {} is set", row.key));
            }
        }
        Some(listen)
    }

    /// Records a mistake for each two listeners at the same place.
    pub(super) fn report_collisions(&mut self, settings: &Settings) {
        let listeners = listeners(settings);
        for (at, one) in listeners.iter().enumerate() {
            for other in listeners.iter().skip(at + 1) {
                if one.listen.collides(&other.listen) {
                    self.report_collision(one, other);
                }
            }
        }
    }

    fn report_collision(&mut self, one: &ConfiguredListener, other: &ConfiguredListener) {
        let (one_row, other_row) = (self.row_of(one), self.row_of(other));
        let (first, second) = (self.lookup(one_row).origin, self.lookup(other_row).origin);
        let (row, named) = if first == ValueOrigin::Default {
            (other_row, format!("{} ({first})", one_row.key))
        } else {
            (one_row, format!("{} ({second})", other_row.key))
        };
        let (value, need) = match &one.listen {
            Listen::Tailnet { port, .. }
            | Listen::Redirect { port, .. }
            | Listen::Funnel { port, .. } => (port.to_string(), "two ports"),
            Listen::Host { addr, .. } => (addr.port().to_string(), "two ports"),
            Listen::Unix { path, .. } => (path.display().to_string(), "two paths"),
        };
        let (one, other) = (one.name, other.name);
        let sentence = format!("{named} is the same: {one} and {other} need {need}");
        self.mistake(row, Some(value), sentence);
    }

    /// Records a mistake for each listener of Funnel whose routes are not for the internet.
    pub(super) fn report_funnel(&mut self, settings: &Settings) {
        for one in listeners(settings) {
            if let Listen::Funnel { .. } = one.listen
                && !one.has_internet_routes()
            {
                let row = self.row_of(&one);
                let sentence = format!(
                    "{} has nothing for the internet: it cannot stand on Funnel",
                    one.name
                );
                self.mistake(row, Some(one.listen.to_string()), sentence);
            }
        }
    }

    /// The setting that says where the listener is.
    fn row_of(&self, listener: &ConfiguredListener) -> &'static Row {
        if self.is_set(listener.row) {
            listener.row
        } else {
            listener.legacy_row
        }
    }
}

/// A listener, with the settings that may say where it is.
struct ConfiguredListener {
    name: &'static str,
    row: &'static Row,
    legacy_row: &'static Row,
    listen: Listen,
}

impl ConfiguredListener {
    /// Whether the component says which of its routes exist on the internet
    /// ([`crate::part::Routes`]).
    fn has_internet_routes(&self) -> bool {
        [
            &server::LISTEN,
            &gate::LISTEN,
            &sts::LISTEN,
            &workload::LISTEN,
            &oidc::LISTEN,
        ]
        .contains(&self.row)
    }
}

/// The listeners of the components that are switched on.
fn listeners(settings: &Settings) -> Vec<ConfiguredListener> {
    let components = settings.components.iter();
    let mut listeners: Vec<_> = components
        .flat_map(|component| listeners_of(*component, settings))
        .collect();
    // A report names them in the order of the table.
    listeners.sort_by_key(|listener| table::ALL.iter().position(|row| *row == listener.row));
    listeners
}

/// The listeners of a component: the compiler refuses one that is missing here.
fn listeners_of(component: Component, settings: &Settings) -> Vec<ConfiguredListener> {
    match component {
        Component::Issuer => configured(
            "issuer",
            &server::LISTEN,
            &server::PORT,
            &settings.server.listen,
        ),
        Component::Admin => configured(
            "admin API",
            &admin::LISTEN,
            &admin::PORT,
            &settings.admin.listen,
        ),
        Component::Metrics => configured(
            "metrics",
            &metrics::LISTEN,
            &metrics::PORT,
            &settings.metrics.listen,
        ),
        Component::Gate => {
            let mut listeners =
                configured("gate", &gate::LISTEN, &gate::PORT, &settings.gate.listen);
            listeners.extend(configured(
                "the gate's forward-auth",
                &gate::AUTH_LISTEN,
                &gate::AUTH_PORT,
                &settings.gate.auth.listen,
            ));
            listeners
        }
        Component::Workload => configured(
            "workload",
            &workload::LISTEN,
            &workload::LISTEN,
            &settings.workload.listen,
        ),
        Component::Oidc => configured("oidc", &oidc::LISTEN, &oidc::LISTEN, &settings.oidc.listen),
        Component::Sts => {
            let is_host = |listen: &Listen| matches!(listen, Listen::Host { .. });
            let listen = settings.sts.listen.iter().cloned();
            let (host, tailnet): (Vec<_>, Vec<_>) = listen.partition(is_host);
            let mut listeners = configured("sts", &sts::LISTEN, &sts::PORT, &tailnet);
            listeners.extend(configured(
                "sts at the host",
                &sts::LISTEN,
                &sts::HOST_LISTEN,
                &host,
            ));
            listeners
        }
    }
}

impl Settings {
    /// The ports of the listeners that use the certificate of the node's name.
    pub fn node_certificate_ports(&self) -> Vec<u16> {
        let all = listeners(self).into_iter();
        all.filter_map(|listener| match listener.listen {
            Listen::Tailnet {
                port,
                tls: Some(TailnetTls::Node),
                ..
            }
            | Listen::Funnel {
                port,
                tls: TailnetTls::Node,
            } => Some(port),
            _ => None,
        })
        .collect()
    }

    /// The ports of the listeners on Funnel.
    pub fn funnel_ports(&self) -> Vec<u16> {
        let all = listeners(self).into_iter();
        all.filter_map(|listener| match listener.listen {
            Listen::Funnel { port, .. } => Some(port),
            _ => None,
        })
        .collect()
    }
}

fn configured(
    name: &'static str,
    row: &'static Row,
    legacy_row: &'static Row,
    listen: &[Listen],
) -> Vec<ConfiguredListener> {
    let listen = listen.iter().cloned();
    listen
        .map(|listen| ConfiguredListener {
            name,
            row,
            legacy_row,
            listen,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_read_and_written_alike() {
        for word in [
            "tailnet://:80",
            "tailnet://100.64.0.1:80",
            "tailnet://[fd7a:115c:a1e0::1]:8082",
            "tailnet+tls://:443",
            "tailnet+tls://[fd7a:115c:a1e0::1]:8443",
            "tailnet+tls://:443?cert=/etc/tls/tls.crt&key=/etc/tls/tls.key",
            "redirect://100.64.0.1:80?to=8443",
            "http://127.0.0.1:9090",
            "http://[::1]:9090",
            "http://0.0.0.0:8080?plain",
            "https://0.0.0.0:8443?cert=/etc/tls/tls.crt&key=/etc/tls/tls.key",
            "unix:///run/tailbone/gate.sock?mode=0660",
            "funnel://:443",
            "funnel://:8443?cert=/etc/tls/tls.crt&key=/etc/tls/tls.key",
        ] {
            assert_eq!(Listen::parse(word).unwrap().to_string(), word);
        }
        let redirect = Listen::parse("redirect://:80").unwrap();
        assert_eq!(redirect.to_string(), "redirect://:80?to=443");
        let private = Listen::parse("unix:///run/x").unwrap();
        assert_eq!(private.to_string(), "unix:///run/x?mode=0600");
    }

    #[test]
    fn a_port_of_the_internet_is_told_from_one_of_the_tailnet() {
        for (word, label) in [
            ("tailnet+tls://:443", ":443"),
            ("funnel://:443", "funnel:443"),
            ("unix:///run/x", "/run/x"),
        ] {
            assert_eq!(Listen::parse(word).unwrap().label(), label);
        }
    }

    #[test]
    fn what_cannot_be_listened_at_is_refused_with_the_reason() {
        for (word, reason) in [
            ("80", "not a listener"),
            ("ftp://127.0.0.1:1", "not a listener"),
            ("tailnet://:0", "1 to 65535"),
            ("tailnet://host:80", "not an IP address"),
            ("tailnet://:80?plain", "means nothing"),
            ("tailnet+tls://:443?cert=/a", "tailnet+tls needs both files"),
            ("tailnet+tls://:443?name=x", "tailnet+tls needs both files"),
            ("redirect://:80?to=0", "1 to 65535"),
            ("http://0.0.0.0:8080", "need TLS"),
            ("http://127.0.0.1", "with a port"),
            ("http://127.0.0.1:1?plain&plain", "twice"),
            ("https://0.0.0.0:8443?cert=/a", "both files"),
            ("unix://run/x", "absolute"),
            ("unix:///run/x?mode=9", "octal"),
            ("funnel://:80?cert=/a&key=/b", ":443, :8443 and :10000"),
            ("funnel://100.64.0.1:443", ":443, :8443 and :10000"),
            ("funnel://:443?cert=/a", "both files"),
        ] {
            let error = Listen::parse(word).unwrap_err();
            assert!(error.contains(reason), "{word}: {error}");
        }
    }

    #[test]
    fn listeners_collide_at_the_same_place_alone() {
        let collide = |one, other| {
            let (one, other) = (Listen::parse(one).unwrap(), Listen::parse(other).unwrap());
            assert_eq!(one.collides(&other), other.collides(&one));
            one.collides(&other)
        };
        assert!(collide("tailnet://:80", "tailnet://100.64.0.1:80"));
        assert!(!collide(
            "tailnet://100.64.0.2:80",
            "tailnet://100.64.0.1:80"
        ));
        assert!(!collide("tailnet://:80", "tailnet://:81"));
        assert!(collide("tailnet://:80", "redirect://:80"));
        assert!(collide(
            "tailnet://100.64.0.1:443",
            "tailnet+tls://:443?cert=/c&key=/k"
        ));
        assert!(!collide("tailnet://:80", "http://127.0.0.1:80"));
        assert!(collide("http://127.0.0.1:80", "http://0.0.0.0:80?plain"));
        assert!(!collide("http://127.0.0.1:80", "http://127.0.0.2:80"));
        assert!(collide("unix:///a", "unix:///a?mode=0660"));
        let funnel = "funnel://:443?cert=/c&key=/k";
        assert!(collide(funnel, "funnel://:443?cert=/d&key=/l"));
        assert!(!collide(funnel, "funnel://:8443?cert=/c&key=/k"));
        assert!(!collide(funnel, "tailnet://:443"), "another network");
    }
}
