//! A tailnet with a gate: alice, bob, a machine, a user from another tailnet, a proxy, and a
//! backend behind the gate.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::Router;
use futures_util::future::BoxFuture;
use tailbone::{
    config::{self, Listen},
    gate::{Gate, SignFn, local_proxy_extensions},
    http::{
        host::{HostRule, NodeNames},
        layers,
        serve::{Limits, LiveLimits, Server, serve},
        unix::UnixSocket,
    },
    identity::{Directory, TailnetListener},
    policy::CAPABILITY,
    tailnet::{
        Error, ListenAddr, Listener, Node, Peer, Status, Stream, WhoIs,
        fake::{FakeNode, FakeTailnet, Identity},
    },
    telemetry::meter::Meter,
    web::{Allowed, HostPattern},
};
use testkit::backend::{Answer, Backend, connect, raw, request};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::watch,
};

pub(super) const ALLOW_OWN: &str = "[[rule]]\nname = \"own\"\ndecision = \"allow\"\n";
/// A source address that the fake node treats as the internet.
pub(super) const FUNNEL: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 65, 0, 9));

pub(super) const PROXY_PORT: u16 = 8080;
const AUTH_PORT: u16 = 8081;
const OWN_PORT: u16 = 9000;

pub(super) struct World {
    pub(super) tailnet: FakeTailnet,
    pub(super) node: FakeNode,
    pub(super) trouble: Arc<Troubled>,
    directory: Directory,
    pub(super) gate: Gate,
    pub(super) meter: Meter,
    /// Limits of the local socket.
    pub(super) limits: LiveLimits,
    pub(super) backend: Backend,
    pub(super) settings: config::Gate,
    pub(super) socket: PathBuf,
    pub(super) policy_file: PathBuf,
    peers: BTreeMap<&'static str, FakeNode>,
    servers: Vec<Server>,
    rule: HostRule,
    pub(super) dir: tempfile::TempDir,
}

impl World {
    pub(super) async fn start(policy: &str) -> Self {
        Self::with(policy, |_| {}).await
    }

    pub(super) async fn with(policy: &str, change: impl FnOnce(&mut config::Gate)) -> Self {
        Self::build(policy, change, None, &["*"]).await
    }

    /// A world whose reverse proxy only accepts its own names and those of upstreams and rules.
    pub(super) async fn called_by_name(
        policy: &str,
        change: impl FnOnce(&mut config::Gate),
    ) -> Self {
        Self::build(policy, change, None, &[]).await
    }

    pub(super) async fn signing(policy: &str, sign: SignFn) -> Self {
        let token = config::GateToken {
            issuer: "tailbone/gate".into(),
            audience: None,
            life: Duration::from_secs(60),
        };
        let change = |gate: &mut config::Gate| {
            gate.token = Some(token);
            gate.upstreams[0].host = "app.example.com".into();
        };
        Self::build(policy, change, Some(sign), &["*"]).await
    }

