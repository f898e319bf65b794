//! Where connections from the tailnet arrive, each with its peer.

use std::net::{IpAddr, SocketAddr};

/// What to listen on. Never a host address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenAddr {
    /// A port on every tailnet address of the node.
    Port(u16),
    /// A port on one tailnet address.
    Addr(IpAddr, u16),
}

/// Who is at the other end of a connection, as the node told it together with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub addr: SocketAddr,
    /// Our own address that the peer called.
    pub local: SocketAddr,
    pub via: Via,
}

/// By which way a connection came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Over the tailnet: the address belongs to a node, and WhoIs knows it.
    Tailnet,
    /// Through Funnel: the address is somewhere on the internet, and WhoIs must not be asked.
    Funnel,
}

/// (the fence is being written)
#[derive(Debug)]
pub struct Listener {}
