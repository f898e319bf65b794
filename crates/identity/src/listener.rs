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
