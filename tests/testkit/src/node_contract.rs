//! What every [`Node`] promises, as one list of tests. `node_contract!` makes them for one kind of
//! tailnet.
//!
//! Each function is a test. The tests see only the traits, so what passes on the fake also holds on
//! a real tailnet.

use std::{
    io::{self, ErrorKind, IoSlice},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, extract::ConnectInfo, routing::get};
use futures_util::future::join_all;
use jiff::SignedDuration;
use tailbone_identity::Directory;
use tailbone_tailnet::{
    BackendState, CLOSE_WITHIN, CertificateRefusal, Error, FunnelLack, ListenAddr, Listener, Node,
    Peer, Stream, Via,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::{
    eventually, patience, soon,
    tailnet::{Owner, Tailnet, generation_moves, running, status_becomes},
};

/// Makes a test of each function of this module, in a tailnet given by an expression.
#[macro_export]
macro_rules! node_contract {
    ($tailnet:expr) => {
        $crate::node_contract!(@each $tailnet;
            a_connection_comes_with_its_peer
            a_grant_is_told_with_the_peer
            a_listener_serves_axum
            a_port_is_taken_once_and_freed
            a_reset_is_seen
            a_slow_peer_blocks_nobody
            a_tagged_node_has_tags_and_no_login
            a_tailnet_without_https_has_no_certificate
            a_tailnet_without_https_has_no_funnel
            addresses_that_are_none_are_refused
            big_data_goes_both_ways
            close_ends_everything
            close_is_idempotent_and_bounded
            connections_of_many_peers_are_not_mixed_up
            dialling_what_is_not_there
            half_close_works_both_ways
            identity_changes_are_seen
            logging_out_leaves_the_tailnet
            the_last_owner_closes
            unknown_addresses_are_not_found
            vectored_writes_arrive_in_order
        );
    };
    (@each $tailnet:expr; $($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let tailnet = $tailnet;
                $crate::node_contract::$name(&tailnet).await;
                $crate::tailnet::Tailnet::end(tailnet).await;
            }
        )*
    };
}

const ALICE: Owner = Owner::User("alice@example.com");
const BOB: Owner = Owner::User("bob@example.com");
const ROBOT: Owner = Owner::Tag("tag:robot");

pub async fn a_connection_comes_with_its_peer(tailnet: &impl Tailnet) {
    let (server, caller) = pair(tailnet).await;
    let (server_is, caller_is) = (running(&*server).await, running(&*caller).await);
    let mut listener = server.listen(ListenAddr::Port(80)).await.unwrap();
    assert_eq!(listener.local_addr(), ListenAddr::Port(80));

    for host in [
        server_is.addresses[0].to_string(),
        server_is.hostname.clone(),
        server_is.name.clone(),
    ] {
        let (mut theirs, (mut ours, peer)) =
            connect(&*caller, &format!("{host}:80"), &mut listener).await;
        assert_eq!(peer.via, Via::Tailnet);
        assert!(
            caller_is.addresses.contains(&peer.addr.ip()),
            "{peer:?} is not {caller_is:?}"
        );
        assert_ne!(peer.addr.port(), 0);
        assert_eq!(peer.local.port(), 80);
        assert!(server_is.addresses.contains(&peer.local.ip()), "{peer:?}");

        let who = server.whois(peer.addr).await.unwrap();
        assert_eq!(who.user.login, tailnet.login("bob@example.com"));
        assert_eq!(who.user.id, who.node.user_id);
        assert_eq!(caller_is.owner_id, Some(who.user.id));
        assert_eq!(who.node.id, caller_is.id);
        assert_eq!(who.node.name, caller_is.name);
        assert_eq!(who.node.hostname, caller_is.hostname);
        assert!(who.node.addresses.contains(&peer.addr.ip()));
        assert!(who.node.tags.is_empty());
        assert!(!who.node.expired && !who.node.sharer && who.same_tailnet);

        theirs.write_all(b"ping").await.unwrap();
        assert_eq!(take(&mut ours, 4).await, b"ping");
        ours.write_all(b"pong").await.unwrap();
        assert_eq!(take(&mut theirs, 4).await, b"pong");
    }
}

