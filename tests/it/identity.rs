//! The identities of all connections together: how often the node is asked, to whom a connection
//! belongs, and when it ends.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use futures_util::future::{BoxFuture, join_all};
use jiff::{SignedDuration, Timestamp};
use tailbone::{
    http::{
        layers,
        serve::{Limits, Standing, serve},
    },
    identity::{Caller, Directory, Refusal, TailnetListener},
    tailnet::{
        Error, ListenAddr, Listener, Node, Peer, Status, Stream, Via, WhoIs,
        fake::{FakeNode, FakeTailnet, Identity},
    },
};
use testkit::soon;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Semaphore, watch},
};

/// A fake node that counts WhoIs calls, can hold answers back, and can give an address to another
/// node.
#[derive(Debug)]
struct Asked {
    node: FakeNode,
    times: AtomicUsize,
    answers: Semaphore,
    fails: AtomicBool,
    given_away: AtomicBool,
    /// Opens every port, whatever the fake tailnet says.
    open: AtomicBool,
}

impl Asked {
    fn times(&self) -> usize {
        self.times.load(Ordering::SeqCst)
    }

    /// Starts a new generation without any change.
    fn move_map(&self) {
        self.node.set_status(|_| {});
    }
}

impl Node for Asked {
    fn generation(&self) -> u64 {
        self.node.generation()
    }

    fn watch(&self) -> watch::Receiver<Arc<Status>> {
        self.node.watch()
    }

