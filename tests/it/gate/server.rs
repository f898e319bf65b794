//! A gate on a fake tailnet: alice, bob, a machine, a user from another tailnet, a proxy, and a
//! backend behind the gate.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use axum::Router;
use tailbone::{
    config::{self, Listen},
    gate::{Gate, SignFn, local_proxy_extensions},
    http::{
        host::HostRule,
        layers,
        serve::{Limits, LiveLimits, Server, serve},
        unix::UnixSocket,
    },
    policy::CAPABILITY,
    tailnet::fake::{FakeNode, Identity},
    telemetry::meter::Meter,
};
use testkit::{
    backend::{Answer, Backend, connect, request, send_raw},
    faulty_node::Fault,
    world::{Serving, World},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

pub(super) const ALLOW_OWN: &str = "[[rule]]\nname = \"own\"\ndecision = \"allow\"\n";
/// A source address that the fake node treats as the internet.
pub(super) const FUNNEL: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 65, 0, 9));

pub(super) const PROXY_PORT: u16 = 8080;
const AUTH_PORT: u16 = 8081;
const OWN_PORT: u16 = 9000;

/// A gate on a world of its own.
pub(super) struct GateServer {
    pub(super) world: World,
    pub(super) gate: Gate,
    pub(super) meter: Meter,
    /// Limits of the local socket.
    pub(super) limits: LiveLimits,
    pub(super) backend: Backend,
    pub(super) settings: config::GateSettings,
    pub(super) socket: PathBuf,
    pub(super) policy_file: PathBuf,
    peers: BTreeMap<&'static str, FakeNode>,
    servers: Vec<Server>,
    /// The names for which the reverse proxy takes requests.
    hosts: HostRule,
    pub(super) dir: tempfile::TempDir,
}

impl GateServer {
    pub(super) async fn start(policy: &str) -> Self {
        Self::with(policy, |_| {}).await
    }

    pub(super) async fn with(policy: &str, change: impl FnOnce(&mut config::GateSettings)) -> Self {
        Self::build(policy, change, None, &["*"]).await
    }

    /// A world whose reverse proxy only accepts its own names and those of upstreams and rules.
    pub(super) async fn with_own_names_only(
        policy: &str,
        change: impl FnOnce(&mut config::GateSettings),
    ) -> Self {
        Self::build(policy, change, None, &[]).await
    }

    pub(super) async fn signing(policy: &str, sign: SignFn) -> Self {
        let token = config::GateTokenSettings {
            issuer: "tailbone/gate".into(),
            audience: None,
            life: Duration::from_secs(60),
        };
        let change = |gate: &mut config::GateSettings| {
            gate.token = Some(token);
            gate.upstreams[0].host = "app.example.com".into();
        };
        Self::build(policy, change, Some(sign), &["*"]).await
    }

    async fn build(
        policy: &str,
        change: impl FnOnce(&mut config::GateSettings),
        sign: Option<SignFn>,
        hosts: &[&str],
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let policy_file = dir.path().join("policy.toml");
        fs::write(&policy_file, policy).unwrap();
        let socket = dir.path().join("gate.sock");
        let backend = Backend::start().await;
        let world = World::owned_by(Identity::tagged(["tag:tailbone"]));
        let mut foreign = Identity::user("eve@other.org");
        foreign.same_tailnet = false;
        let peers = [
            ("alice", Identity::user("alice@example.com")),
            ("bob", Identity::user("bob@example.com")),
            ("robot", Identity::tagged(["tag:ci", "tag:prod"])),
            ("sharee", foreign),
            ("proxy", Identity::tagged(["tag:proxy"])),
        ];
        let peers = peers.map(|(host, identity)| (host, world.join(host, identity)));
        let mut settings = config::GateSettings {
            listen: vec![Listen::parse(&format!("tailnet://:{PROXY_PORT}")).unwrap()],
            upstreams: vec![upstream("", "", backend.addr)],
            upstream_timeout: Duration::ZERO,
            upstream_ca: None,
            rules: config::RuleSource {
                file: Some(policy_file.clone()),
                capability: CAPABILITY.into(),
            },
            allowed_origins: Vec::new(),
            expected_tailnet: None,
            forward_capabilities: Vec::new(),
            token: None,
            recheck: Duration::from_millis(20),
            auth: config::GateAuthSettings {
                listen: vec![
                    Listen::parse(&format!("tailnet://:{AUTH_PORT}")).unwrap(),
                    Listen::parse(&format!("unix://{}", socket.display())).unwrap(),
                ],
                proxies: vec!["tag:proxy".into()],
                user_proxies: false,
                client_header: None,
                redirect: None,
            },
        };
        change(&mut settings);
        let meter = Meter::default();
        let directory = world.directory.clone();
        let gate = Gate::build(&settings, directory, sign, meter.clone()).unwrap();
        let mut server = Self {
            hosts: world.hosts(hosts),
            world,
            gate,
            meter,
            limits: Limits::default().into(),
            backend,
            settings,
            socket,
            policy_file,
            peers: peers.into(),
            servers: Vec::new(),
            dir,
        };
        if let Some(router) = server.gate.proxy_router() {
            let routes = layers::wrap_streaming(router, "gate");
            server.serve(PROXY_PORT, routes).await;
        }
        let routes = layers::wrap(server.gate.auth_router().unwrap(), "gate");
        server.serve(AUTH_PORT, routes.clone()).await;
        let listener = UnixSocket::bind(&server.socket, 0o600).unwrap();
        let limits = server.limits.clone();
        let local = serve("gate-local", listener, routes, limits, |_| {
            local_proxy_extensions()
        });
        server.servers.push(local);
        server
    }