pub async fn a_tailnet_without_https_has_no_certificate(tailnet: &impl Tailnet) {
    let server = tailnet.node("server", ALICE).await;
    let status = running(&*server).await;
    assert!(status.cert_domains.is_empty(), "{status:?}");
    let any = SignedDuration::ZERO;
    let refused = server.certificate(&status.name, any).await.unwrap_err();
    assert_eq!(refused.reason, CertificateRefusal::NoHttps, "{refused}");
    assert!(
        refused.message.contains("HTTPS is not enabled"),
        "{refused}"
    );
    server.close().await;
    let refused = server.certificate(&status.name, any).await.unwrap_err();
    assert_eq!(refused.reason, CertificateRefusal::NodeGone, "{refused}");
}

pub async fn a_tailnet_without_https_has_no_funnel(tailnet: &impl Tailnet) {
    let server = tailnet.node("server", ALICE).await;
    running(&*server).await;
    let refused = server.listen(ListenAddr::Funnel(443)).await.unwrap_err();
    let lack = FunnelLack::Https;
    assert!(
        matches!(&refused, Error::NoFunnel { lack: told, .. } if *told == lack),
        "{refused:?}"
    );
    let refused = server.listen(ListenAddr::Funnel(80)).await.unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)), "{refused:?}");
}

pub async fn a_tagged_node_has_tags_and_no_login(tailnet: &impl Tailnet) {
    let server = tailnet.node("server", ALICE).await;
    let robot = tailnet.node("robot", ROBOT).await;
    let robot_is = running(&*robot).await;
    assert_eq!(
        (robot_is.tags.as_slice(), robot_is.owner.as_str()),
        (&["tag:robot".to_owned()][..], "")
    );
    assert_eq!(robot_is.owner_id, None);
    let peer = SocketAddr::new(robot_is.addresses[0], 1);
    let who = eventually("the server knows the robot", || async {
        server.whois(peer).await.map_err(|e| e.to_string())
    })
    .await;
    assert_eq!(who.node.tags, ["tag:robot"]);
    assert_eq!(who.user.login, "tagged-devices");
}

pub async fn a_grant_is_told_with_the_peer(tailnet: &impl Tailnet) {
    let (server, caller) = pair(tailnet).await;
    let (server_is, caller_is) = (running(&*server).await, running(&*caller).await);
    let peer = SocketAddr::new(caller_is.addresses[0], 1);
    let cap = "example.com/cap/tailbone";
    let before = server.generation();
    assert!(!server.whois(peer).await.unwrap().caps.contains_key(cap));

    let value = serde_json::json!({ "roles": ["admin"], "n": 12_345_678_901_i64 });
    tailnet
        .grant(&caller_is, &server_is, cap, value.clone())
        .await;
    generation_moves(&*server, before).await;
    eventually("the grant is told", || async {
        let who = server.whois(peer).await.unwrap();
        let values = who.caps.get(cap).cloned().unwrap_or_default();
        (values == [value.clone()])
            .then_some(())
            .ok_or(format!("{:?}", who.caps))
    })
    .await;
}

pub async fn unknown_addresses_are_not_found(tailnet: &impl Tailnet) {
    let server = tailnet.node("server", ALICE).await;
    for addr in [
        "100.64.250.250:1",
        "192.0.2.1:80",
        "[2001:db8::1]:80",
        "127.0.0.1:22",
        "[::ffff:192.0.2.1]:1",
    ] {
        let unknown = server.whois(addr.parse().unwrap()).await;
        assert!(
            matches!(unknown, Err(Error::NotFound)),
            "{addr}: {unknown:?}"
        );
    }
    // The IPv4 address mapped into IPv6 is the same node.
    let own = running(&*server).await;
    let std::net::IpAddr::V4(own_ip) = own.addresses[0] else {
        panic!("{own:?}")
    };
    let mapped = SocketAddr::new(own_ip.to_ipv6_mapped().into(), 1);
    assert_eq!(server.whois(mapped).await.unwrap().node.id, own.id);
}