    fn whois(&self, peer: SocketAddr) -> BoxFuture<'_, Result<WhoIs, Error>> {
        self.times.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let _turn = self.answers.acquire().await.unwrap();
            if self.fails.load(Ordering::SeqCst) {
                return Err(Error::Internal("on purpose".into()));
            }
            let mut whois = self.node.whois(peer).await?;
            if self.given_away.load(Ordering::SeqCst) {
                whois.node.id = "nOTHERCNTRL".into();
            }
            Ok(whois)
        })
    }

    fn whois_at(&self, peer: SocketAddr, local: SocketAddr) -> BoxFuture<'_, Result<WhoIs, Error>> {
        let whois = self.whois(peer);
        Box::pin(async move {
            let whois = whois.await?;
            if !self.open.load(Ordering::SeqCst) {
                self.node.whois_at(peer, local).await?;
            }
            Ok(whois)
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

struct World {
    net: FakeTailnet,
    node: Arc<Asked>,
    directory: Directory,
    alice: FakeNode,
}

impl World {
    fn new() -> Self {
        let net = FakeTailnet::new();
        let alice = net.join("laptop", Identity::user("alice@example.com"));
        let node = Arc::new(Asked {
            node: net.join("tailbone", Identity::user("owner@example.com")),
            times: AtomicUsize::new(0),
            answers: Semaphore::new(Semaphore::MAX_PERMITS),
            fails: AtomicBool::new(false),
            given_away: AtomicBool::new(false),
            open: AtomicBool::new(false),
        });
        Self {
            net,
            directory: Directory::new(node.clone()),
            node,
            alice,
        }
    }

    /// A connection of Alice's to a port of ours, from a given port.
    fn peer(&self, from: u16, to: u16) -> Peer {
        Peer {
            addr: SocketAddr::new(self.alice.ip(), from),
            local: SocketAddr::new(self.node.node.ip(), to),
            via: Via::Tailnet,
        }
    }

    async fn serve(&self, port: u16) -> tailbone::http::serve::Server {
        let endless = || async {
            let first = futures_util::stream::iter([Ok::<_, std::io::Error>("first")]);
            Body::from_stream(futures_util::StreamExt::chain(
                first,
                futures_util::stream::pending(),
            ))
        };
        let routes = Router::new()
            .route("/", get(|caller: Caller| async move { caller.to_string() }))
            .route("/endless", get(endless));
        let listener = self.node.listen(ListenAddr::Port(port)).await.unwrap();
        let directory = self.directory.clone();
        serve(
            "test",
            TailnetListener(listener),
            layers::wrap_streaming(routes, "test"),
            Limits::default(),
            move |peer| directory.identify(peer),
        )
    }

    /// A connection on which a request was sent and the answer has begun with `until`.
    async fn asked(&self, port: u16, path: &str, until: &str) -> Stream {
        let to = format!("tailbone:{port}");
        let mut stream = self.alice.dial(&to, Duration::from_secs(5)).await.unwrap();
        ask(&mut stream, path, until).await;
        stream
    }
}

async fn ask(stream: &mut Stream, path: &str, until: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: tailbone\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    while !text.contains(until) {
        let mut bytes = [0; 1024];
        let read = soon("an answer", stream.read(&mut bytes)).await.unwrap();
        assert_ne!(read, 0, "ended after {text:?}");
        text.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
}

/// Ends with no request on it and without the end of a running answer.
async fn ends(what: &str, stream: &mut Stream) {
    let mut rest = Vec::new();
    // A reset counts as an end.
    let _ = soon(what, stream.read_to_end(&mut rest)).await;
    assert_eq!(String::from_utf8_lossy(&rest), "", "{what}");
}

#[tokio::test]
async fn a_new_connection_asks_nobody_while_the_network_map_stands() {
    let world = World::new();
    for from in 1..=100 {
        let connection = world.directory.connection(world.peer(from, 80));
        assert_eq!(
            connection.caller().await.unwrap().to_string(),
            "user:alice@example.com"
        );
    }
    assert_eq!(world.node.times(), 1);
    // No connection holds the entry, so the new generation alone causes no WhoIs call.
    world.node.move_map();
    for from in 101..=200 {
        world
            .directory
            .connection(world.peer(from, 80))
            .caller()
            .await
            .unwrap();
    }
    assert_eq!(world.node.times(), 2);
    // For another port of ours the packet filter must be asked again.
    world
        .directory
        .connection(world.peer(201, 81))
        .caller()
        .await
        .unwrap();
    assert_eq!(world.node.times(), 3);
}

#[tokio::test]
async fn callers_that_come_at_the_same_time_share_one_question() {
    let world = World::new();
    world.node.answers.forget_permits(Semaphore::MAX_PERMITS);
    let connections: Vec<_> = (1..=50)
        .map(|from| world.directory.connection(world.peer(from, 80)))
        .collect();
    let all = join_all(connections.iter().map(|connection| connection.caller()));
    let release = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(world.node.times(), 1);
        world.node.answers.add_permits(1);
    };
    let (callers, ()) = tokio::join!(all, release);
    assert!(callers.iter().all(Result::is_ok), "{callers:?}");
    assert_eq!(world.node.times(), 1);
}

#[tokio::test]
async fn a_question_whose_asker_goes_away_is_asked_by_the_next_in_line() {
    let world = World::new();
    world.node.answers.forget_permits(Semaphore::MAX_PERMITS);
    let first = world.directory.connection(world.peer(1, 80));
    let second = world.directory.connection(world.peer(2, 80));
    let mut going = Box::pin(first.caller());
    let mut waiting = Box::pin(second.caller());
    assert!(futures_util::poll!(&mut going).is_pending());
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(going);
    world.node.answers.add_permits(1);
    assert!(soon("the second", waiting).await.is_ok());
}

#[tokio::test]
async fn that_the_node_could_not_answer_is_not_kept() {
    let world = World::new();
    let connection = world.directory.connection(world.peer(1, 80));
    world.node.fails.store(true, Ordering::SeqCst);
    let refusal = connection.caller().await.unwrap_err();
    assert_eq!(refusal.code(), "whois_failed");
    world.node.fails.store(false, Ordering::SeqCst);
    assert!(connection.caller().await.is_ok());
}

#[tokio::test]
async fn an_identity_ends_with_the_key_of_its_node_to_the_tenth_of_a_second() {
    let world = World::new();
    let expiry: Timestamp = "2040-01-01T00:00:00Z".parse().unwrap();
    world
        .net
        .update("laptop", |identity| identity.key_expiry = Some(expiry));
    let connection = world.directory.connection(world.peer(1, 80));
    let tenth = SignedDuration::from_millis(100);
    let before = expiry.checked_sub(tenth).unwrap();
    let after = expiry.checked_add(tenth).unwrap();
    assert!(connection.visitor_at(before).await.is_ok());
    // The connection has been used before: there is no WhoIs call, and the node has reported
    // nothing new.
    for late in [expiry, after] {
        let refusal = connection.visitor_at(late).await.unwrap_err();
        assert!(
            matches!(&refusal, Refusal::NodeExpired { node } if node.starts_with("laptop.")),
            "{refusal:?}"
        );
    }
    assert_eq!(world.node.times(), 1);
    // An extended key makes a new generation, and the same connection continues.
    world
        .net
        .update("laptop", |identity| identity.key_expiry = None);
    assert!(connection.visitor_at(after).await.is_ok());
}

#[tokio::test]
async fn a_connection_whose_address_becomes_another_nodes_ends() {
    let world = World::new();
    let _server = world.serve(80).await;
    let mut idle = world.asked(80, "/", "user:alice@example.com").await;
    let mut stream = world.asked(80, "/endless", "first").await;
    let connection = world.directory.connection(world.peer(1, 80));

    world.node.given_away.store(true, Ordering::SeqCst);
    world.node.move_map();
    let refusal = connection.caller().await.unwrap_err();
    assert_eq!(refusal.code(), "other_node");
    ends("the idle connection", &mut idle).await;
    ends("the stream", &mut stream).await;
    // A new connection belongs to the other node.
    world.asked(80, "/", "user:alice@example.com").await;
}

#[tokio::test]
async fn connections_end_when_their_port_is_closed_to_their_peer() {
    let world = World::new();
    let _servers = [world.serve(80).await, world.serve(81).await];
    let to = |port: u16| format!("tailbone:{port}");
    let mut silent = world
        .alice
        .dial(&to(80), Duration::from_secs(5))
        .await
        .unwrap();
    let mut idle = world.asked(80, "/", "user:alice@example.com").await;
    let mut stream = world.asked(80, "/endless", "first").await;
    let mut other = world.asked(81, "/", "user:alice@example.com").await;
    let bob = world.net.join("phone", Identity::user("bob@example.com"));
    let mut bobs = bob.dial(&to(80), Duration::from_secs(5)).await.unwrap();
    ask(&mut bobs, "/", "user:bob@example.com").await;

    world
        .net
        .update("laptop", |identity| identity.closed_ports = vec![80]);
    ends("a connection without a request yet", &mut silent).await;
    ends("the idle connection", &mut idle).await;
    ends("the stream", &mut stream).await;
    ask(&mut other, "/", "user:alice@example.com").await;
    ask(&mut bobs, "/", "user:bob@example.com").await;

    let connection = world.directory.connection(world.peer(1, 80));
    let refusal = connection.caller().await.unwrap_err();
    assert_eq!(refusal.code(), "no_network_access");
    // After the right is given back, a new connection is served.
    world
        .net
        .update("laptop", |identity| identity.closed_ports.clear());
    world.asked(80, "/", "user:alice@example.com").await;
}

/// The packet filter admits a peer shortly before the generation changes.
#[tokio::test]
async fn a_new_connection_does_not_end_by_an_answer_from_before() {
    let world = World::new();
    world
        .net
        .update("laptop", |identity| identity.closed_ports = vec![80]);
    let before = world.directory.connection(world.peer(1, 80));
    let refusal = before.caller().await.unwrap_err();
    assert_eq!(refusal.code(), "no_network_access");
    world.node.open.store(true, Ordering::SeqCst);
    let after = world.directory.connection(world.peer(2, 80));
    assert!(after.caller().await.is_ok());
    assert_eq!(soon("the end", before.lost()).await, "no_network_access");
    assert!(futures_util::poll!(after.lost()).is_pending());
}

/// The refresh after a new generation is repeated if the node could not answer.
#[tokio::test]
async fn a_connection_ends_also_if_the_node_could_not_answer_at_once() {
    let world = World::new();
    let connection = world.directory.connection(world.peer(1, 80));
    connection.caller().await.unwrap();
    world.node.fails.store(true, Ordering::SeqCst);
    world
        .net
        .update("laptop", |identity| identity.closed_ports = vec![80]);
    while world.node.times() < 2 {
        tokio::task::yield_now().await;
    }
    world.node.fails.store(false, Ordering::SeqCst);
    assert_eq!(
        soon("the end", connection.lost()).await,
        "no_network_access"
    );
}

#[tokio::test]
async fn the_table_is_bounded_and_forgets_who_is_gone() {
    let world = World::new();
    let held = world.directory.connection(world.peer(1, 80));
    held.caller().await.unwrap();
    for number in 0..20_000u32 {
        let [_, a, b, c] = number.to_be_bytes();
        let refusal = world
            .directory
            .visitor(std::net::Ipv4Addr::new(100, 100 + a, b, c).into())
            .await
            .unwrap_err();
        assert_eq!(refusal.code(), "unknown_peer");
    }
    assert!(
        world.directory.len() <= 8192,
        "{} entries",
        world.directory.len()
    );
    let asked = world.node.times();
    held.caller().await.unwrap();
    assert_eq!(
        world.node.times(),
        asked,
        "who is connected is not forgotten"
    );
    world.node.move_map();
    soon("the others to be forgotten", async {
        while world.directory.len() > 1 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Every answer was true at some time between its request and its end, whatever changes meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connections_while_identities_change_are_never_mixed_up() {
    const PEERS: usize = 4;
    const EACH: usize = 2_500;
    let world = Arc::new(World::new());
    let _server = world.serve(80).await;
    let login = |peer: usize, version: usize| format!("v{version}.peer-{peer}@example.com");
    let peers: Vec<_> = (0..PEERS)
        .map(|peer| {
            world
                .net
                .join(&format!("peer-{peer}"), Identity::user(&login(peer, 0)))
        })
        .collect();
    // The version that is surely active, and the one that may be active already.
    let versions: Arc<Vec<[AtomicUsize; 2]>> =
        Arc::new((0..PEERS).map(|_| Default::default()).collect());
    let changing = {
        let (world, versions) = (world.clone(), versions.clone());
        tokio::spawn(async move {
            for version in 1.. {
                for (peer, [sure, maybe]) in versions.iter().enumerate() {
                    maybe.store(version, Ordering::SeqCst);
                    world.net.update(&format!("peer-{peer}"), |identity| {
                        identity.login = login(peer, version)
                    });
                    sure.store(version, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            }
        })
    };
    let mixed_up = join_all(peers.into_iter().enumerate().map(|(number, peer)| {
        let versions = versions.clone();
        tokio::spawn(async move {
            let [sure, maybe] = &versions[number];
            let mut mixed_up = Vec::new();
            for _ in 0..EACH {
                let mut stream = peer
                    .dial("tailbone:80", Duration::from_secs(30))
                    .await
                    .unwrap();
                let from = sure.load(Ordering::SeqCst);
                stream
                    .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    .await
                    .unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                let to = maybe.load(Ordering::SeqCst);
                let said = answer.rsplit("user:v").next().unwrap_or_default();
                let (version, rest) = said.split_once('.').unwrap_or_default();
                let right = rest == format!("peer-{number}@example.com")
                    && version
                        .parse()
                        .is_ok_and(|version: usize| (from..=to).contains(&version));
                if !right {
                    mixed_up.push(format!("{number}, {from} to {to}: {answer}"));
                }
            }
            mixed_up
        })
    }))
    .await;
    changing.abort();
    let mixed_up: Vec<_> = mixed_up.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(mixed_up.len(), 0, "{:?}", mixed_up.first());
    assert!(
        versions[0][0].load(Ordering::SeqCst) > 10,
        "identities hardly changed"
    );
}
