//! `axum::serve` on a [`Listener`], for tests. The program serves with limits of its own.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use axum::{extract::connect_info::Connected, serve::IncomingStream};

use super::{Error, ListenAddr, Listener, Peer, Stream, Via};

/// A listener that has ended logs it once and then never returns. A caller that
/// must act on the end calls [`Listener::accept`] itself.
impl axum::serve::Listener for Listener {
    type Io = Stream;
    type Addr = Peer;

    async fn accept(&mut self) -> (Stream, Peer) {
        match Self::accept(self).await {
            Ok(connection) => connection,
            Err(error) => {
                if !matches!(error, Error::Closed) {
                    tracing::error!(%error, addr = %self.local_addr(), "listener ended");
                }
                std::future::pending().await
            }
        }
    }

    /// A listener has no peer: both addresses are our own.
    fn local_addr(&self) -> io::Result<Peer> {
        let own = match self.local_addr() {
            ListenAddr::Port(port) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
            ListenAddr::Addr(ip, port) => SocketAddr::new(ip, port),
            ListenAddr::Funnel(port) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
        };
        Ok(Peer {
            addr: own,
            local: own,
            via: Via::Tailnet,
        })
    }
}

/// Makes `ConnectInfo<Peer>` work in handlers.
impl Connected<IncomingStream<'_, Listener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        *stream.remote_addr()
    }
}
