//! Forward-auth: a proxy asks about a request that it holds, and passes it on or refuses it by our
//! status.
//!
//! 1. The proxy itself is identified: by its connection (its tailnet identity must be listed in
//!    `gate.auth.proxies`), or because it uses our own unix socket. Nothing that it sends is read
//!    before that.
//! 2. Its headers are read by the convention of the route. A header that occurs twice is refused:
//!    one of the two comes from the client.
//! 3. The client's address is looked up, and the policy decides.
//!
//! Every answer that grants access sets all identity headers, also empty ones, so that the proxy
//! overwrites those that the client sent.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use ::http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts,
};
use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::any,
};
use jiff::Timestamp;

use super::{
    GateError,
    error::{Denial, MalformedRequest, token_unavailable},
    guard::Guard,
    headers, layer,
    token::BackendTokens,
};
use crate::{
    audit, config,
    http::{self, error::Kind, origin::Destination, rate_limit::ClientRates},
    identity::{Connection, Directory, Refusal},
    policy::{Host, Path, Selector, Target, caller_word},
    telemetry::audit::Decision,
    web::{Allowed, Origin},
};

/// Among a request's extensions: it came over the gate's own unix socket, so a local proxy sent it.
#[derive(Debug, Clone, Copy)]
pub struct LocalProxy;

/// The extensions for every request on the gate's unix socket.
pub fn local_proxy_extensions() -> Extensions {
    let mut extensions = Extensions::new();
    extensions.insert(LocalProxy);
    extensions
}

const NGINX_CLIENT: HeaderName = HeaderName::from_static("remote-addr");
const EXPECTED_TAILNET: HeaderName = HeaderName::from_static("expected-tailnet");

/// Marks the URL to which a login page sends a browser back. Without it, a login page that cannot
/// identify somebody would cause an endless redirect.
const RETURN_MARK: &str = "tailbone_gate=1";

pub(super) struct ForwardAuth {
    guard: Arc<Guard>,
    directory: Directory,
    clients: ClientRates,
    proxies: Vec<Selector>,
    client_header: Option<HeaderName>,
    redirect: Option<Redirect>,
    origins: Vec<Allowed<Origin>>,
    capabilities: Vec<String>,
    tokens: Option<Arc<BackendTokens>>,
}

impl std::fmt::Debug for ForwardAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ForwardAuth")
            .field("proxies", &self.proxies)
            .field("client_header", &self.client_header)
            .finish_non_exhaustive()
    }
}

impl ForwardAuth {
    pub(super) fn new(
        guard: Arc<Guard>,
        directory: Directory,
        settings: &config::GateSettings,
        tokens: Option<Arc<BackendTokens>>,
    ) -> Result<Self, GateError> {
        let auth = &settings.auth;
        let mut proxies = Vec::new();
        for name in &auth.proxies {
            match Selector::parse(name) {
                // A proxy copies what a browser sends, so nothing in a request tells a proxy from a
                // browser on the user's machine, and a page in that browser could name any client.
                // Tagged machines have no user who browses.
                Ok(Selector::User(_)) if !auth.user_proxies => {
                    return Err(GateError::UserProxy(name.clone()));
                }
                Ok(selector @ (Selector::User(_) | Selector::Tag(_))) => proxies.push(selector),
                Ok(_) => {
                    let message = format!(
                        "{name:?} matches too many callers: name each proxy by its tag or user"
                    );
                    return Err(GateError::Proxies(message));
                }
                Err(message) => return Err(GateError::Proxies(message)),
            }
        }
        let client_header = match &auth.client_header {
            None => None,
            Some(name) => Some(
                HeaderName::try_from(name.as_str())
                    .map_err(|_| GateError::ClientHeader(name.clone()))?,
            ),
        };
        let redirect = match &auth.redirect {
            None => None,
            Some(url) => {
                Some(Redirect::parse(url).ok_or_else(|| GateError::Redirect(url.clone()))?)
            }
        };
        Ok(Self {
            guard,
            directory,
            clients: ClientRates::default(),
            proxies,
            client_header,
            redirect,
            origins: settings.allowed_origins.clone(),
            capabilities: settings.forward_capabilities.clone(),
            tokens,
        })
    }
}

