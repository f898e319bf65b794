//! Funnel through the whole program: callers on the internet, as devnet's ingress brings them.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, header::HeaderName};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tailbone::tailnet::{EmbeddedNode, Node as _};
use tempfile::TempDir;
use testkit::{
    backend::Backend,
    certificates::{SelfSigned, self_signed},
    daemon::{Daemon, Start},
    devnet::Devnet,
    eventually,
    http::{Answer, Connection, dial, request},
    soon, spoof,
    tailnet::users_node,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream, UnixStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{alone, tailbone};

/// The full name of the server.
pub(super) const NAME: &str = "public.example-devnet.ts.net";

/// The program on a tailnet with Funnel.
pub(super) struct Edge {
    pub(super) devnet: Devnet,
    folder: TempDir,
    pair: SelfSigned,
    /// Whom callers trust.
    pub(super) root: CertificateDer<'static>,
}

impl Edge {
    /// Where certificates are ours.
    fn new() -> Self {
        Self::on(Devnet::with_funnel())
    }

    fn on(devnet: Devnet) -> Self {
        let now = jiff::Timestamp::now();
        let day = jiff::SignedDuration::from_hours(24);
        let pair = self_signed(&[NAME], now - day, now + 90 * day);
        Self {
            devnet,
            folder: TempDir::new().unwrap(),
            root: pair.der.clone().into(),
            pair,
        }
    }

    /// Where they come from a certificate authority.
    pub(super) fn with_authority() -> Self {
        Self::with_authority_and_peers(&[])
    }

    /// With these peers of the tailnet too.
    pub(super) fn with_authority_and_peers(peers: &[&str]) -> Self {
        let devnet = Devnet::with_https_funnel_and_peers(peers);
        let authority = devnet.ready.acme.as_ref().unwrap();
        let root = CertificateDer::from_pem_file(&authority.root_file).unwrap();
        Self {
            root,
            ..Self::on(devnet)
        }
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The pair as files, as a listener is told of them.
    fn files(&self) -> String {
        let (cert, key) = (
            self.folder().join("cert.pem"),
            self.folder().join("key.pem"),
        );
        fs::write(&cert, &self.pair.cert).unwrap();
        fs::write(&key, &self.pair.key).unwrap();
        format!("cert={}&key={}", cert.display(), key.display())
    }

    /// The server, with these listeners of the issuer.
    async fn start(&self, listen: &str) -> Daemon {
        self.start_with(&["--components", "issuer,metrics", "--listen", listen])
            .await
    }

    pub(super) async fn start_with(&self, flags: &[&str]) -> Daemon {
        self.to_start(flags).await.start()
    }

    pub(super) async fn to_start(&self, flags: &[&str]) -> Start {
        let metrics = format!("unix://{}", self.folder().join("metrics").display());
        tailbone(self.folder())
            .flags(flags)
            .flags(&["--metrics-listen", &metrics])
            .host("public")
            .joining(&self.devnet)
            .await
    }

    /// Whether the control server takes the server for a node with Funnel.
    async fn announced(&self) -> bool {
        let nodes = self.devnet.nodes().await;
        let server = nodes.iter().find(|node| node["host"] == "public").unwrap();
        server["funnel"].as_bool().unwrap()
    }

    /// Somebody at this loopback address, which stands for one on the internet, calls a port.
    async fn call(&self, from: u8, port: u16) -> Result<TlsStream<TcpStream>, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let socket = TcpSocket::new_v4().unwrap();
        let from = SocketAddr::from((Ipv4Addr::new(127, 0, 0, from), 0));
        socket.bind(from).unwrap();
        let front = self.devnet.ready.funnel[&port.to_string()];
        let stream = socket.connect(front).await.unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
        let connected = soon("the end of a handshake", connecting).await;
        connected.map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
            inner
                .cloned()
                .unwrap_or_else(|| rustls::Error::General(error.to_string()))
        })
    }

    /// The same, once the tailnet lets somebody through.
    pub(super) async fn connection(&self, from: u8, port: u16) -> Connection {
        let stream = eventually("a caller from the internet", async || {
            self.call(from, port)
                .await
                .map_err(|error| error.to_string())
        });
        Connection::over(stream.await).await.host(NAME)
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.connection(9, 443).await.get(path).await
    }
}

