//! Connections from the tailnet for an HTTP server: where they come from, and how Go's thread may
//! poll them.

use std::{io, net::IpAddr};

use tailbone_http::serve::{Accept, PollInPlace};
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

    fn poll_in_place(stream: &Stream) -> Option<PollInPlace> {
        let wrap = stream.poll_in_place()?;
        Some(Box::new(wrap))
    }

    fn refuse(&mut self) -> bool {
        self.0.refuse()
    }
}
