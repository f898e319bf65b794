//! Messages from the node's Go side. Input: the first byte says what the rest is (`m` a message of
//! a listener or dial, `d` one with a descriptor, `s` a state, `w` an answer of WhoIs).

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
};

use jiff::Timestamp;
use serde_json::Value;
use tailbone::{
    identity::{Caller, Visitor},
    tailnet::{
        Status, Via, WhoIs,
        fuzzing::{self, Message},
        join::{JoinState, classify},
    },
};

pub(super) fn run(data: &[u8]) {
    match data.split_first() {
        Some((b'm', message)) => self::message(message, false),
        Some((b'd', message)) => self::message(message, true),
        Some((b's', json)) => status(json),
        Some((b'w', json)) => whois(json),
        _ => {}
    }
}

fn message(bytes: &[u8], with_descriptor: bool) {
    let descriptor = with_descriptor.then(|| File::open("/dev/null").unwrap().into());
    match fuzzing::message(bytes, descriptor) {
        None => {}
        Some(Message::Accepted(peer, known)) => {
            assert!(!known, "a connection that nobody announced");
            assert!(!with_descriptor);
            let kind = match peer.via {
                Via::Tailnet => 0,
                Via::Funnel => 1,
            };
            let mut wanted = vec![1, kind];
            wanted.extend_from_slice(&bytes[2..4]);
            for addr in [peer.addr, peer.local] {
                wanted.extend_from_slice(&addr.port().to_ne_bytes());
            }
            for addr in [peer.addr, peer.local] {
                wanted.extend_from_slice(&sixteen(addr));
            }
            wanted.extend_from_slice(&bytes[wanted.len()..]);
            assert_eq!(wanted, bytes);
            assert_eq!(bytes.len(), 48);
        }
        Some(Message::Dialled) => {
            assert!(with_descriptor);
            assert_eq!((bytes.len(), &bytes[..2]), (40, &[1, 2][..]));
        }
        Some(Message::Failure(_)) => {
            assert!(!with_descriptor);
            assert_eq!(&bytes[..2], &[1, 255]);
        }
    }
}

fn sixteen(addr: SocketAddr) -> [u8; 16] {
    match addr.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn status(json: &[u8]) {
    let Ok(status) = serde_json::from_slice::<Status>(json) else {
        return;
    };
    // Rust strings cannot hold every JSON string, and members that are not read may have any.
    let Ok(told) = serde_json::from_slice::<Value>(json) else {
        return;
    };
    if !told.is_object() || told["state"].is_object() {
        return; // As below: the Go side does not write that.
    }
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    for has_key in [false, true] {
        let state = classify(&status, has_key, now);
        super::assert_one_line(&state.to_string());
        if state == JoinState::Running {
            assert_eq!(told["state"], "Running");
            assert_ne!(told["expired"], true);
            let expiry = told["key_expiry"].as_str().unwrap_or_default();
            let expiry = expiry.parse::<Timestamp>();
            assert!(expiry.is_ok_and(|end| end > now) || status.key_expiry.is_none());
        }
    }
}

fn whois(json: &[u8]) {
    let Ok(whois) = serde_json::from_slice::<WhoIs>(json) else {
        return;
    };
    // Rust strings cannot hold every JSON string, and members that are not read may have any.
    let Ok(told) = serde_json::from_slice::<Value>(json) else {
        return;
    };
    let (node, user) = (&told["node"], &told["user"]);
    // A derived reader also takes a list for a struct, and an object for a word.
    if ![&told, node, user].into_iter().all(Value::is_object) {
        return;
    }
    let tags = node["tags"].as_array().map_or(0, Vec::len);
    let login = user["login"].as_str().unwrap_or_default();
    let ours = told["same_tailnet"] == true;

    let caller = Caller::from_whois(whois.clone());
    let visitor = Visitor::from_whois(whois, "a.ts.net");
    assert!(caller.is_err() || visitor.is_ok());
    if let Ok(visitor) = &visitor {
        assert_eq!(visitor.foreign(), !ours);
        assert_eq!(visitor.caller().is_ok(), ours);
        assert_ne!(node["expired"], true);
        assert_eq!(visitor.node_id(), node["id"].as_str().unwrap_or_default());
        assert!(!ours || visitor.tailnet() == "a.ts.net");
    }
    match caller {
        Ok(Caller::User(user)) => {
            assert!(ours && tags == 0 && !login.is_empty());
            assert_eq!(user.login, login);
        }
        Ok(Caller::Machine(machine)) => {
            assert!(ours && tags > 0);
            assert_eq!(machine.tags.len(), tags);
        }
        Ok(Caller::Funnel(_)) => panic!("the tailnet knows nobody on the internet"),
        Err(_) => assert!(!ours || node["expired"] == true || (tags == 0 && login.is_empty())),
    }
}
