//! The identities of all connections together: how often the node is asked, to whom a connection
//! belongs, and when it ends.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, routing::get};
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use tailbone::{
    http::{
        layers,
        serve::{Revocable, Server},
    },
    identity::{Connection, Refusal},
    tailnet::{
        Node, Peer, Stream, Via, WhoIs,
        fake::{FakeNode, Identity},
    },
};
use testkit::{
    faulty_node::Fault,
    http::dial,
    soon,
    world::{World, caller_routes},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A world with a node of Alice's, `laptop`.
struct IdentityServer {
    world: World,
    alice: FakeNode,
}

impl IdentityServer {
    fn new() -> Self {
        let world = World::new();
        let alice = world.join("laptop", Identity::user("alice@example.com"));
        Self { world, alice }
    }

    /// A connection of Alice's to a port of ours, from a given port.
    fn connection(&self, from: u16, to: u16) -> Arc<Connection> {
        self.world.directory.connection(Peer {
            addr: SocketAddr::new(self.alice.ip(), from),
            local: SocketAddr::new(self.world.node.ip(), to),
            via: Via::Tailnet,
        })
    }

    /// Opens or closes ports of ours to Alice.
    fn close_ports(&self, ports: &[u16]) {
        let closed = |identity: &mut Identity| identity.closed_ports = ports.to_vec();
        assert!(self.world.tailnet.update("laptop", closed));
    }

    async fn serve(&self, port: u16) -> Server {
        let endless = || async {
            let first = futures_util::stream::iter([Ok::<_, std::io::Error>("first")]);
            Body::from_stream(futures_util::StreamExt::chain(
                first,
                futures_util::stream::pending(),
            ))
        };
        let routes = caller_routes().route("/endless", get(endless));
        let routes = layers::wrap_streaming(routes, "test");
        self.world.serve(port, routes).await
    }

    /// A connection on which a request was sent and the answer has begun with `until`.
    async fn asked(&self, port: u16, path: &str, until: &str) -> Stream {
        let mut stream = dial(&self.alice, &format!("tailbone:{port}")).await;
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
async fn a_new_connection_makes_no_whois_call_while_the_network_map_stands() {
    let server = IdentityServer::new();
    for from in 1..=100 {
        let connection = server.connection(from, 80);
        assert_eq!(
            connection.caller().await.unwrap().to_string(),
            "user:alice@example.com"
        );
    }
    assert_eq!(server.world.faulty.asked(), 1);
    // No connection holds the entry, so the new generation alone causes no WhoIs call.
    server.world.faulty.new_generation();
    for from in 101..=200 {
        server.connection(from, 80).caller().await.unwrap();
    }
    assert_eq!(server.world.faulty.asked(), 2);
    // For another port of ours the packet filter must be asked again.
    server.connection(201, 81).caller().await.unwrap();
    assert_eq!(server.world.faulty.asked(), 3);
}

#[tokio::test]
async fn concurrent_callers_share_one_whois_call() {
    let server = IdentityServer::new();
    server.world.faulty.hold_answers();
    let connections: Vec<_> = (1..=50).map(|from| server.connection(from, 80)).collect();
    let all = join_all(connections.iter().map(|connection| connection.caller()));
    let release = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(server.world.faulty.asked(), 1);
        server.world.faulty.answer_one();
    };
    let (callers, ()) = tokio::join!(all, release);
    assert!(callers.iter().all(Result::is_ok), "{callers:?}");
    assert_eq!(server.world.faulty.asked(), 1);
}

#[tokio::test]
async fn a_whois_call_whose_request_goes_away_is_made_by_the_next() {
    let server = IdentityServer::new();
    server.world.faulty.hold_answers();
    let first = server.connection(1, 80);
    let second = server.connection(2, 80);
    let mut going = Box::pin(first.caller());
    let mut waiting = Box::pin(second.caller());
    assert!(futures_util::poll!(&mut going).is_pending());
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(going);
    server.world.faulty.answer_one();
    assert!(soon("the second", waiting).await.is_ok());
}

#[tokio::test]
async fn a_failed_whois_call_is_not_kept() {
    let server = IdentityServer::new();
    let connection = server.connection(1, 80);
    server.world.faulty.set_fault(Fault::Fails);
    let refusal = connection.caller().await.unwrap_err();
    assert_eq!(refusal.code(), "whois_failed");
    server.world.faulty.set_fault(Fault::None);
    assert!(connection.caller().await.is_ok());
}

#[tokio::test]
async fn an_identity_ends_with_the_key_of_its_node_to_the_tenth_of_a_second() {
    let server = IdentityServer::new();
    let expiry: Timestamp = "2040-01-01T00:00:00Z".parse().unwrap();
    server
        .world
        .tailnet
        .update("laptop", |identity| identity.key_expiry = Some(expiry));
    let connection = server.connection(1, 80);
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
    assert_eq!(server.world.faulty.asked(), 1);
    // An extended key makes a new generation, and the same connection continues.
    server
        .world
        .tailnet
        .update("laptop", |identity| identity.key_expiry = None);
    assert!(connection.visitor_at(after).await.is_ok());
}

#[tokio::test]
async fn a_connection_whose_address_becomes_another_nodes_ends() {
    let server = IdentityServer::new();
    let _server = server.serve(80).await;
    let mut idle = server.asked(80, "/", "user:alice@example.com").await;
    let mut stream = server.asked(80, "/endless", "first").await;
    let connection = server.connection(1, 80);

    let other = |whois: &mut WhoIs| whois.node.id = "nOTHERCNTRL".into();
    server.world.faulty.set_fault(Fault::changed(other));
    server.world.faulty.new_generation();
    let refusal = connection.caller().await.unwrap_err();
    assert_eq!(refusal.code(), "other_node");
    ends("the idle connection", &mut idle).await;
    ends("the stream", &mut stream).await;
    // A new connection belongs to the other node.
    server.asked(80, "/", "user:alice@example.com").await;
}

#[tokio::test]
async fn connections_end_when_their_port_is_closed_to_their_peer() {
    let server = IdentityServer::new();
    let _servers = [server.serve(80).await, server.serve(81).await];
    let to = |port: u16| format!("tailbone:{port}");
    let mut silent = dial(&server.alice, &to(80)).await;
    let mut idle = server.asked(80, "/", "user:alice@example.com").await;
    let mut stream = server.asked(80, "/endless", "first").await;
    let mut other = server.asked(81, "/", "user:alice@example.com").await;
    let bob = server
        .world
        .tailnet
        .join("phone", Identity::user("bob@example.com"));
    let mut bobs = dial(&bob, &to(80)).await;
    ask(&mut bobs, "/", "user:bob@example.com").await;

    server.close_ports(&[80]);
    ends("a connection without a request yet", &mut silent).await;
    ends("the idle connection", &mut idle).await;
    ends("the stream", &mut stream).await;
    ask(&mut other, "/", "user:alice@example.com").await;
    ask(&mut bobs, "/", "user:bob@example.com").await;

    let connection = server.connection(1, 80);
    let refusal = connection.caller().await.unwrap_err();
    assert_eq!(refusal.code(), "no_network_access");
    // After the right is given back, a new connection is served.
    server.close_ports(&[]);
    server.asked(80, "/", "user:alice@example.com").await;
}

/// The packet filter admits a peer shortly before the generation changes.
#[tokio::test]
async fn a_new_connection_does_not_end_by_an_older_answer() {
    let server = IdentityServer::new();
    server.close_ports(&[80]);
    let before = server.connection(1, 80);
    let refusal = before.caller().await.unwrap_err();
    assert_eq!(refusal.code(), "no_network_access");
    server.world.faulty.open_ports();
    let after = server.connection(2, 80);
    assert!(after.caller().await.is_ok());
    assert_eq!(soon("the end", before.revoked()).await, "no_network_access");
    assert!(futures_util::poll!(after.revoked()).is_pending());
}

/// The refresh after a new generation is repeated if the node could not answer.
#[tokio::test]
async fn a_connection_ends_even_if_the_node_could_not_answer_at_once() {
    let server = IdentityServer::new();
    let connection = server.connection(1, 80);
    connection.caller().await.unwrap();
    server.world.faulty.set_fault(Fault::Fails);
    server.close_ports(&[80]);
    while server.world.faulty.asked() < 2 {
        tokio::task::yield_now().await;
    }
    server.world.faulty.set_fault(Fault::None);
    assert_eq!(
        soon("the end", connection.revoked()).await,
        "no_network_access"
    );
}

#[tokio::test]
async fn the_table_is_bounded_and_forgets_who_is_gone() {
    let server = IdentityServer::new();
    let held = server.connection(1, 80);
    held.caller().await.unwrap();
    for number in 0..20_000u32 {
        let [_, a, b, c] = number.to_be_bytes();
        let refusal = server
            .world
            .directory
            .visitor(std::net::Ipv4Addr::new(100, 100 + a, b, c).into())
            .await
            .unwrap_err();
        assert_eq!(refusal.code(), "unknown_peer");
    }
    assert!(
        server.world.directory.len() <= 8192,
        "{} entries",
        server.world.directory.len()
    );
    let asked = server.world.faulty.asked();
    held.caller().await.unwrap();
    assert_eq!(
        server.world.faulty.asked(),
        asked,
        "who is connected is not forgotten"
    );
    server.world.faulty.new_generation();
    soon("the others to be forgotten", async {
        while server.world.directory.len() > 1 {
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
    let server = Arc::new(IdentityServer::new());
    let _server = server.serve(80).await;
    let login = |peer: usize, version: usize| format!("v{version}.peer-{peer}@example.com");
    let peers: Vec<_> = (0..PEERS)
        .map(|peer| {
            server
                .world
                .tailnet
                .join(&format!("peer-{peer}"), Identity::user(&login(peer, 0)))
        })
        .collect();
    // The version that is surely active, and the one that may be active already.
    let versions: Arc<Vec<[AtomicUsize; 2]>> =
        Arc::new((0..PEERS).map(|_| Default::default()).collect());
    let changing = {
        let (server, versions) = (server.clone(), versions.clone());
        tokio::spawn(async move {
            for version in 1.. {
                for (peer, [sure, maybe]) in versions.iter().enumerate() {
                    maybe.store(version, Ordering::SeqCst);
                    server
                        .world
                        .tailnet
                        .update(&format!("peer-{peer}"), |identity| {
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