/// The reason of the latch `funnel`, once it contains these words; empty once it is free of
/// trouble.
async fn latch(daemon: &Daemon, words: &str) -> String {
    eventually(&format!("the latch with {words:?}"), async || {
        let stream = UnixStream::connect(daemon.path("metrics"));
        let stream = stream.await.map_err(|error| error.to_string())?;
        let mut connection = Connection::over(stream).await.host("localhost");
        let answer: Value = connection.get("/readyz?verbose").await.json();
        let latches = answer["latches"].as_array().unwrap();
        let latch = latches.iter().find(|latch| latch["name"] == "funnel");
        let Some(latch) = latch else {
            return Err(format!("{answer}\n{}", daemon.log()));
        };
        assert_eq!(latch["ready"], true, "the server serves on: {answer}");
        let reason = latch["reason"].as_str().unwrap();
        if reason.contains(words) && reason.is_empty() == words.is_empty() {
            return Ok(reason.to_owned());
        }
        Err(format!("{reason}\n{}", daemon.log()))
    })
    .await
}

/// What `doctor` thinks of Funnel.
fn funnel_allowed(daemon: &Daemon) -> String {
    let check = daemon.examined(&["--listen", "funnel://:443"], "funnel-allowed");
    check["verdict"].as_str().unwrap().to_owned()
}