pub(super) fn router(auth: Arc<ForwardAuth>) -> Router {
    // Not as the router's fallback: `http::layers` sets that, for paths that no component serves.
    Router::new()
        .route("/", any(handle))
        .route("/{*path}", any(handle))
        .with_state(auth)
}

async fn handle(State(auth): State<Arc<ForwardAuth>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    match auth.authorize(&parts).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

impl ForwardAuth {
    async fn authorize(&self, parts: &Parts) -> Result<Response, http::Error> {
        let proxy = self.proxy(parts).await?;
        let convention = Convention::of(parts.uri.path());
        let forwarded = convention.parse(parts, self.client_header.as_ref())?;
        self.clients
            .count_request(forwarded.client, &parts.extensions, Instant::now())?;
        let caller = match self.directory.visitor(forwarded.client).await {
            Ok(visitor) if proxy.has_node_id(visitor.node_id()) => {
                return Err(MalformedRequest::ClientIsProxy.into());
            }
            Ok(_) if self.directory.is_own(forwarded.client) => {
                return Err(MalformedRequest::ClientIsProxy.into());
            }
            other => other,
        };
        if forwarded.is_cross_origin(parts, &self.origins) {
            return Err(self
                .guard
                .refuse(&caller, &forwarded.target, Denial::CrossOrigin)
                .into());
        }
        let admitted = match self.guard.admit(
            caller,
            &forwarded.target,
            forwarded.expected_tailnet.as_deref(),
        ) {
            Ok(admitted) => admitted,
            Err(denied) => {
                let redirect = self
                    .redirect
                    .as_ref()
                    .filter(|_| matches!(denied, Denial::Identity(Refusal::UnknownPeer)));
                let to =
                    redirect.and_then(|redirect| redirect.for_browser(&forwarded, &parts.headers));
                return match to {
                    Some(location) => {
                        Ok((StatusCode::FOUND, [(header::LOCATION, location)]).into_response())
                    }
                    None => Err(denied.into()),
                };
            }
        };
        let mut response = convention.success_status().into_response();
        for (name, value) in headers::identity_headers(&admitted, &self.capabilities) {
            response.headers_mut().insert(name, value);
        }
        if let Some(tokens) = &self.tokens {
            let host = forwarded.target.host.as_ref().map_or("", Host::as_str);
            let token = tokens.token(&admitted, host, Timestamp::now()).await;
            if let Some(token) = token.map_err(token_unavailable)? {
                response.headers_mut().insert(headers::TOKEN, token);
            }
        }
        let no_store = HeaderValue::from_static("no-store");
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, no_store);
        Ok(response)
    }

    /// Identifies the asking proxy, and refuses it if it is not trusted.
    async fn proxy(&self, parts: &Parts) -> Result<TrustedProxy, http::Error> {
        if parts.extensions.get::<LocalProxy>().is_some() {
            return Ok(TrustedProxy::Local);
        }
        let connection = Connection::of(&parts.extensions)?;
        let visitor = connection.visitor().await?;
        let trusted = visitor
            .caller()
            .is_ok_and(|caller| self.proxies.iter().any(|proxy| proxy.matches(caller)));
        if trusted {
            return Ok(TrustedProxy::Node(visitor.node_id().to_owned()));
        }
        let caller = caller_word(&visitor);
        audit!(
            Decision::Refused,
            "gate",
            caller,
            reason = "untrusted_proxy"
        );
        Err(http::Error::new(
            Kind::Forbidden,
            "untrusted_proxy",
            "only the proxies that gate.auth.proxies names may ask about other callers",
        ))
    }
}

/// A proxy that is allowed to ask.
enum TrustedProxy {
    Local,
    /// Identified by its stable node id.
    Node(String),
}

impl TrustedProxy {
    /// A client that is the proxy itself would make everybody behind the proxy the same caller.
    fn has_node_id(&self, node_id: &str) -> bool {
        matches!(self, Self::Node(id) if id == node_id)
    }
}

/// The convention by which a proxy describes the request that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Convention<'a> {
    /// The request itself, below a prefix.
    Envoy {
        target: &'a str,
    },
    Forwarded,
    Nginx,
}

