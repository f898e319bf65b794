//! The reverse proxy: makes a local service available on the tailnet, with the caller's identity in
//! headers.
//!
//! The steps for a request: read what it asks for; find the caller; check that host and origin are
//! ours; apply the policy; choose the upstream by host and path; remove the connection's own
//! headers and identity headers from outside, add ours; call the upstream. Bodies are streamed in
//! both directions; trailers are passed on in answers only. A WebSocket becomes a tunnel when the
//! upstream accepts it. Answers and tunnels end when the caller loses access (`recheck.rs`).
//!
//! Deliberately missing: `CONNECT`, `TRACE` (it would show a caller what we tell the upstream),
//! upgrades to anything but WebSocket (`h2c` would get around the policy), and rewriting of paths
//! or bodies.

use std::{pin::pin, sync::Arc, time::Duration};

use ::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version, header};
use axum::{
    Router,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    GateError,
    error::{Denial, MalformedRequest, token_unavailable},
    guard::Guard,
    headers, layer,
    recheck::{Recheck, RecheckedBody},
    token::BackendTokens,
    upstream_clients::UpstreamClients,
    upstream_table::{Upstream, UpstreamTable},
};
use crate::{
    config,
    http::{
        self, error::Kind, host::HostRule, layers::RequestId, origin::Destination, tls::OverTls,
    },
    identity::{Connection, Refusal, Visitor},
    policy::{Host, Target},
    web::{Allowed, Origin},
};

pub(super) struct ReverseProxy {
    guard: Arc<Guard>,
    upstream_table: UpstreamTable,
    clients: UpstreamClients,
    origins: Vec<Allowed<Origin>>,
    capabilities: Vec<String>,
    tokens: Option<Arc<BackendTokens>>,
    tunnels: TaskTracker,
    shutdown: CancellationToken,
    recheck_interval: Duration,
}

impl std::fmt::Debug for ReverseProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReverseProxy")
            .field("routes", &self.upstream_table)
            .field("tunnels", &self.tunnels.len())
            .finish_non_exhaustive()
    }
}

impl ReverseProxy {
    pub(super) fn new(
        guard: Arc<Guard>,
        settings: &config::GateSettings,
        tokens: Option<Arc<BackendTokens>>,
    ) -> Result<Self, GateError> {
        Ok(Self {
            guard,
            upstream_table: UpstreamTable::new(&settings.upstreams)?,
            clients: UpstreamClients::new(settings)?,
            origins: settings.allowed_origins.clone(),
            capabilities: settings.forward_capabilities.clone(),
            tokens,
            tunnels: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            recheck_interval: settings.recheck,
        })
    }

    /// Warns about upstreams that may be more widely available than intended.
    pub(super) fn warn_about_upstreams_without_host(&self) {
        for upstream in self.upstream_table.without_host() {
            tracing::warn!(target: "gate", upstream = upstream.address(), "this upstream names no host, so it is served under every name of this node and of the rules; name its host in gate.upstream");
        }
    }

    pub(super) async fn close(&self) {
        self.shutdown.cancel();
        self.tunnels.close();
        self.tunnels.wait().await;
    }
}

