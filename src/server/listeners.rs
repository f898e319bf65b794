//! Opens the listeners of all parts, each according to its kind.
//!
//! The kind decides what each request of a connection carries: on the tailnet the connection with
//! its identity, through Funnel the same without one, on a host address the peer's address, on a
//! unix socket what the component says of a local process. It also decides which host names are the
//! listener's own.

use std::sync::Arc;

use ::http::Extensions;
use axum::Router;

use super::{
    ServerError, funnel::FunnelPorts, latches::register_certificates,
    node_certificate::CertificateRenewal,
};
use crate::{
    config::{Binding, Listen, TailnetTls, TlsFiles},
    http::{
        certificate::{CertificateFiles, CertificateSource},
        host::{HostRule, NodeNames},
        layers, redirect,
        serve::{Accept, Listening, LiveLimits, Server, serve},
        tcp::{PlainListener, Remote},
        tls::{OverTls, TlsListener},
        unix::UnixSocket,
    },
    identity::TailnetListener,
    part::{AcceptedHosts, Context, Endpoint},
    tailnet::{ListenAddr, Peer, Via},
    telemetry::trace::FromTailnet,
    web::{Allowed, HostPattern},
};

/// What every listener is opened with.
pub(super) struct ListenerOpener {
    pub(super) context: Context,
    pub(super) limits: LiveLimits,
    pub(super) names: NodeNames,
    /// Names of one's own, besides the node's.
    pub(super) hosts: Vec<Allowed<HostPattern>>,
    /// The certificate of the node's name, which several listeners may share.
    pub(super) renewal: Arc<CertificateRenewal>,
    pub(super) funnel: FunnelPorts,
    /// The ports where it is used.
    pub(super) node_certificate_ports: Vec<u16>,
}

/// A listener that serves, with the certificate that it uses.
pub(super) struct OpenListener {
    pub(super) server: Server,
    pub(super) certificate: Option<Arc<dyn CertificateSource>>,
}

impl ListenerOpener {
    /// Opens a listener and begins to serve.
    pub(super) async fn open(&self, endpoint: Endpoint) -> Result<OpenListener, ServerError> {
        let name = endpoint.name;
        let addr = endpoint.listen.label();
        let reachable_from_outside =
            matches!(&endpoint.listen, Listen::Host { addr, .. } if !addr.ip().is_loopback());
        let funnel = matches!(endpoint.listen, Listen::Funnel { .. });
        let listener = match endpoint.listen {
            Listen::Tailnet { binding, port, tls } => {
                let addr = listen_addr(binding, port);
                match tls {
                    None => {
                        let hosts = self.node_names(endpoint.hosts);
                        let listener = self.on_tailnet(name, addr).await?;
                        self.serve_on(name, listener, endpoint.routes, self.identify(hosts))
                    }
                    // The names are those of the certificate.
                    Some(tls) => {
                        let certificate = self.tailnet_certificate(tls)?;
                        let listener = self.on_tailnet(name, addr).await?;
                        let listener = TlsListener::new(listener, certificate.clone())?;
                        let identify = self.identify(None);
                        self.serve_tls(name, listener, certificate, endpoint.routes, identify)
                    }
                }
            }
            Listen::Redirect { binding, port, to } => {
                let hosts = self.node_names(endpoint.hosts);
                let listener = self.on_tailnet(name, listen_addr(binding, port)).await?;
                let names = self.node_certificate_ports.contains(&to);
                let names = names.then(|| self.names.clone());
                let routes = layers::wrap(redirect::router(to, names), name);
                self.serve_on(name, listener, routes, self.identify(hosts))
            }
            Listen::Host { addr, tls } => {
                // Elsewhere the names are those of the proxy or of the certificate.
                let own_names_only =
                    endpoint.hosts == AcceptedHosts::Own && addr.ip().is_loopback();
                let hosts = own_names_only.then(|| HostRule::of_loopback(&self.hosts));
                let identify =
                    move |remote| with_host_rule(Remote::identify(remote), hosts.as_ref());
                match tls {
                    None => {
                        let listener = tokio::net::TcpListener::bind(addr)
                            .await
                            .map_err(|source| ServerError::HostListener { addr, source })?;
                        self.serve_on(name, PlainListener(listener), endpoint.routes, identify)
                    }
                    Some(files) => {
                        let files = certificate_of(files)?;
                        let listener = TlsListener::bind(addr, files.clone()).await?;
                        self.serve_tls(name, listener, files, endpoint.routes, identify)
                    }
                }
            }
            Listen::Funnel { port, tls } => {
                let certificate = self.tailnet_certificate(tls)?;
                let Context { state, node, .. } = &self.context;
                let listening = self.funnel.listen(state, node.clone(), name, port).await;
                let listener = listening.map_err(|source| ServerError::TailnetListener {
                    name,
                    addr: ListenAddr::Funnel(port),
                    source,
                })?;
                let listener = TlsListener::new(listener, certificate.clone())?;
                let identify = self.identify(None);
                self.serve_tls(name, listener, certificate, endpoint.routes, identify)
            }
            Listen::Unix { path, mode } => {
                let socket = UnixSocket::bind(&path, mode)
                    .map_err(|source| ServerError::UnixSocket { name, path, source })?;
                self.serve_on(name, socket, endpoint.routes, endpoint.identify_local)
            }
        };
        let load = listener.server.load();
        tracing::info!(target: "server", component = name, binding = %addr, "listening");
        if reachable_from_outside {
            tracing::warn!(target: "server", component = name, %addr, "this listener has a host address, as configured: callers outside the tailnet may reach it");
        }
        if funnel {
            tracing::warn!(target: "server", component = name, %addr, "this listener is on the internet, through Funnel, as configured");
        }
        if listener.certificate.is_some() {
            register_certificates(&self.context.state);
        }
        self.context.state.listeners.add(Listening {
            name,
            addr,
            load,
            certificate: listener.certificate.clone(),
        });
        Ok(listener)
    }