    async fn build(
        policy: &str,
        change: impl FnOnce(&mut config::Gate),
        sign: Option<SignFn>,
        hosts: &[&str],
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let policy_file = dir.path().join("policy.toml");
        fs::write(&policy_file, policy).unwrap();
        let socket = dir.path().join("gate.sock");
        let backend = Backend::start().await;
        let tailnet = FakeTailnet::new();
        let node = tailnet.join("tailbone", Identity::tagged(["tag:tailbone"]));
        let mut foreign = Identity::user("eve@other.org");
        foreign.same_tailnet = false;
        let peers = BTreeMap::from([
            (
                "alice",
                tailnet.join("alice", Identity::user("alice@example.com")),
            ),
            (
                "bob",
                tailnet.join("bob", Identity::user("bob@example.com")),
            ),
            (
                "robot",
                tailnet.join("robot", Identity::tagged(["tag:ci", "tag:prod"])),
            ),
            ("sharee", tailnet.join("sharee", foreign)),
            (
                "proxy",
                tailnet.join("proxy", Identity::tagged(["tag:proxy"])),
            ),
        ]);
        let mut settings = config::Gate {
            listen: vec![Listen::parse(&format!("tailnet://:{PROXY_PORT}")).unwrap()],
            upstreams: vec![upstream("", "", backend.addr)],
            upstream_timeout: Duration::ZERO,
            upstream_ca: None,
            policy: Some(policy_file.clone()),
            capability: CAPABILITY.into(),
            allowed_origins: Vec::new(),
            expected_tailnet: None,
            forward_capabilities: Vec::new(),
            token: None,
            recheck: Duration::from_millis(20),
            auth: config::GateAuth {
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
        let trouble = Arc::new(Troubled {
            node: node.clone(),
            trouble: Mutex::new(Trouble::None),
            asked: AtomicUsize::new(0),
        });
        let meter = Meter::default();
        let directory = Directory::new(trouble.clone());
        let gate = Gate::build(&settings, directory.clone(), sign, meter.clone()).unwrap();
        let names = NodeNames::default();
        let status = node.watch().borrow().clone();
        names.set(&status.name, &status.hostname, &status.addresses);
        let hosts: Vec<_> = hosts
            .iter()
            .map(|word| Allowed::parse(word, HostPattern::parse).unwrap())
            .collect();
        let rule = HostRule::of_node(names, &hosts);
        let mut world = Self {
            tailnet,
            node,
            trouble,
            directory,
            gate,
            meter,
            limits: Limits::default().into(),
            backend,
            settings,
            socket,
            policy_file,
            peers,
            servers: Vec::new(),
            rule,
            dir,
        };
        if let Some(router) = world.gate.proxy_router() {
            world
                .serve(PROXY_PORT, layers::wrap_streaming(router, "gate"))
                .await;
        }
        let router = layers::wrap(world.gate.auth_router().unwrap(), "gate");
        world.serve(AUTH_PORT, router.clone()).await;
        let listener = UnixSocket::bind(&world.socket, 0o600).unwrap();
        let limits = world.limits.clone();
        let local = serve("gate-local", listener, router, limits, |_| {
            local_proxy_extensions()
        });
        world.servers.push(local);
        world
    }

    async fn serve(&mut self, port: u16, router: Router) {
        let listener = TailnetListener(self.node.listen(ListenAddr::Port(port)).await.unwrap());
        let directory = self.directory.clone();
        // As in the server: forward-auth is asked about other hosts, so it has no such rule.
        let rule = (port == PROXY_PORT).then(|| self.rule.clone());
        let server = serve(
            "gate",
            listener,
            router,
            Limits::default(),
            move |peer: Peer| {
                let mut extensions = directory.identify(peer);
                if let Some(rule) = rule.clone() {
                    extensions.insert(rule);
                }
                extensions
            },
        );
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

    pub(super) fn ip(&self, peer: &str) -> IpAddr {
        self.peers.get(peer).unwrap_or(&self.node).ip()
    }

    /// The local address from which a peer's connections come.
    pub(super) fn source(&self, peer: &str) -> IpAddr {
        self.peers[peer].source()
    }

    pub(super) fn proxy_addr(&self) -> SocketAddr {
        self.node.host_addr(PROXY_PORT).unwrap()
    }

    /// Asks over the local socket about a request for `/`, unless the headers say otherwise.
    pub(super) async fn ask(&self, path: &str, headers: &[&str]) -> Answer {
        let mut all = vec!["Host: app.example.com"];
        all.extend(headers);
        self.ask_bare(&format!("GET {path}"), &all).await
    }

    /// Asks about a peer in the convention of nginx-auth.
    pub(super) async fn ask_about(&self, peer: &str) -> Answer {
        let addr = format!("Remote-Addr: {}", self.ip(peer));
        self.ask("/", &[&addr, "Remote-Port: 1234"]).await
    }

    pub(super) async fn ask_bare(&self, line: &str, headers: &[&str]) -> Answer {
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
        let to = self.node.host_addr(AUTH_PORT).unwrap();
        raw(
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
        self.send_from(self.source_of(peer), line, headers).await
    }

    pub(super) async fn send_from(&self, from: IpAddr, line: &str, headers: &[&str]) -> Answer {
        raw(from, self.proxy_addr(), &request(line, headers)).await
    }

    pub(super) async fn connect(&self, peer: &str) -> TcpStream {
        connect(self.source_of(peer), self.proxy_addr()).await
    }

    pub(super) async fn keep_alive(&self, peer: &str) -> Open {
        Open(self.connect(peer).await)
    }

    /// Serves another router on the tailnet.
    pub(super) async fn serve_at(&mut self, app: Router) -> SocketAddr {
        self.serve(OWN_PORT, layers::wrap(app, "own")).await;
        self.node.host_addr(OWN_PORT).unwrap()
    }

    /// Serves another router on the tailnet, and requests a path of it as a peer.
    pub(super) async fn serve_own(mut self, app: Router, peer: &str, path: &str) -> Answer {
        self.serve(OWN_PORT, layers::wrap(app, "own")).await;
        let to = self.node.host_addr(OWN_PORT).unwrap();
        raw(
            self.source(peer),
            to,
            &request(&format!("GET {path}"), &["Host: own"]),
        )
        .await
    }

    fn source_of(&self, peer: &str) -> IpAddr {
        self.peers[peer].source()
    }
}

pub(super) fn upstream(host: &str, path: &str, addr: SocketAddr) -> config::Upstream {
    config::Upstream {
        host: host.into(),
        path: path.into(),
        address: addr.to_string(),
        scheme: config::UpstreamScheme::Http,
    }
}

/// A connection that stays open.
pub(super) struct Open(TcpStream);

impl Open {
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

/// A fault of WhoIs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trouble {
    None,
    /// The answer contains nothing about the node.
    Bare,
    Login(&'static str),
    Name(&'static str),
    WhoIsFails,
    WhoIsHangs,
}

/// The fake node with faults. It also knows its callers by their loopback addresses, which a proxy
/// on this host sees.
#[derive(Debug)]
pub(super) struct Troubled {
    node: FakeNode,
    trouble: Mutex<Trouble>,
    asked: AtomicUsize,
}

impl Troubled {
    pub(super) fn set(&self, trouble: Trouble) {
        *self.trouble.lock().unwrap() = trouble;
        self.node.set_status(|_| {});
    }

    /// The number of WhoIs calls.
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Node for Troubled {
    fn generation(&self) -> u64 {
        self.node.generation()
    }

    fn watch(&self) -> watch::Receiver<Arc<Status>> {
        self.node.watch()
    }

    fn whois(&self, peer: SocketAddr) -> BoxFuture<'_, Result<WhoIs, Error>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let trouble = *self.trouble.lock().unwrap();
        let ip = match peer.ip() {
            IpAddr::V4(v4) if v4.octets()[..2] == [127, 64] => {
                let [_, _, x, y] = v4.octets();
                Ipv4Addr::new(100, 64, x, y).into()
            }
            other => other,
        };
        Box::pin(async move {
            let whois = self.node.whois(SocketAddr::new(ip, peer.port()));
            match trouble {
                Trouble::WhoIsFails => return Err(Error::Internal("inner words".into())),
                Trouble::WhoIsHangs => std::future::pending().await,
                _ => {}
            }
            let mut whois = whois.await?;
            match trouble {
                Trouble::Bare => {
                    whois.node.name.clear();
                    whois.node.hostname.clear();
                    whois.node.addresses.clear();
                    whois.user.display_name.clear();
                }
                Trouble::Login(login) => whois.user.login = login.into(),
                Trouble::Name(name) => whois.node.name = name.into(),
                _ => {}
            }
            Ok(whois)
        })
    }

    fn whois_at(&self, peer: SocketAddr, local: SocketAddr) -> BoxFuture<'_, Result<WhoIs, Error>> {
        let allowed = self.node.whois_at(peer, local);
        let whois = self.whois(peer);
        Box::pin(async move {
            let whois = whois.await?;
            allowed.await.map(|_| whois)
        })
    }

    fn listen(&self, addr: ListenAddr) -> BoxFuture<'_, Result<Listener, Error>> {
        self.node.listen(addr)
    }

    fn dial<'a>(
        &'a self,
        addr: &'a str,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Stream, Error>> {
        self.node.dial(addr, timeout)
    }

    fn logout(&self, timeout: Duration) -> BoxFuture<'_, Result<(), Error>> {
        self.node.logout(timeout)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.node.close()
    }
}