impl Drop for ReverseProxy {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub(super) fn router(proxy: Arc<ReverseProxy>) -> Router {
    Router::new().fallback(handle).with_state(proxy)
}

async fn handle(State(proxy): State<Arc<ReverseProxy>>, request: Request<Body>) -> Response {
    match proxy.forward(request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

impl ReverseProxy {
    async fn forward(&self, mut request: Request<Body>) -> Result<Response, http::Error> {
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            return Err(http::Error::method_not_allowed(
                "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
            ));
        }
        let connection = Connection::of(request.extensions())?.clone();
        let wants_tunnel = is_websocket(&request);
        let client_side = wants_tunnel.then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        let target = layer::target(&parts)?;
        let recheck = Recheck::new(
            self.guard.clone(),
            connection.clone(),
            target,
            self.recheck_interval,
        );
        let target = recheck.target();
        let caller = connection.visitor().await;
        connection.count_request()?;
        if let Some(denied) = self.check_destination(&parts, &caller)? {
            return Err(self.guard.refuse(&caller, target, denied).into());
        }
        let admitted = self.guard.admit(caller, target, None)?;
        let upstream = self.upstream(target)?;

        let host = host_header(&parts)?;
        let over_tls = parts.extensions.get::<OverTls>().is_some();
        headers::strip_hop_by_hop(&mut parts.headers);
        headers::strip_identity(
            &mut parts.headers,
            self.guard.policy().rules().name_methods(),
        );
        headers::set_identity(&mut parts.headers, &admitted, &self.capabilities);
        headers::set_forwarded(
            &mut parts.headers,
            connection.peer().addr.ip(),
            &host,
            if over_tls { "https" } else { "http" },
        );
        if let Some(tokens) = &self.tokens {
            let name = target.host.as_ref().map_or("", Host::as_str);
            let token = tokens.token(&admitted, name, Timestamp::now()).await;
            if let Some(token) = token.map_err(token_unavailable)? {
                parts.headers.insert(headers::TOKEN, token);
            }
        }
        if let Some(id) = parts.extensions.get::<RequestId>()
            && let Ok(id) = HeaderValue::from_str(&id.0)
        {
            parts.headers.insert("x-request-id", id);
        }
        if wants_tunnel {
            parts
                .headers
                .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            parts
                .headers
                .insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        // Over HTTP/2 the host is in a pseudo-header, which names the upstream; X-Forwarded-Host
        // has the name that the caller used.
        if upstream.scheme.http2() {
            parts.headers.remove(header::HOST);
        } else {
            parts.headers.insert(header::HOST, host);
        }
        parts.uri = upstream.uri(&parts.uri).map_err(|error| {
            http::Error::new(
                Kind::BadRequest,
                "bad_request_target",
                "the request target cannot be forwarded",
            )
            .because(error)
        })?;
        parts.version = if upstream.scheme.http2() {
            Version::HTTP_2
        } else {
            Version::HTTP_11
        };
        parts.extensions.clear();

        let request = Request::from_parts(parts, body);
        let answer = {
            let mut denied = pin!(recheck.until_denied());
            tokio::select! {
                biased;
                answer = self.clients.answer(upstream, request) => answer,
                denied = denied.as_mut() => Err(denied.into()),
            }
        };
        self.guard.meter().upstream(match &answer {
            Ok(_) => "answered",
            Err(error) => error.code,
        });
        let mut answer = answer?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let is_websocket = upgrades_to_websocket(answer.headers());
            let Some(client_side) = client_side.filter(|_| is_websocket) else {
                return Err(bad_gateway(
                    "upstream_switched",
                    "the service behind this gate switched to a protocol that was not requested",
                ));
            };
            let tunnel = Tunnel {
                recheck,
                shutdown: self.shutdown.clone(),
            };
            let upstream_side = hyper::upgrade::on(&mut answer);
            self.tunnels.spawn(tunnel.run(client_side, upstream_side));
            headers::strip_hop_by_hop(answer.headers_mut());
            let head = answer.headers_mut();
            head.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            head.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            return Ok(answer.map(|_| Body::empty()));
        }
        headers::strip_hop_by_hop(answer.headers_mut());
        Ok(answer.map(|body| RecheckedBody::wrap(body, recheck)))
    }

    /// Whether the request names an unknown host, or comes from a page of another origin. Known
    /// names are those of the listener, the upstreams, the rules and the caller's grants.
    fn check_destination(
        &self,
        parts: &::http::request::Parts,
        caller: &Result<Arc<Visitor>, Refusal>,
    ) -> Result<Option<Denial>, MalformedRequest> {
        let (host, port) = layer::host(parts)?;
        if let Some(rule) = parts.extensions.get::<HostRule>() {
            let known = rule.accepts(&host)
                || self.upstream_table.names_host(&host)
                || self.guard.names_host(caller, &host);
            if !known {
                return Ok(Some(Denial::UnknownHost(Box::new(rule.refuse(&host)))));
            }
        }
        let destination = Destination {
            host: &host,
            port,
            port_known: true,
        };
        let foreign =
            layer::is_cross_origin(parts, Some(&parts.method), destination, &self.origins);
        Ok(foreign.then_some(Denial::CrossOrigin))
    }

    fn upstream(&self, target: &Target) -> Result<&Upstream, http::Error> {
        let (Some(host), Some(path)) = (&target.host, &target.path) else {
            return Err(http::Error::not_found());
        };
        match self.upstream_table.choose(host, path)? {
            Some(upstream) => Ok(upstream),
            None => Err(http::Error::new(
                Kind::NotFound,
                "no_upstream",
                "no service is configured for this host and path",
            )),
        }
    }
}

fn bad_gateway(code: &'static str, message: &str) -> http::Error {
    http::Error::new(Kind::BadGateway, code, message)
}

/// The host as the caller wrote it, with the port.
fn host_header(parts: &::http::request::Parts) -> Result<HeaderValue, MalformedRequest> {
    match (parts.headers.get(header::HOST), parts.uri.authority()) {
        (Some(host), _) => Ok(host.clone()),
        (None, Some(authority)) => {
            HeaderValue::from_str(authority.as_str()).map_err(|_| MalformedRequest::AmbiguousHost)
        }
        (None, None) => Err(MalformedRequest::AmbiguousHost),
    }
}

/// Whether this is a request for a WebSocket by RFC 6455, and for no other upgrade.
fn is_websocket(request: &Request<Body>) -> bool {
    request.version() == Version::HTTP_11
        && *request.method() == Method::GET
        && upgrades_to_websocket(request.headers())
}

fn upgrades_to_websocket(headers: &HeaderMap) -> bool {
    let upgrades = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|option| option.trim().eq_ignore_ascii_case("upgrade"));
    let mut protocols = headers.get_all(header::UPGRADE).iter();
    let websocket = protocols
        .next()
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    upgrades && websocket && protocols.next().is_none()
}

/// Copies bytes in both directions as long as the caller has access.
struct Tunnel {
    recheck: Arc<Recheck>,
    shutdown: CancellationToken,
}

impl Tunnel {
    async fn run(self, client_side: OnUpgrade, upstream_side: OnUpgrade) {
        let copy = async {
            match tokio::try_join!(client_side, upstream_side) {
                Ok((client, upstream)) => copy(client, upstream).await,
                Err(error) => tracing::debug!(target: "gate", %error, "a tunnel was not opened"),
            }
        };
        tokio::select! {
            () = copy => {}
            () = self.shutdown.cancelled() => {}
            _ = self.recheck.until_denied() => {}
        }
    }
}

async fn copy(client: Upgraded, upstream: Upgraded) {
    let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
    // A tunnel normally ends when either side closes.
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut upstream).await {
        tracing::debug!(target: "gate", %error, "a tunnel ended");
    }
}