/// What the proxy asked about.
pub(super) struct ForwardedRequest {
    pub(super) client: IpAddr,
    pub(super) target: Target,
    /// The port of the host, if the proxy reported it.
    port: Option<u16>,
    expected_tailnet: Option<String>,
    /// The URL in the browser, if the proxy reported all of it: scheme, host with port, target.
    pub(super) url: Option<(String, String, String)>,
    /// Whether a redirect in our answer would reach the browser.
    reaches_browser: bool,
}

impl ForwardedRequest {
    /// Whether a page of another origin sent the request that the proxy holds. The proxy copies the
    /// browser's headers; if it does not report the method, it may be any method.
    fn is_cross_origin(&self, parts: &Parts, allowed: &[Allowed<Origin>]) -> bool {
        let Some(host) = &self.target.host else {
            return false;
        };
        let destination = Destination {
            host,
            port: self.port,
            port_known: false,
        };
        layer::is_cross_origin(parts, self.target.method.as_ref(), destination, allowed)
    }
}

impl<'a> Convention<'a> {
    pub(super) fn of(path: &'a str) -> Self {
        if let Some(target) = path.strip_prefix("/auth/envoy")
            && (target.is_empty() || target.starts_with('/'))
        {
            return Self::Envoy { target };
        }
        if path == "/auth/forwarded" {
            return Self::Forwarded;
        }
        Self::Nginx
    }

    /// Envoy only accepts 200 as a yes; nginx-auth answered 204.
    fn success_status(self) -> StatusCode {
        match self {
            Self::Nginx => StatusCode::NO_CONTENT,
            Self::Envoy { .. } | Self::Forwarded => StatusCode::OK,
        }
    }

    pub(super) fn parse(
        self,
        parts: &Parts,
        client_header: Option<&HeaderName>,
    ) -> Result<ForwardedRequest, MalformedRequest> {
        let headers = &parts.headers;
        let default_header = match self {
            Self::Nginx => &NGINX_CLIENT,
            Self::Envoy { .. } | Self::Forwarded => &headers::FORWARDED_FOR,
        };
        let client = client_address(headers, client_header.unwrap_or(default_header))?;
        let (host, target, method) = match self {
            Self::Envoy { target } => {
                let target = if target.is_empty() { "/" } else { target };
                let query = parts.uri.query().map(|query| format!("?{query}"));
                let target = format!("{target}{}", query.unwrap_or_default());
                (
                    request_host(parts)?,
                    Some(target),
                    Some(parts.method.clone()),
                )
            }
            Self::Forwarded => (
                single_header(headers, "x-forwarded-host")?.map(str::to_owned),
                single_header(headers, "x-forwarded-uri")?.map(str::to_owned),
                method(single_header(headers, "x-forwarded-method")?)?,
            ),
            Self::Nginx => (
                request_host(parts)?,
                consistent_target(
                    headers,
                    ["x-original-uri", "original-uri", "x-original-url"],
                )?,
                method(single_header(headers, "x-original-method")?)?,
            ),
        };
        let target = match &target {
            None => None,
            Some(target) => Some(origin_form(target)?.to_owned()),
        };
        let path = match &target {
            None => None,
            Some(target) => {
                let path = target.split(['?', '#']).next().unwrap_or_default();
                Some(Path::sent(path)?)
            }
        };
        let expected_tailnet = match self {
            Self::Nginx => single_header(headers, EXPECTED_TAILNET.as_str())?
                .filter(|tailnet| !tailnet.is_empty())
                .map(str::to_owned),
            _ => None,
        };
        let proto = single_header(headers, headers::FORWARDED_PROTO.as_str())?
            .filter(|proto| matches!(*proto, "http" | "https"))
            .map(str::to_owned);
        let url = match (proto, &host, target) {
            (Some(proto), Some(host), Some(target)) => Some((proto, host.clone(), target)),
            _ => None,
        };
        let (host, port) = match host {
            None => (None, None),
            Some(host) => {
                let (host, port) = Host::with_port(&host)?;
                (Some(host), port)
            }
        };
        Ok(ForwardedRequest {
            client,
            port,
            target: Target { host, path, method },
            expected_tailnet,
            url,
            reaches_browser: self != Self::Nginx,
        })
    }
}

/// The host of the request that the proxy sends to us.
fn request_host(parts: &Parts) -> Result<Option<String>, MalformedRequest> {
    match (
        parts.uri.authority(),
        single_header(&parts.headers, "host")?,
    ) {
        (Some(authority), _) => Ok(Some(authority.as_str().to_owned())),
        (None, host) => Ok(host.map(str::to_owned)),
    }
}