    async fn on_tailnet(
        &self,
        name: &'static str,
        addr: ListenAddr,
    ) -> Result<TailnetListener, ServerError> {
        let listener = self.context.node.listen(addr).await;
        listener
            .map(TailnetListener)
            .map_err(|source| ServerError::TailnetListener { name, addr, source })
    }

    fn tailnet_certificate(
        &self,
        tls: TailnetTls,
    ) -> Result<Arc<dyn CertificateSource>, ServerError> {
        Ok(match tls {
            TailnetTls::Files(files) => certificate_of(files)?,
            TailnetTls::Node => self.renewal.certificate(),
        })
    }

    fn node_names(&self, hosts: AcceptedHosts) -> Option<HostRule> {
        let names = HostRule::of_node(self.names.clone(), &self.hosts);
        (hosts == AcceptedHosts::Own).then_some(names)
    }

    /// Who a caller on the tailnet is.
    fn identify(
        &self,
        hosts: Option<HostRule>,
    ) -> impl Fn(Peer) -> Extensions + Send + Sync + 'static {
        let directory = self.context.directory.clone();
        move |peer| {
            let via = peer.via;
            let mut extensions = with_host_rule(directory.identify(peer), hosts.as_ref());
            if via == Via::Tailnet {
                extensions.insert(FromTailnet);
            }
            extensions
        }
    }

    /// As [`Self::serve_on`], at a listener with this certificate.
    fn serve_tls<L: Accept>(
        &self,
        name: &'static str,
        listener: TlsListener<L>,
        certificate: Arc<dyn CertificateSource>,
        routes: Router,
        identify: impl Fn(L::Addr) -> Extensions + Send + Sync + 'static,
    ) -> OpenListener {
        let identify = move |addr| {
            let mut extensions = identify(addr);
            extensions.insert(OverTls);
            extensions
        };
        OpenListener {
            certificate: Some(certificate),
            ..self.serve_on(name, listener, routes, identify)
        }
    }

    fn serve_on<L: Accept>(
        &self,
        name: &'static str,
        listener: L,
        routes: Router,
        identify: impl Fn(L::Addr) -> Extensions + Send + Sync + 'static,
    ) -> OpenListener {
        OpenListener {
            server: serve(name, listener, routes, self.limits.clone(), identify),
            certificate: None,
        }
    }
}

fn certificate_of(files: TlsFiles) -> Result<Arc<CertificateFiles>, ServerError> {
    Ok(Arc::new(CertificateFiles::open(files.cert, files.key)?))
}

fn with_host_rule(mut extensions: Extensions, hosts: Option<&HostRule>) -> Extensions {
    if let Some(hosts) = hosts {
        extensions.insert(hosts.clone());
    }
    extensions
}

fn listen_addr(binding: Binding, port: u16) -> ListenAddr {
    match binding {
        Binding::Auto => ListenAddr::Port(port),
        Binding::Addr(ip) => ListenAddr::Addr(ip, port),
    }
}