/// What listens on TCP ports of this machine, by the process.
fn tcp_listeners(process: u32) -> Vec<String> {
    const LISTEN: &str = "0A";
    let sockets: Vec<_> = fs::read_dir(format!("/proc/{process}/fd"))
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
        .map(|to| to.to_string_lossy().into_owned())
        .collect();
    ["tcp", "tcp6"]
        .iter()
        .flat_map(|table| {
            let table = fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap();
            table.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .filter(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.get(3) == Some(&LISTEN) && sockets.contains(&format!("socket:[{}]", words[9]))
        })
        .collect()
}

/// The answer to a request for the PeerAPI, from a peer on the tailnet.
async fn ask_peer_api(peer: &EmbeddedNode, request: &str) -> String {
    let mut stream = dial(peer, "public:1").await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    soon("the end of an answer", read).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Adds every header by which somebody could claim to be this node, or to come from elsewhere.
pub(super) fn claim_everything(request: &mut Request<Full<Bytes>>, who: &EmbeddedNode) {
    let addresses = who.watch().borrow().addresses.clone();
    let ingress = [
        format!("Tailscale-Ingress-Src: {}:1", addresses[0]),
        format!("Tailscale-Ingress-Target: {NAME}:80"),
    ];
    let lines = spoof::tricks(&addresses).into_iter().flatten();
    for line in lines.chain(ingress) {
        let (name, value) = line.split_once(": ").unwrap();
        if name != "Connection" {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
    }
}

#[test]
fn verifiers_on_the_internet_read_the_keys_and_nothing_else() {
    alone(async {
        let edge = Edge::with_authority();
        let mut daemon = edge.start("tailnet://:80,funnel://:443").await;
        daemon.listening(3).await;
        daemon.logs("this listener is on the internet").await;
        daemon.ready();
        latch(&daemon, "").await;

        let keys = edge.get("/.well-known/jwks.json").await;
        assert_eq!(keys.status(), 200, "{}", daemon.log());
        assert_eq!(keys.json()["keys"].as_array().unwrap().len(), 1);
        let mut internet = edge.connection(9, 443).await;
        let head = request("HEAD", "/.well-known/jwks.json");
        assert_eq!(internet.send(head).await.status(), 200);
        assert_eq!(internet.post("/.well-known/jwks.json").await.status(), 405);

        let alice = users_node(&edge.devnet, edge.folder(), "alice").await;
        // Whatever the caller says of themselves, there is nothing else.
        for path in ["/issue", "/_healthz", "/livez", "/readyz", "/", "/metrics"] {
            for method in ["GET", "POST"] {
                let mut asked = request(method, path);
                claim_everything(&mut asked, &alice);
                let answer = internet.send(asked).await;
                assert_eq!(
                    answer.refusal(),
                    (404, "not_found".to_owned()),
                    "{method} {path}"
                );
            }
        }
        assert_eq!(internet.get("/.well-known/jwks.json").await.status(), 200);

        // On the tailnet, the same program knows its callers, whatever they say.
        let mut tailnet = Connection::over(dial(&alice, "public:80").await)
            .await
            .host("public");
        assert_eq!(tailnet.post("/issue").await.status(), 200);
        for target in [NAME, "public"] {
            let asked = format!(
                "POST /v0/ingress HTTP/1.1\r\nHost: peer\r\nTailscale-Ingress-Src: 203.0.113.7:1\r\n\
                 Tailscale-Ingress-Target: {target}:443\r\n\r\n"
            );
            let refused = ask_peer_api(&alice, &asked).await;
            assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
        }

        // Nothing listens on the machine. (A program that does would be seen.)
        let _seen = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(tcp_listeners(std::process::id()).len(), 1);
        assert_eq!(tcp_listeners(daemon.child.id()), Vec::<String>::new());

        let shown = String::from_utf8(daemon.run(&["status"]).stdout).unwrap();
        assert!(shown.contains("funnel:443"), "{shown}");

        // The certificate was ordered once, by a record in the DNS.
        assert_eq!(edge.devnet.acme_counts().await.orders, 1);
        assert!(edge.announced().await);
        assert!(daemon.stop().success(), "{}", daemon.log());
        assert!(!edge.announced().await, "it is still announced");
        alice.close().await;
    });
}

#[test]
fn a_listener_of_funnel_follows_the_tailnets_policy() {
    alone(async {
        let edge = Edge::new();
        let without = json!({"https": false, "funnel": false, "funnel_ports": ""});
        edge.devnet.configure(without).await;
        // With the certificate of the node's name, which it keeps from an earlier run.
        edge.pair.keep(&edge.folder().join(".tsnet"), NAME);
        let mut daemon = edge.start("funnel://:443").await;
        daemon.listening(2).await;
        daemon.ready();
        latch(
            &daemon,
            "port 443 of Funnel waits: HTTPS is not enabled in the tailnet",
        )
        .await;
        for (allowed, words) in [
            (
                json!({"https": true}),
                "\"nodeAttrs\": [{\"target\": [\"autogroup:member\"], \"attr\": [\"funnel\"]}]",
            ),
            (
                json!({"funnel": true}),
                "port 443 is not allowed for funnel",
            ),
            (json!({"funnel_ports": "8443"}), "allowed ports are: 8443"),
            (json!({"funnel_ports": "443,8443,10000"}), ""),
        ] {
            assert_eq!(funnel_allowed(&daemon), "fail", "{}", daemon.log());
            edge.devnet.configure(allowed).await;
            latch(&daemon, words).await;
        }
        assert_eq!(funnel_allowed(&daemon), "ok", "{}", daemon.log());
        assert_eq!(edge.get("/.well-known/jwks.json").await.status(), 200);

        // What is withdrawn comes back by itself, and the log has one line for each change.
        for (allowed, words) in [(false, "nodeAttrs"), (true, "")] {
            edge.devnet.configure(json!({ "funnel": allowed })).await;
            let reason = latch(&daemon, words).await;
            let shown = String::from_utf8(daemon.run(&["status"]).stdout).unwrap();
            let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(shown.contains(&reason), "{reason}: {shown}");
        }
        assert_eq!(edge.get("/.well-known/jwks.json").await.status(), 200);
        let log = daemon.log();
        assert_eq!(
            log.matches("cannot listen on Funnel yet").count(),
            5,
            "{log}"
        );
        assert_eq!(
            log.matches("listening on Funnel, which is allowed now")
                .count(),
            2,
            "{log}"
        );
        assert!(daemon.stop().success(), "{log}");
    });
}

const RULES: &str = "[[rule]]\ndecision = \"anonymous\"\nwho = [\"funnel\"]\npaths = [\"/open\"]\n[[rule]]\ndecision = \"allow\"\n";

const POLICY: &str = "issuer = \"http://127.0.0.1:1\"\njwks_url = \"http://127.0.0.1:1/jwks\"\nalgorithm = \"RS256\"\nsubject = \"ci\"\naudience = \"any\"\nallowed_scopes = [\"acls\"]\n";

#[test]
fn gate_and_exchange_are_on_the_internet_where_the_settings_say_so() {
    alone(async {
        let edge = Edge::new();
        let backend = Backend::start().await;
        fs::write(edge.folder().join("rules.toml"), RULES).unwrap();
        fs::create_dir(edge.folder().join("policies")).unwrap();
        fs::write(edge.folder().join("policies/ci.toml"), POLICY).unwrap();
        let files = edge.files();
        let flags = [
            "--components",
            "gate,sts,metrics",
            "--gate-listen",
            &format!("funnel://:443?{files}"),
            "--gate-upstream",
            &format!("http://{}", backend.addr),
            "--gate-policy",
            "rules.toml",
            "--sts-listen",
            &format!("funnel://:8443?{files}"),
            "--sts-client-id",
            "id",
            "--sts-client-secret",
            "secret",
        ];
        let mut daemon = edge.start_with(&flags).await;
        daemon.listening(3).await;

        // The rules of the gate say what callers without an identity may do, whatever they claim.
        let alice = users_node(&edge.devnet, edge.folder(), "alice").await;
        let mut internet = edge.connection(9, 443).await;
        let mut asked = request("GET", "/open");
        claim_everything(&mut asked, &alice);
        let open = internet.send(asked).await;
        assert_eq!(open.status(), 200, "{}", daemon.log());
        let received = open.json()["headers"].clone();
        let received = received.as_array().unwrap();
        assert!(
            received.contains(&json!(["tailscale-funnel-request", "?1"])),
            "{received:?}"
        );
        let about_users = |header: &&Value| header[0].as_str().unwrap().contains("tailscale-user");
        assert_eq!(received.iter().find(about_users), None);
        let mut asked = request("GET", "/private");
        claim_everything(&mut asked, &alice);
        assert_eq!(internet.send(asked).await.status(), 403);

        // The exchange looks at the token alone.
        let mut ci = edge.connection(9, 8443).await;
        let answer = ci.post("/").await;
        assert_eq!(answer.status(), 401, "{}", daemon.log());
        let log = daemon.log();
        assert!(
            log.contains("127.0.0.9:"),
            "the audit line has no address: {log}"
        );
        assert!(
            edge.call(9, 10000).await.is_err(),
            "nobody asked for this port"
        );
        alice.close().await;
    });
}

#[test]
fn callers_on_the_internet_are_limited_by_their_address() {
    alone(async {
        let edge = Edge::new();
        let listen = format!("funnel://:443?{}", edge.files());
        let flags = [
            "--components",
            "issuer,metrics",
            "--listen",
            &listen,
            "--limit-connections-per-peer",
            "2",
            "--limit-request-rate",
            "1",
            "--limit-request-burst",
            "3",
        ];
        let mut daemon = edge.start_with(&flags).await;
        daemon.listening(2).await;
        let mut first = edge.connection(9, 443).await;
        let mut limited = false;
        for _ in 0..100 {
            limited |= first.get("/.well-known/jwks.json").await.status() == 429;
        }
        assert!(limited, "{}", daemon.log());
        let _second = edge.connection(9, 443).await;
        let mut third = edge.call(9, 443).await.unwrap();
        let mut answer = [0; 12];
        let read = soon("an answer", third.read_exact(&mut answer)).await;
        assert_eq!((read.unwrap(), &answer), (12, b"HTTP/1.1 503"));
        // Somebody else is none of them.
        let mut other = edge.connection(10, 443).await;
        assert_eq!(other.get("/.well-known/jwks.json").await.status(), 200);
    });
}