/// nginx has no standard header for the target; if several are present, they must agree.
fn consistent_target(
    headers: &HeaderMap,
    names: [&str; 3],
) -> Result<Option<String>, MalformedRequest> {
    let mut agreed: Option<&str> = None;
    for name in names {
        let Some(target) = single_header(headers, name)? else {
            continue;
        };
        let target = origin_form(target)?;
        match agreed {
            Some(before) if before != target => return Err(MalformedRequest::AmbiguousHeader),
            _ => agreed = Some(target),
        }
    }
    Ok(agreed.map(str::to_owned))
}

/// The target without scheme and host. In `http://wiki?a/b` the query begins where the host ends,
/// so what follows the slash is no path; and a client that writes such a thing into its `Host`
/// would hide the path that follows. Proxies put the two together as they came, so neither is read.
fn origin_form(target: &str) -> Result<&str, MalformedRequest> {
    let rest = target
        .strip_prefix("http://")
        .or_else(|| target.strip_prefix("https://"));
    let Some(rest) = rest else {
        return Ok(target);
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if host.contains(['?', '#', '\\']) {
        return Err(MalformedRequest::BadHeader);
    }
    Ok(if path.is_empty() { "/" } else { path })
}

fn method(text: Option<&str>) -> Result<Option<Method>, MalformedRequest> {
    text.filter(|text| !text.is_empty())
        .map(|text| Method::from_bytes(text.as_bytes()).map_err(|_| MalformedRequest::BadHeader))
        .transpose()
}

/// A header that may occur at most once. An empty one counts as absent.
fn single_header<'h>(
    headers: &'h HeaderMap,
    name: &str,
) -> Result<Option<&'h str>, MalformedRequest> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(MalformedRequest::AmbiguousHeader);
    }
    let text = first
        .map(|value| value.to_str().map_err(|_| MalformedRequest::BadHeader))
        .transpose()?;
    Ok(text.filter(|text| !text.is_empty()))
}

/// The client's address. In a list (`X-Forwarded-For`, `Forwarded`) the last entry counts, which
/// the trusted proxy added; everything before it may be invented by the client.
fn client_address(headers: &HeaderMap, name: &HeaderName) -> Result<IpAddr, MalformedRequest> {
    let is_list = *name == headers::FORWARDED_FOR || *name == header::FORWARDED;
    let text = if is_list {
        headers
            .get_all(name)
            .iter()
            .next_back()
            .map(|value| {
                value
                    .to_str()
                    .map_err(|_| MalformedRequest::ClientAddressInvalid)
            })
            .transpose()?
    } else {
        single_header(headers, name.as_str())?
    };
    let text = text.ok_or(MalformedRequest::ClientAddressMissing)?;
    let client = if is_list {
        text.rsplit(',').next().unwrap_or_default().trim()
    } else {
        text.trim()
    };
    let client = if *name == header::FORWARDED {
        forwarded_for(client).ok_or(MalformedRequest::ClientAddressInvalid)?
    } else {
        client
    };
    parse_address(client).ok_or(MalformedRequest::ClientAddressInvalid)
}

/// The `for` parameter of one element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<&str> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = value.trim();
        let value = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'))
            .unwrap_or(value);
        name.trim().eq_ignore_ascii_case("for").then_some(value)
    })
}

/// Parses an address with or without port and brackets. One with a zone (`fe80::1%2`) is refused:
/// a zone names a network interface of the machine that wrote it, and no node of a tailnet has one.
fn parse_address(text: &str) -> Option<IpAddr> {
    if text.contains('%') {
        return None;
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|addr| addr.ip()))
        .ok()
        .map(|ip| ip.to_canonical())
}

/// The page to which people without identity are sent: a login page, or instructions for joining
/// the tailnet.
#[derive(Debug, Clone)]
pub(super) struct Redirect {
    url: String,
    host: Host,
    path: String,
}

impl Redirect {
    pub(super) fn parse(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let scheme = uri.scheme_str()?;
        let authority = uri.authority()?.as_str();
        (matches!(scheme, "http" | "https") && !authority.contains('@')).then_some(())?;
        Some(Self {
            url: url.to_owned(),
            host: Host::parse(authority).ok()?,
            path: uri.path().to_owned(),
        })
    }

