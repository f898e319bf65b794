//! Connections from the tailnet for an HTTP server: where they come from, and how Go's thread may
//! poll them.

use std::{io, net::IpAddr};

use tailbone_http::serve::{Accept, PollInPlace, network};
use tailbone_tailnet::{Listener, Peer, Stream, Via};

/// A listener on the tailnet, as [`tailbone_http::serve`] takes connections from it.
#[derive(Debug)]
pub struct TailnetListener(pub Listener);

impl Accept for TailnetListener {
    type Io = Stream;
    type Addr = Peer;

    /// A node has one address, which it cannot choose. On the internet a host chooses among those
    /// of its network.
    fn peer(peer: &Peer) -> Option<IpAddr> {
        let addr = peer.addr.ip();
        Some(match peer.via {
            Via::Tailnet => addr,
            Via::Funnel => network(addr),
        })
    }

    async fn accept(&mut self) -> io::Result<(Stream, Peer)> {
        self.0.accept().await.map_err(io::Error::other)
    }

    fn poll_in_place(stream: &Stream) -> Option<PollInPlace> {
        let wrap = stream.poll_in_place()?;
        Some(Box::new(wrap))
    }

    fn refuse(&mut self) -> bool {
        self.0.refuse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_on_the_internet_is_one_peer_whichever_of_its_addresses_it_takes() {
        let peer = |via, addr: &str| {
            let (addr, local) = (addr.parse().unwrap(), "[fd7a::1]:443".parse().unwrap());
            TailnetListener::peer(&Peer { addr, local, via })
        };
        for via in [Via::Tailnet, Via::Funnel] {
            let (one, two) = (peer(via, "[2001:db8::1]:1"), peer(via, "[2001:db8::2]:1"));
            assert_eq!(one == two, via == Via::Funnel);
            assert_ne!(peer(via, "203.0.113.1:1"), peer(via, "203.0.113.2:1"));
        }
        assert_ne!(
            peer(Via::Funnel, "[2001:db8:0:1::1]:1"),
            peer(Via::Funnel, "[2001:db8:0:2::1]:1")
        );
    }
}
