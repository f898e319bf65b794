//! Opens the listeners of all parts, each according to its kind.
//!
//! The kind decides what each request of a connection carries: on the tailnet the connection with
//! its identity, on a host address the peer's address, on a unix socket what the component says of
//! a local process. It also decides which host names are the listener's own.

use std::sync::Arc;

use ::http::Extensions;
use axum::Router;

use super::StartError;
use crate::{
    config::{Binding, Listen, TlsFiles},
    http::{
        host::{HostRule, NodeNames},
        serve::{Accept, Listening, LiveLimits, Server, serve},
        tls::{CertificateFiles, PlainListener, Remote, TlsListener},
        unix::UnixSocket,
    },
    identity::TailnetListener,
    part::{Context, Endpoint, Hosts},
    tailnet::{ListenAddr, Via},
    telemetry::trace::Neighbour,
    web::{Allowed, HostPattern},
};

/// What every listener is opened with.
pub(super) struct Opener {
    pub(super) context: Context,
    pub(super) limits: LiveLimits,
    pub(super) names: NodeNames,
    /// Names of one's own, besides the node's.
    pub(super) hosts: Vec<Allowed<HostPattern>>,
}

/// A listener that serves, with the certificate that it uses.
pub(super) struct Opened {
    pub(super) server: Server,
    pub(super) certificate: Option<Arc<CertificateFiles>>,
}

impl Opener {
    /// Opens a listener and begins to serve.
    pub(super) async fn open(&self, endpoint: Endpoint) -> Result<Opened, StartError> {
        let name = endpoint.name;
        let addr = endpoint.listen.addr();
        let open_to_all =
            matches!(&endpoint.listen, Listen::Host { addr, .. } if !addr.ip().is_loopback());
        let opened = match endpoint.listen {
            Listen::Tailnet { binding, port } => {
                let hosts = HostRule::of_node(self.names.clone(), &self.hosts);
                let hosts = (endpoint.hosts == Hosts::Own).then_some(hosts);
                self.tailnet(name, listen_addr(binding, port), endpoint.routes, hosts)
                    .await?
            }
            Listen::Host { addr, tls } => {
                // Elsewhere the names are those of the proxy or of the certificate.
                let own = endpoint.hosts == Hosts::Own && addr.ip().is_loopback();
                let hosts = own.then(|| HostRule::of_loopback(&self.hosts));
                let identify = move |remote| with(Remote::identify(remote), hosts.as_ref());
                match tls {
                    None => {
                        let listener = tokio::net::TcpListener::bind(addr)
                            .await
                            .map_err(|source| StartError::Host { addr, source })?;
                        self.plain(name, PlainListener(listener), endpoint.routes, identify)
                    }
                    Some(TlsFiles { cert, key }) => {
                        let files = Arc::new(CertificateFiles::open(cert, key)?);
                        let listener = TlsListener::bind(addr, files.clone()).await?;
                        Opened {
                            certificate: Some(files),
                            ..self.plain(name, listener, endpoint.routes, identify)
                        }
                    }
                }
            }
            Listen::Unix { path, mode } => {
                let socket = UnixSocket::bind(&path, mode)
                    .map_err(|source| StartError::UnixSocket { name, path, source })?;
                self.plain(name, socket, endpoint.routes, endpoint.local)
            }
        };
        let load = opened.server.load();
        tracing::info!(target: "server", component = name, binding = %addr, "listening");
        if open_to_all {
            tracing::warn!(target: "server", component = name, %addr, "this listener is on a host address, as set: callers outside of the tailnet may reach it");
        }
        self.context
            .state
            .listeners
            .add(Listening { name, addr, load });
        Ok(opened)
    }

    async fn tailnet(
        &self,
        name: &'static str,
        addr: ListenAddr,
        routes: Router,
        hosts: Option<HostRule>,
    ) -> Result<Opened, StartError> {
        let listener = self.context.node.listen(addr).await;
        let listener = listener.map_err(|source| StartError::Listen {
            what: name,
            addr,
            source,
        })?;
        let directory = self.context.directory.clone();
        let identify = move |peer: crate::tailnet::Peer| {
            let via = peer.via;
            let mut known = with(directory.identify(peer), hosts.as_ref());
            if via == Via::Tailnet {
                known.insert(Neighbour);
            }
            known
        };
        Ok(self.plain(name, TailnetListener(listener), routes, identify))
    }

    fn plain<L: Accept>(
        &self,
        name: &'static str,
        listener: L,
        routes: Router,
        identify: impl Fn(L::Addr) -> Extensions + Send + Sync + 'static,
    ) -> Opened {
        Opened {
            server: serve(name, listener, routes, self.limits.clone(), identify),
            certificate: None,
        }
    }
}

fn with(mut known: Extensions, hosts: Option<&HostRule>) -> Extensions {
    if let Some(hosts) = hosts {
        known.insert(hosts.clone());
    }
    known
}

fn listen_addr(binding: Binding, port: u16) -> ListenAddr {
    match binding {
        Binding::Auto => ListenAddr::Port(port),
        Binding::Addr(ip) => ListenAddr::Addr(ip, port),
    }
}