pub async fn addresses_that_are_none_are_refused(tailnet: &impl Tailnet) {
    let server = tailnet.node("server", ALICE).await;
    for addr in [
        ListenAddr::Port(0),
        ListenAddr::Addr("192.0.2.1".parse().unwrap(), 80),
        ListenAddr::Addr("127.0.0.1".parse().unwrap(), 80),
    ] {
        let refused = server.listen(addr).await;
        assert!(
            matches!(refused, Err(Error::Invalid(_))),
            "{addr}: {refused:?}"
        );
    }
    for addr in [
        "",
        "nonsense",
        ":80",
        "host:",
        "host:0",
        "host:70000",
        "a\0b:80",
    ] {
        let refused = server.dial(addr, patience()).await;
        assert!(
            matches!(refused, Err(Error::Invalid(_) | Error::Unreachable(_))),
            "{addr:?}: {refused:?}"
        );
    }
}

pub async fn dialling_what_is_not_there(tailnet: &impl Tailnet) {
    let (server, caller) = pair(tailnet).await;
    let ip = running(&*server).await.addresses[0];
    let refused = soon("dial", caller.dial(&format!("{ip}:81"), patience())).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    // An address and not a name: the machine's own resolver would be asked about a name that the
    // tailnet does not know.
    let unreachable = soon("dial", caller.dial("100.64.250.250:80", patience())).await;
    assert!(
        matches!(unreachable, Err(Error::Unreachable(_))),
        "{unreachable:?}"
    );
}

pub async fn a_port_is_taken_once_and_freed(tailnet: &impl Tailnet) {
    let (server, caller) = pair(tailnet).await;
    let ip = running(&*server).await.addresses[0];
    let listener = server.listen(ListenAddr::Port(80)).await.unwrap();
    let again = server.listen(ListenAddr::Port(80)).await;
    assert!(matches!(again, Err(Error::InUse(_))), "{again:?}");
    // Another port is free, and so is the same port on another node.
    let _other = server.listen(ListenAddr::Port(81)).await.unwrap();
    let _theirs = caller.listen(ListenAddr::Port(80)).await.unwrap();

    drop(listener);
    let mut listener = eventually("the port is free again", || async {
        server
            .listen(ListenAddr::Addr(ip, 80))
            .await
            .map_err(|e| e.to_string())
    })
    .await;
    connect(&*caller, &format!("{ip}:80"), &mut listener).await;
}

pub async fn half_close_works_both_ways(tailnet: &impl Tailnet) {
    let (server, caller) = pair(tailnet).await;
    let addr = at(&*server, 80).await;
    let mut listener = server.listen(ListenAddr::Port(80)).await.unwrap();

    for caller_first in [true, false] {
        let (theirs, (ours, _)) = connect(&*caller, &addr, &mut listener).await;
        let (mut first, mut second) = if caller_first {
            (theirs, ours)
        } else {
            (ours, theirs)
        };
        first.write_all(b"question").await.unwrap();
        first.shutdown().await.unwrap();
        assert_eq!(rest(&mut second).await.unwrap(), b"question");
        // The other direction stays open.
        tokio::time::sleep(Duration::from_millis(50)).await;
        second.write_all(b"an").await.unwrap();
        second.write_all(b"swer").await.unwrap();
        second.shutdown().await.unwrap();
        assert_eq!(rest(&mut first).await.unwrap(), b"answer");
    }
}

pub async fn vectored_writes_arrive_in_order(tailnet: &impl Tailnet) {
    let (server, caller) = pair(tailnet).await;
    let addr = at(&*server, 80).await;
    let mut listener = server.listen(ListenAddr::Port(80)).await.unwrap();
    let (mut theirs, (mut ours, _)) = connect(&*caller, &addr, &mut listener).await;
    assert!(tokio::io::AsyncWrite::is_write_vectored(&theirs));
    let parts: Vec<Vec<u8>> = (0..16_u8)
        .map(|i| vec![i; 1 + usize::from(i) * 100])
        .collect();
    let slices: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
    let whole = parts.concat();
    let sent = theirs.write_vectored(&slices).await.unwrap();
    assert!(sent > parts[0].len(), "only the first part was written");
    theirs.write_all(&whole[sent..]).await.unwrap();
    theirs.shutdown().await.unwrap();
    assert_eq!(rest(&mut ours).await.unwrap(), whole);
}