    async fn serve(&mut self, port: u16, routes: Router) {
        // As in the server: forward-auth is asked about other hosts, so it has no such rule.
        let hosts = (port == PROXY_PORT).then(|| self.hosts.clone());
        let serving = Serving {
            hosts,
            ..Serving::default()
        };
        let server = self.world.serve_with(port, routes, serving).await;
        self.servers.push(server);
    }

    /// Stops everything, as a server does.
    pub(super) async fn stop(mut self) {
        for server in self.servers.drain(..) {
            server.stop(Duration::from_secs(1)).await;
        }
        self.gate.close().await;
    }

    /// Replaces the rules.
    pub(super) fn policy(&self, text: &str) {
        fs::write(&self.policy_file, text).unwrap();
        self.gate.reload_policy().unwrap();
    }

    /// Sets what is wrong with WhoIs, at once.
    pub(super) fn fault(&self, fault: Fault) {
        self.world.faulty.set_fault(fault);
        self.world.faulty.new_generation();
    }

    /// A fault of the name of the peer's node.
    pub(super) fn node_is_called(&self, name: &'static str) {
        self.fault(Fault::changed(|whois| whois.node.name = name.into()));
    }

    pub(super) fn ip(&self, peer: &str) -> IpAddr {
        self.peers.get(peer).unwrap_or(&self.world.node).ip()
    }

    /// The local address from which a peer's connections come.
    pub(super) fn source(&self, peer: &str) -> IpAddr {
        self.peers[peer].source()
    }

    pub(super) fn proxy_addr(&self) -> SocketAddr {
        self.world.node.host_addr(PROXY_PORT).unwrap()
    }

    /// Asks over the local socket about a request for `/`, unless the headers say otherwise.
    pub(super) async fn ask(&self, path: &str, headers: &[&str]) -> Answer {
        let mut all = vec!["Host: app.example.com"];
        all.extend(headers);
        self.ask_line(&format!("GET {path}"), &all).await
    }

    /// Asks about a peer in the convention of nginx-auth.
    pub(super) async fn ask_about(&self, peer: &str) -> Answer {
        let addr = format!("Remote-Addr: {}", self.ip(peer));
        self.ask("/", &[&addr, "Remote-Port: 1234"]).await
    }

    pub(super) async fn ask_line(&self, line: &str, headers: &[&str]) -> Answer {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        stream.write_all(&request(line, headers)).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        Answer::parse(&answer)
    }

    /// Asks over the tailnet, as one of the peers.
    pub(super) async fn ask_as(&self, peer: &str, path: &str, headers: &[&str]) -> Answer {
        let mut all = vec!["Host: app.example.com"];
        all.extend(headers);
        let to = self.world.node.host_addr(AUTH_PORT).unwrap();
        send_raw(
            self.source(peer),
            to,
            &request(&format!("GET {path}"), &all),
        )
        .await
    }

    /// A request to the reverse proxy.
    pub(super) async fn get(&self, peer: &str, path: &str) -> Answer {
        self.send(peer, &format!("GET {path}"), &["Host: app.example.com"])
            .await
    }

    pub(super) async fn send(&self, peer: &str, line: &str, headers: &[&str]) -> Answer {
        self.send_from(self.source(peer), line, headers).await
    }

    pub(super) async fn send_from(&self, from: IpAddr, line: &str, headers: &[&str]) -> Answer {
        send_raw(from, self.proxy_addr(), &request(line, headers)).await
    }

    pub(super) async fn connect(&self, peer: &str) -> TcpStream {
        connect(self.source(peer), self.proxy_addr()).await
    }

    pub(super) async fn keep_alive(&self, peer: &str) -> KeptConnection {
        KeptConnection(self.connect(peer).await)
    }

    /// Serves another router on the tailnet.
    pub(super) async fn serve_at(&mut self, app: Router) -> SocketAddr {
        self.serve(OWN_PORT, layers::wrap(app, "own")).await;
        self.world.node.host_addr(OWN_PORT).unwrap()
    }

    /// Serves another router on the tailnet, and requests a path of it as a peer.
    pub(super) async fn serve_own(mut self, app: Router, peer: &str, path: &str) -> Answer {
        self.serve(OWN_PORT, layers::wrap(app, "own")).await;
        let to = self.world.node.host_addr(OWN_PORT).unwrap();
        send_raw(
            self.source(peer),
            to,
            &request(&format!("GET {path}"), &["Host: own"]),
        )
        .await
    }
}

pub(super) fn upstream(host: &str, path: &str, addr: SocketAddr) -> config::UpstreamSettings {
    config::UpstreamSettings {
        host: host.into(),
        path: path.into(),
        address: addr.to_string(),
        scheme: config::UpstreamScheme::Http,
    }
}

/// A connection that stays open.
pub(super) struct KeptConnection(TcpStream);

impl KeptConnection {
    /// Sends one more request and returns its status; the body is read and discarded.
    pub(super) async fn get(&mut self, path: &str) -> u16 {
        let text = format!("GET {path} HTTP/1.1\r\nHost: app.example.com\r\n\r\n");
        self.0.write_all(text.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.unwrap());
        }
        let answer = Answer::parse(&head);
        let mut body = vec![0; answer.header("content-length").parse().unwrap()];
        self.0.read_exact(&mut body).await.unwrap();
        answer.status
    }
}
