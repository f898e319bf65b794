//! Connections from the tailnet for an HTTP server: where they come from, and how Go's thread may
//! poll them.

use std::{io, net::IpAddr};

use tailbone_http::serve::{Accept, Place};
use tailbone_tailnet::{Listener, Peer, Stream};

/// A listener on the tailnet, as [`tailbone_http::serve`] takes connections from it.
#[derive(Debug)]
pub struct TailnetListener(pub Listener);

impl Accept for TailnetListener {
    type Io = Stream;
    type Addr = Peer;

    fn peer(peer: &Peer) -> Option<IpAddr> {
        Some(peer.addr.ip())
    }

    async fn accept(&mut self) -> io::Result<(Stream, Peer)> {
        self.0.accept().await.map_err(io::Error::other)
    }

    fn home(stream: &Stream) -> Option<Place> {
        let home = stream.home()?;
        Some(Box::new(home))
    }

    fn refuse(&mut self) -> bool {
        self.0.refuse()
    }
}