/// 64 MiB to an echo server and back, while both directions are full.
pub async fn big_data_goes_both_ways(tailnet: &impl Tailnet) {
    const SIZE: usize = 64 << 20;
    let (server, caller) = pair(tailnet).await;
    let addr = at(&*server, 80).await;
    let mut listener = server.listen(ListenAddr::Port(80)).await.unwrap();
    let (theirs, (ours, _)) = connect(&*caller, &addr, &mut listener).await;

    let echo = tokio::spawn(echo(ours));
    let (mut back, mut forth) = tokio::io::split(theirs);
    let sending = tokio::spawn(async move {
        let mut sum = Sum::default();
        let mut noise = Noise(1);
        let mut sent = 0;
        while sent < SIZE {
            let chunk = noise.bytes(64 << 10);
            forth.write_all(&chunk).await.unwrap();
            sum.add(&chunk);
            sent += chunk.len();
        }
        forth.shutdown().await.unwrap();
        sum
    });
    let began = Instant::now();
    let mut sum = Sum::default();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let n = soon("echo", back.read(&mut chunk)).await.unwrap();
        if n == 0 {
            break;
        }
        sum.add(&chunk[..n]);
    }
    let sent = sending.await.unwrap();
    eprintln!("64 MiB there and back in {:?}", began.elapsed());
    assert_eq!((sum.length, sum.hash), (SIZE, sent.hash));
    echo.await.unwrap().unwrap();
}