    /// Only for a browser that opens a page: a program would take that page for its answer.
    pub(super) fn for_browser(
        &self,
        forwarded: &ForwardedRequest,
        headers: &HeaderMap,
    ) -> Option<HeaderValue> {
        let (proto, host, target) = forwarded.url.as_ref()?;
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let is_safe = matches!(forwarded.target.method, Some(Method::GET | Method::HEAD));
        let wants_html =
            text("accept").is_some_and(|accept| accept.to_ascii_lowercase().contains("text/html"));
        let is_script = text("x-requested-with").is_some()
            || text("upgrade").is_some()
            || text("sec-fetch-mode").is_some_and(|mode| mode != "navigate");
        if !forwarded.reaches_browser || !is_safe || !wants_html || is_script {
            return None;
        }
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let was_sent_back = query.split('&').any(|pair| pair == RETURN_MARK);
        let path = target.split(['?', '#']).next().unwrap_or_default();
        let at_login_page =
            forwarded.target.host.as_ref() == Some(&self.host) && path.starts_with(&self.path);
        if was_sent_back || at_login_page {
            return None;
        }
        let separator = if target.contains('?') { '&' } else { '?' };
        let return_url = format!("{proto}://{host}{target}{separator}{RETURN_MARK}");
        // A browser does not send the part after `#` to the page, so it must stay at the end.
        let (page, fragment) = match self.url.find('#') {
            Some(at) => self.url.split_at(at),
            None => (self.url.as_str(), ""),
        };
        let separator = if page.contains('?') { '&' } else { '?' };
        let return_url = percent_encode(&return_url);
        HeaderValue::try_from(format!("{page}{separator}rd={return_url}{fragment}")).ok()
    }
}

