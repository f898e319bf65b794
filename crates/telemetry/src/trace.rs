//! Spans of requests, for an exporter of traces. The log only uses their ids.
//!
//! Attributes are recorded after a span was created, because log lines show those that it was
//! created with. Without an exporter nothing is recorded (`exported`).
//!
//! Invariant: a span has values of our own (route, status, kind of caller) and the request's id,
//! but never a path, a header, a name or a token.

use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderMap, Method, StatusCode};
use opentelemetry::{
    propagation::{Extractor, TextMapPropagator},
    trace::TraceContextExt as _,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

static EXPORTED: AtomicBool = AtomicBool::new(false);

/// Whether spans are exported.
fn exported() -> bool {
    // Relaxed is enough: it is set once, before there are requests, and no other data depends on
    // it.
    EXPORTED.load(Ordering::Relaxed)
}

pub(super) fn export() {
    EXPORTED.store(true, Ordering::Relaxed);
}

/// Marks a request from a node of the tailnet, among its extensions.
#[derive(Debug, Clone, Copy)]
pub struct FromTailnet;

/// Creates the span of a request. It continues a trace that a tailnet node has begun. A trace from
/// elsewhere only gets a link, because its sender would also decide whether it is sampled.
pub fn request(
    component: &'static str,
    id: &str,
    method: &Method,
    route: Option<&str>,
    headers: &HeaderMap,
    from_tailnet: bool,
) -> Span {
    let span = tracing::info_span!(
        "request",
        component,
        request_id = %id,
        otel.name = Empty,
        otel.kind = Empty,
        otel.status_code = Empty,
        http.request.method = Empty,
        http.route = Empty,
        http.response.status_code = Empty,
        caller.kind = Empty,
    );
    if !exported() || span.is_disabled() {
        return span;
    }
    let context = TraceContextPropagator::new().extract(&Headers(headers));
    let remote = context.span().span_context().clone();
    if remote.is_valid() {
        if from_tailnet {
            // Only fails for a span that has already started.
            let _ = span.set_parent(context);
        } else {
            span.add_link(remote);
        }
    }
    let method = method_name(method);
    match route {
        Some(route) => {
            span.record("otel.name", format!("{method} {route}"));
            span.record("http.route", route);
        }
        None => {
            span.record("otel.name", method);
        }
    }
    span.record("otel.kind", "server");
    span.record("http.request.method", method);
    span
}

/// Records the status of the answer.
pub fn answered(span: &Span, status: StatusCode) {
    if !exported() {
        return;
    }
    span.record("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
}

/// Records the kind of caller of the current request, without a name.
pub fn caller(kind: &'static str) {
    if exported() {
        Span::current().record("caller.kind", kind);
    }
}

/// The method's name; all unknown methods are one value, as the conventions demand.
fn method_name(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    KNOWN
        .into_iter()
        .find(|name| *name == method.as_str())
        .unwrap_or("_OTHER")
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::{
        error::OTelSdkResult,
        trace::{SdkTracerProvider, SpanData, SpanExporter},
    };
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Kept {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().extend(batch);
            Ok(())
        }
    }

    #[test]
    fn a_trace_from_the_tailnet_continues_and_others_are_linked() {
        let kept = Kept::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(kept.clone())
            .build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let _here = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        export();
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let mut headers = HeaderMap::new();
        let value = format!("00-{trace}-00f067aa0ba902b7-01");
        headers.insert("traceparent", value.parse().unwrap());
        let made = |headers: &HeaderMap, from_tailnet, method: &Method, status| {
            let span = request("issuer", "1", method, Some("/issue"), headers, from_tailnet);
            answered(&span, status);
            drop(span);
            kept.0.lock().unwrap().pop().unwrap()
        };

        let span = made(&headers, true, &Method::POST, StatusCode::OK);
        assert_eq!(span.span_context.trace_id().to_string(), trace);
        assert_eq!(span.parent_span_id.to_string(), "00f067aa0ba902b7");
        assert_eq!(span.name, "POST /issue");

        let method = Method::from_bytes(b"BREW").unwrap();
        let span = made(&headers, false, &method, StatusCode::BAD_GATEWAY);
        assert_ne!(span.span_context.trace_id().to_string(), trace);
        let linked = span.links.links[0].span_context.trace_id();
        assert_eq!(linked.to_string(), trace);
        assert_eq!(span.name, "_OTHER /issue");
        assert!(
            matches!(span.status, opentelemetry::trace::Status::Error { .. }),
            "{span:?}"
        );

        headers.insert("traceparent", "00-nonsense".parse().unwrap());
        let span = made(&headers, true, &Method::GET, StatusCode::OK);
        assert_eq!(span.parent_span_id, opentelemetry::trace::SpanId::INVALID);
        assert!(span.links.links.is_empty());
    }
}
