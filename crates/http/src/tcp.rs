//! Listeners on a host address without TLS: on loopback, or behind a proxy that ends TLS. [`tls`]
//! wraps them for TLS.
//!
//! [`tls`]: super::tls

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http::Extensions;
use tokio::net::{TcpListener, TcpStream};

use super::{peers::network, serve::Accept};

/// The peer of a host listener: an address, which identifies nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote(pub SocketAddr);

impl Remote {
    /// The extensions that each request of the connection gets, for [`super::serve::serve`].
    pub fn identify(addr: SocketAddr) -> Extensions {
        let mut extensions = Extensions::new();
        extensions.insert(Self(addr));
        extensions
    }
}

/// Accepts connections on a host address.
#[derive(Debug)]
pub struct PlainListener(pub TcpListener);

impl Accept for PlainListener {
    type Io = TcpStream;
    type Addr = SocketAddr;

    fn peer(addr: &SocketAddr) -> Option<IpAddr> {
        Some(network(addr.ip()))
    }

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        accept(&self.0).await
    }
}

/// Retries what is temporary: a connection that was reset while it waited, and a shortage of file
/// descriptors or memory. Neither may end the listener.
async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let mut pause = Duration::from_millis(5);
    loop {
        match listener.accept().await {
            Ok((tcp, addr)) => {
                // Small answers must not wait for an acknowledgement. A failure here only costs
                // time.
                let _ = tcp.set_nodelay(true);
                return Ok((tcp, addr));
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) if is_passing(&error) => {
                tracing::warn!(target: "server", %error, "cannot accept; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
            Err(error) => return Err(error),
        }
    }
}

fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | ConnectionRefused | Interrupted
    )
}

fn is_passing(error: &io::Error) -> bool {
    let passing = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error
        .raw_os_error()
        .is_some_and(|code| passing.contains(&code))
}