/// Escapes everything but unreserved characters as `%xx`.
fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn the_last_address_of_a_chain_is_the_one_the_proxy_saw() {
        let parse = |name: HeaderName, list: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in list {
                headers.append(&name, HeaderValue::from_static(value));
            }
            client_address(&headers, &name).map(|ip| ip.to_string())
        };
        let chain = |list| parse(headers::FORWARDED_FOR, list);
        assert_eq!(
            chain(&["100.64.0.1, 100.64.0.2"]).as_deref(),
            Ok("100.64.0.2")
        );
        assert_eq!(
            chain(&["100.64.0.1", "100.64.0.2"]).as_deref(),
            Ok("100.64.0.2")
        );
        assert_eq!(
            chain(&["100.64.0.1,"]),
            Err(MalformedRequest::ClientAddressInvalid)
        );
        assert_eq!(
            chain(&["100.64.0.1, unknown"]),
            Err(MalformedRequest::ClientAddressInvalid)
        );
        assert_eq!(chain(&[]), Err(MalformedRequest::ClientAddressMissing));
        let standard = |list| parse(header::FORWARDED, list);
        assert_eq!(
            standard(&["for=100.64.0.1;proto=http, For=\"[fd7a::1]:80\""]).as_deref(),
            Ok("fd7a::1")
        );
        assert_eq!(
            standard(&["for=100.64.0.1, proto=http"]),
            Err(MalformedRequest::ClientAddressInvalid)
        );
        let one = |list| parse(NGINX_CLIENT, list);
        assert_eq!(one(&["::ffff:100.64.0.1"]).as_deref(), Ok("100.64.0.1"));
        assert_eq!(
            one(&["100.64.0.1", "100.64.0.2"]),
            Err(MalformedRequest::AmbiguousHeader)
        );
        assert_eq!(
            one(&["100.64.0.1, 100.64.0.2"]),
            Err(MalformedRequest::ClientAddressInvalid)
        );
        for nobody in [
            &["unix:"],
            &["fd7a::1%19"],
            &["[fd7a::1%19]"],
            &["[fd7a::1%19]:80"],
        ] {
            assert_eq!(one(nobody), Err(MalformedRequest::ClientAddressInvalid));
        }
    }

    #[test]
    fn contradictory_targets_are_refused() {
        let names = ["x-original-uri", "original-uri", "x-original-url"];
        let target =
            |list: &[(&'static str, &'static str)]| consistent_target(&headers(list), names);
        assert_eq!(target(&[]), Ok(None));
        assert_eq!(
            target(&[
                ("x-original-url", "https://a.b/x?y"),
                ("original-uri", "/x?y")
            ]),
            Ok(Some("/x?y".into()))
        );
        assert_eq!(
            target(&[("x-original-uri", "/public"), ("original-uri", "/admin")]),
            Err(MalformedRequest::AmbiguousHeader)
        );
    }

    #[test]
    fn a_query_behind_the_host_hides_no_path() {
        assert_eq!(origin_form("/x?y"), Ok("/x?y"));
        assert_eq!(origin_form("https://a.b"), Ok("/"));
        assert_eq!(origin_form("https://a.b/x?y/z#w"), Ok("/x?y/z#w"));
        for bad in [
            "https://a.b?/public",
            "https://a.b?x/admin",
            "http://a.b#/public",
            "http://a.b\\public/x",
            "https://a.b?x",
        ] {
            assert_eq!(origin_form(bad), Err(MalformedRequest::BadHeader), "{bad}");
        }
    }

    #[test]
    fn an_envoy_prefix_is_a_whole_segment() {
        assert_eq!(
            Convention::of("/auth/envoy/a/../b"),
            Convention::Envoy { target: "/a/../b" }
        );
        assert_eq!(Convention::of("/auth/envoyx"), Convention::Nginx);
        assert_eq!(Convention::of("/auth/forwarded"), Convention::Forwarded);
        assert_eq!(Convention::of("/auth/forwarded/x"), Convention::Nginx);
    }

    fn forwarded(host: &str, target: &str, method: Method) -> ForwardedRequest {
        ForwardedRequest {
            client: [100, 64, 0, 1].into(),
            port: None,
            target: Target {
                host: Some(Host::parse(host).unwrap()),
                path: None,
                method: Some(method),
            },
            expected_tailnet: None,
            url: Some(("https".into(), host.into(), target.into())),
            reaches_browser: true,
        }
    }

    #[test]
    fn only_a_browser_that_opens_a_page_is_redirected_and_only_once() {
        let redirect = Redirect::parse("https://join.example.com/start").unwrap();
        let page = [("accept", "text/html,*/*")];
        let to = |forwarded: &ForwardedRequest, list: &[(&'static str, &'static str)]| {
            redirect
                .for_browser(forwarded, &headers(list))
                .map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(
            to(&forwarded("app.example.com", "/x?y=1", Method::GET), &page).as_deref(),
            Some(
                "https://join.example.com/start?rd=https%3A%2F%2Fapp.example.com%2Fx%3Fy%3D1%26tailbone_gate%3D1"
            )
        );
        for (forwarded, list) in [
            (forwarded("app.example.com", "/x", Method::POST), &page[..]),
            (
                forwarded("app.example.com", "/x", Method::GET),
                &[("accept", "*/*")],
            ),
            (
                forwarded("app.example.com", "/x", Method::GET),
                &[("accept", "application/json")],
            ),
            (
                forwarded("app.example.com", "/x", Method::GET),
                &[("accept", "text/html"), ("sec-fetch-mode", "cors")],
            ),
            (
                forwarded("app.example.com", "/x", Method::GET),
                &[
                    ("accept", "text/html"),
                    ("x-requested-with", "XMLHttpRequest"),
                ],
            ),
            (
                forwarded("app.example.com", "/x?a=b&tailbone_gate=1", Method::GET),
                &page,
            ),
            (
                forwarded("join.example.com", "/start/again", Method::GET),
                &page,
            ),
        ] {
            assert_eq!(to(&forwarded, list), None);
        }
        let fragment = Redirect::parse("https://join.example.com/#start").unwrap();
        let forwarded = forwarded("app.example.com", "/", Method::GET);
        assert_eq!(
            fragment.for_browser(&forwarded, &headers(&page)).unwrap(),
            "https://join.example.com/?rd=https%3A%2F%2Fapp.example.com%2F%3Ftailbone_gate%3D1#start"
        );
        assert!(Redirect::parse("javascript:alert(1)").is_none());
        assert!(Redirect::parse("//evil.example.com").is_none());
        assert!(Redirect::parse("https://a@b.example.com/").is_none());
    }
}