/// A peer that goes away in the middle is soon an error for reader and writer. Neither hangs or
/// sees an end that looks orderly.
pub async fn a_reset_is_seen(tailnet: &impl Tailnet) {
    let (server, caller) = pair(tailnet).await;
    let addr = at(&*server, 80).await;
    let mut listener = server.listen(ListenAddr::Port(80)).await.unwrap();

    let (mut theirs, (ours, _)) = connect(&*caller, &addr, &mut listener).await;
    let (mut from, mut to) = tokio::io::split(ours);
    let writing = tokio::spawn(async move {
        let chunk = vec![0; 64 << 10];
        loop {
            if let Err(error) = to.write_all(&chunk).await {
                return error;
            }
        }
    });
    let reading = tokio::spawn(async move { from.read(&mut [0; 8]).await });
    take(&mut theirs, 1 << 20).await;
    assert!(!reading.is_finished() && !writing.is_finished());
    // With unread bytes on the way: a reset by the rules of TCP.
    drop(theirs);
    let error = soon("the writer's end", writing).await.unwrap();
    assert!(
        matches!(
            error.kind(),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        ),
        "{error:?}"
    );
    // Between embedded nodes the peer's pump may have read everything before the close. The end
    // then looks orderly to the reader, as with a kernel's socket, and only the writer learns of
    // the reset. vendor/libtailscale tests that a reset on the wire is never an end
    // (TestSpliceResetIsNotAnEnd).
    let read = soon("the reader's end", reading).await.unwrap();
    assert!(matches!(&read, Ok(0)) || read.unwrap_err().kind() == ErrorKind::ConnectionReset);

    // If nothing is on the way, the reader sees an end or an error.
    let (theirs, (mut ours, _)) = connect(&*caller, &addr, &mut listener).await;
    drop(theirs);
    let read = soon("the reader's end", ours.read(&mut [0; 8])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");

    // The listener still works.
    let (mut theirs, (ours, _)) = connect(&*caller, &addr, &mut listener).await;
    let echo = tokio::spawn(echo(ours));
    theirs.write_all(b"fine").await.unwrap();
    assert_eq!(take(&mut theirs, 4).await, b"fine");
    drop(theirs);
    let _ = soon("echo", echo).await;
}

/// A peer that sends a byte now and then, and one that never reads, delay nobody else.
pub async fn a_slow_peer_blocks_nobody(tailnet: &impl Tailnet) {
    let (server, slow) = pair(tailnet).await;
    let quick = tailnet.node("quick", ROBOT).await;
    let addr = at(&*server, 80).await;
    let mut listener = server.listen(ListenAddr::Port(80)).await.unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                return;
            };
            tokio::spawn(echo(stream));
        }
    });
    let mut deaf = dial(&*slow, &addr).await;
    let flood = tokio::spawn(async move {
        // Fills every buffer in both directions, then waits.
        let _ =
            tokio::time::timeout(Duration::from_secs(3), deaf.write_all(&vec![1; 32 << 20])).await;
        deaf
    });
    let mut trickle = dial(&*slow, &addr).await;
    let trickling = tokio::spawn(async move {
        for byte in 0..10_u8 {
            trickle.write_all(&[byte]).await.unwrap();
            assert_eq!(take(&mut trickle, 1).await, [byte]);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut slowest = Duration::ZERO;
    while !trickling.is_finished() {
        let began = Instant::now();
        let mut stream = dial(&*quick, &addr).await;
        stream.write_all(b"quick").await.unwrap();
        assert_eq!(take(&mut stream, 5).await, b"quick");
        slowest = slowest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    trickling.await.unwrap();
    eprintln!("beside slow peers, the slowest answer took {slowest:?}");
    // Generous, as the machine may be busy. A blocked accept would take as long as the flood.
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    drop(flood.await.unwrap());
    server.close().await;
    soon("serving", serving).await.unwrap();
}

pub async fn connections_of_many_peers_are_not_mixed_up(tailnet: &impl Tailnet) {
    let server = tailnet.node("server", ALICE).await;
    let callers = [
        tailnet.node("caller-a", ALICE).await,
        tailnet.node("caller-b", BOB).await,
        tailnet.node("caller-c", ROBOT).await,
    ];
    let mixed_up = interleaved(&server, &callers, 300, 10).await;
    assert_eq!(mixed_up, 0);
}

pub async fn identity_changes_are_seen(tailnet: &impl Tailnet) {
    let (server, caller) = pair(tailnet).await;
    let caller_is = running(&*caller).await;
    let addr = at(&*server, 80).await;
    let mut listener = server.listen(ListenAddr::Port(80)).await.unwrap();
    // Kept open during the rest of the test.
    let (mut theirs, (mut ours, peer)) = connect(&*caller, &addr, &mut listener).await;

    let before = server.generation();
    tailnet.rename_login(&caller_is, "robert@example.com").await;
    let renamed = tailnet.login("robert@example.com");
    sees(&server, before, peer, "the new login", |who| {
        who.is_ok_and(|who| who.user.login == renamed)
    })
    .await;
    theirs.write_all(b"a").await.unwrap();
    assert_eq!(take(&mut ours, 1).await, b"a");

    let before = server.generation();
    tailnet
        .set_tags(&caller_is, &["tag:new", "tag:other"])
        .await;
    sees(&server, before, peer, "the tags", |who| {
        who.is_ok_and(|who| {
            who.node.tags == ["tag:new", "tag:other"] && who.user.login == "tagged-devices"
        })
    })
    .await;
    theirs.write_all(b"b").await.unwrap();
    assert_eq!(take(&mut ours, 1).await, b"b");

    let before = server.generation();
    tailnet.expire(&caller_is).await;
    sees(&server, before, peer, "the expiry", |who| {
        who.is_ok_and(|who| who.node.expired)
    })
    .await;

    let before = server.generation();
    tailnet.delete(&caller_is).await;
    sees(&server, before, peer, "that the node is gone", |who| {
        matches!(who, Err(Error::NotFound))
    })
    .await;
}

pub async fn a_listener_serves_axum(tailnet: &impl Tailnet) {
    let (server, caller) = pair(tailnet).await;
    let caller_is = running(&*caller).await;
    let addr = at(&*server, 80).await;
    let listener = server.listen(ListenAddr::Port(80)).await.unwrap();
    let app = Router::new().route(
        "/",
        get(|ConnectInfo(peer): ConnectInfo<Peer>| async move {
            format!("{} {:?}", peer.addr.ip(), peer.via)
        }),
    );
    let serving = tokio::spawn(async move {
        axum::serve(listener, app.into_make_service_with_connect_info::<Peer>()).await
    });
    let mut stream = dial(&*caller, &addr).await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let answer = String::from_utf8(rest(&mut stream).await.unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let expected = format!("{} Tailnet", caller_is.addresses[0]);
    assert!(answer.ends_with(&expected), "{answer}");
    serving.abort();
}

pub async fn close_is_idempotent_and_bounded(tailnet: &impl Tailnet) {
    let server = tailnet.node("server", ALICE).await;
    let began = Instant::now();
    join_all((0..5).map(|_| server.close())).await;
    server.close().await;
    assert!(began.elapsed() < CLOSE_WITHIN, "{:?}", began.elapsed());
}

pub async fn close_ends_everything(tailnet: &impl Tailnet) {
    let (server, caller) = pair(tailnet).await;
    let addr = at(&*server, 80).await;
    let mut listener = server.listen(ListenAddr::Port(80)).await.unwrap();
    let (mut theirs, (mut ours, peer)) = connect(&*caller, &addr, &mut listener).await;

    let generation = server.generation();
    let mut watch = server.watch();
    watch.mark_unchanged();
    let accepting = tokio::spawn(async move {
        let first = listener.accept().await.map(|_| ());
        (first, listener.accept().await.map(|_| ()))
    });
    let reading =
        tokio::spawn(async move { (ours.read(&mut [0; 8]).await, ours.write_all(b"x").await) });
    // Time for both to reach their wait.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let began = Instant::now();
    server.close().await;
    assert!(began.elapsed() < CLOSE_WITHIN, "{:?}", began.elapsed());

    let accepted = soon("accept", accepting).await.unwrap();
    assert!(
        matches!(accepted, (Err(Error::Closed), Err(Error::Closed))),
        "{accepted:?}"
    );
    let (read, written) = soon("read", reading).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(written.is_err());
    // The other end learns of it as well, by an end or an error.
    let _ = soon("the peer's read", theirs.read(&mut [0; 8])).await;

    assert!(watch.has_changed().unwrap());
    assert_eq!(watch.borrow().state, BackendState::Stopped);
    assert_ne!(server.generation(), generation);
    assert!(matches!(server.whois(peer.addr).await, Err(Error::Closed)));
    assert!(matches!(
        server.listen(ListenAddr::Port(80)).await,
        Err(Error::Closed)
    ));
    assert!(matches!(
        server.dial(&addr, patience()).await,
        Err(Error::Closed)
    ));
    assert!(matches!(
        server.logout(patience()).await,
        Err(Error::Closed)
    ));
}

pub async fn the_last_owner_closes(tailnet: &impl Tailnet) {
    let watch = {
        let (server, caller) = pair(tailnet).await;
        let watch = caller.watch();
        let addr = at(&*server, 80).await;
        let mut listener = server.listen(ListenAddr::Port(80)).await.unwrap();
        let (stream, _) = connect(&*caller, &addr, &mut listener).await;
        drop(caller);
        tailnet.forget();
        // A stream owns the node.
        assert_eq!(watch.borrow().state, BackendState::Running);
        drop(stream);
        watch
    };
    assert_eq!(watch.borrow().state, BackendState::Stopped);
}

pub async fn logging_out_leaves_the_tailnet(tailnet: &impl Tailnet) {
    let (server, caller) = pair(tailnet).await;
    let caller_is = running(&*caller).await;
    let peer = SocketAddr::new(caller_is.addresses[0], 1);
    let before = server.generation();
    assert!(server.whois(peer).await.is_ok());
    soon("logout", caller.logout(patience())).await.unwrap();
    status_becomes(&*caller, "logged out", |status| {
        status.state != BackendState::Running
    })
    .await;
    generation_moves(&*server, before).await;
    eventually("the server knows", || async {
        match server.whois(peer).await {
            Err(Error::NotFound) => Ok(()),
            Ok(who) if who.node.expired => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Makes `count` connections to `server`, from all callers at once. Each is answered with what the
/// program's table says about its peer. Returns how many callers got another answer than their own
/// identity.
pub async fn interleaved(
    server: &Arc<dyn Node>,
    callers: &[Arc<dyn Node>],
    count: usize,
    at_once: usize,
) -> usize {
    let addr = at(&**server, 8080).await;
    let mut listener = server.listen(ListenAddr::Port(8080)).await.unwrap();
    let answering = {
        let directory = Directory::new(Arc::clone(server));
        tokio::spawn(async move {
            loop {
                let Ok((mut stream, peer)) = listener.accept().await else {
                    return;
                };
                let connection = directory.connection(peer);
                tokio::spawn(async move {
                    let who = connection.visitor().await?;
                    let question = stream.read_u64().await?;
                    let answer = format!("{question} {} {}\n", who.node_id(), peer.addr.ip());
                    stream.write_all(answer.as_bytes()).await?;
                    // The caller closes first.
                    rest(&mut stream).await?;
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
                });
            }
        })
    };
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = (0..at_once).map(|_| async {
        let mut mixed_up = 0;
        loop {
            let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if number >= count {
                return mixed_up;
            }
            let caller = &callers[number % callers.len()];
            let is = Arc::clone(&caller.watch().borrow());
            let answer = async {
                let mut stream = BufReader::new(caller.dial(&addr, patience()).await?);
                stream.write_u64(number as u64).await?;
                let mut answer = String::new();
                stream.read_line(&mut answer).await?;
                // The caller closes first, as HTTP clients do. The other way has a test of its own
                // (`load::a_server_that_closes_first_answers_everybody`).
                stream.shutdown().await?;
                stream.read_to_end(&mut Vec::new()).await?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(answer)
            };
            let answer = soon("an answer", answer).await.unwrap();
            let ours = is
                .addresses
                .iter()
                .map(|ip| format!("{number} {} {ip}\n", is.id));
            if !ours.into_iter().any(|ours| ours == answer) {
                eprintln!("connection {number} of {is:?} was answered {answer:?}");
                mixed_up += 1;
            }
        }
    });
    let mixed_up = join_all(work).await.into_iter().sum();
    answering.abort();
    let _ = answering.await;
    mixed_up
}

async fn pair(tailnet: &impl Tailnet) -> (Arc<dyn Node>, Arc<dyn Node>) {
    let (server, caller) = tokio::join!(tailnet.node("server", ALICE), tailnet.node("caller", BOB));
    let ip = running(&*caller).await.addresses[0];
    // Both have joined; now each must learn about the other.
    eventually("the nodes know each other", || async {
        server
            .whois(SocketAddr::new(ip, 1))
            .await
            .map_err(|e| e.to_string())
    })
    .await;
    let ip = running(&*server).await.addresses[0];
    eventually("the nodes know each other", || async {
        caller
            .whois(SocketAddr::new(ip, 1))
            .await
            .map_err(|e| e.to_string())
    })
    .await;
    (server, caller)
}

async fn at(node: &dyn Node, port: u16) -> String {
    format!("{}:{port}", running(node).await.addresses[0])
}

async fn dial(caller: &dyn Node, addr: &str) -> Stream {
    soon("dial", caller.dial(addr, patience())).await.unwrap()
}

async fn connect(
    caller: &dyn Node,
    addr: &str,
    listener: &mut Listener,
) -> (Stream, (Stream, Peer)) {
    let (dialled, accepted) = tokio::join!(
        soon("dial", caller.dial(addr, patience())),
        soon("accept", listener.accept()),
    );
    (dialled.unwrap(), accepted.unwrap())
}

async fn take(stream: &mut Stream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    soon("bytes", stream.read_exact(&mut bytes)).await.unwrap();
    bytes
}

async fn rest(stream: &mut Stream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    soon("the rest", stream.read_to_end(&mut bytes)).await?;
    Ok(bytes)
}

async fn echo(stream: Stream) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(stream);
    tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await
}

/// Waits until the generation changes, and then for the expected answer of WhoIs. Only the change
/// is promised; it may change more than once for one event, so the answer is checked after each
/// change.
async fn sees(
    node: &Arc<dyn Node>,
    before: u64,
    peer: Peer,
    what: &str,
    mut wanted: impl FnMut(Result<tailbone_tailnet::WhoIs, Error>) -> bool,
) {
    let mut seen = before;
    let looking = async {
        loop {
            generation_moves(&**node, seen).await;
            seen = node.generation();
            if wanted(node.whois(peer.addr).await) {
                return;
            }
        }
    };
    if tokio::time::timeout(patience(), looking).await.is_err() {
        panic!("never saw {what}, but {:?}", node.whois(peer.addr).await);
    }
}

/// Bytes without a pattern, from a seed.
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n.div_ceil(8))
            .flat_map(|_| {
                self.0 ^= self.0 << 13;
                self.0 ^= self.0 >> 7;
                self.0 ^= self.0 << 17;
                self.0.to_le_bytes()
            })
            .take(n)
            .collect()
    }
}

/// A checksum of a stream that does not depend on how it is cut into pieces.
#[derive(Default)]
struct Sum {
    length: usize,
    hash: u64,
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        self.length += bytes.len();
        for byte in bytes {
            self.hash =
                (self.hash.rotate_left(5) ^ u64::from(*byte)).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }
}
