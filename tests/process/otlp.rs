//! Traces and metrics of the real program as a collector receives them: their contents, what they
//! never contain, and the cost of a failing collector.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, extract::State, response::IntoResponse};
use http::{HeaderMap, StatusCode, Uri};
use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::{Metric, metric::Data, number_data_point},
    trace::v1::Span,
};
use prost::Message;
use tempfile::TempDir;
use testkit::{
    daemon::Daemon,
    eventually,
    http::{Answer, Connection, request},
    tailnet::{DevnetTailnet, Owner, Tailnet},
};

use super::{alone, tailbone};

/// A collector on loopback that keeps everything it receives.
#[derive(Clone)]
struct Collector {
    addr: SocketAddr,
    got: Arc<Mutex<Vec<Got>>>,
    /// The status that it answers; with 0 it never answers.
    status: Arc<AtomicU16>,
}

#[derive(Clone)]
struct Got {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Collector {
    async fn start(status: u16) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Self {
            addr: listener.local_addr().unwrap(),
            got: Arc::default(),
            status: Arc::new(AtomicU16::new(status)),
        };
        let router = Router::new().fallback(take).with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        collector
    }

    fn all(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    fn messages<M: Message + Default>(&self, path: &str) -> Vec<M> {
        self.all()
            .iter()
            .filter(|got| got.path == path)
            .map(|got| M::decode(got.body.clone()).unwrap())
            .collect()
    }

    fn spans(&self) -> Vec<Span> {
        self.messages::<ExportTraceServiceRequest>("/v1/traces")
            .into_iter()
            .flat_map(|message| message.resource_spans)
            .flat_map(|resource| resource.scope_spans)
            .flat_map(|scope| scope.spans)
            .collect()
    }

    /// The metrics in the last message.
    fn metrics(&self) -> Vec<Metric> {
        self.messages::<ExportMetricsServiceRequest>("/v1/metrics")
            .pop()
            .into_iter()
            .flat_map(|message| message.resource_metrics)
            .flat_map(|resource| resource.scope_metrics)
            .flat_map(|scope| scope.metrics)
            .collect()
    }

    fn tokens_issued(&self) -> f64 {
        let metrics = self.metrics();
        let Some(Data::Sum(tokens)) = metrics
            .iter()
            .find(|metric| metric.name == "tailbone_tokens_total")
            .and_then(|metric| metric.data.as_ref())
        else {
            return 0.0;
        };
        let issued = tokens
            .data_points
            .iter()
            .find(|point| attribute(&point.attributes, "result") == "issued");
        match issued.and_then(|point| point.value) {
            Some(number_data_point::Value::AsDouble(value)) => value,
            _ => 0.0,
        }
    }
}

async fn take(
    State(collector): State<Collector>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    collector.got.lock().unwrap().push(Got {
        path: uri.path().to_owned(),
        headers,
        body,
    });
    match collector.status.load(Ordering::Relaxed) {
        0 => std::future::pending().await,
        status => StatusCode::from_u16(status).unwrap(),
    }
}

/// An attribute as text, whatever its type.
fn attribute(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

/// An issuer that exports to the collector.
struct Issuer {
    daemon: Daemon,
    _folder: TempDir,
    key: String,
    host: String,
}

impl Issuer {
    async fn start(tailnet: &DevnetTailnet, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        let host = tailnet.host("tailbone");
        let key = tailnet.devnet.ready_key().await;
        let mut daemon = tailbone(&folder)
            .on(tailnet.devnet)
            .auth_key(&key)
            .host(&host)
            .flags(&["--key-algorithm", "ES256"])
            .flags(flags)
            .variables(variables)
            .start();
        daemon.listening(1).await;
        Self {
            daemon,
            _folder: folder,
            key,
            host,
        }
    }

    async fn issue(&self, node: &dyn tailbone::tailnet::Node, trace: Option<&str>) -> Answer {
        let mut post = request("POST", "/issue");
        if let Some(trace) = trace {
            post.headers_mut()
                .insert("traceparent", trace.parse().unwrap());
        }
        let answer = Connection::to(node, &self.host, 80).await.send(post).await;
        assert_eq!(answer.status(), 200, "{answer:?}");
        answer
    }

    /// Stops the server and returns how long that took.
    fn stop(&mut self) -> Duration {
        let began = Instant::now();
        let status = self.daemon.stop();
        assert_eq!(status.code(), Some(0), "{}", self.daemon.log());
        began.elapsed()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_collector_gets_the_spans_and_numbers_of_a_token_and_nothing_secret() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let collector = Collector::start(200).await;
        let alice = tailnet
            .node("alice", Owner::User("alice@example.com"))
            .await;
        let endpoint = format!("http://{}", collector.addr);
        // OpenTelemetry's own variables are enough.
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "authorization=Bearer%20collector-key",
            ),
            ("OTEL_SERVICE_NAME", "tokens"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test"),
            ("CONTAINER_APP_REPLICA_NAME", "tokens--abc-1"),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ];
        let mut issuer = Issuer::start(&tailnet, &["--otlp-interval", "100ms"], &variables).await;
        let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let answer = issuer
            .issue(&*alice, Some(&format!("00-{trace}-{parent}-01")))
            .await;

        let span = eventually("the request's span", async || {
            let spans = collector.spans();
            let found = spans.iter().find(|span| span.name == "POST /issue");
            found.cloned().ok_or(format!("{spans:?}"))
        })
        .await;
        assert_eq!(
            (hex(&span.trace_id), hex(&span.parent_span_id)),
            (trace.to_owned(), parent.to_owned())
        );
        for (name, value) in [
            ("component", "issuer"),
            ("request_id", answer.header("x-request-id")),
            ("http.request.method", "POST"),
            ("http.route", "/issue"),
            ("http.response.status_code", "200"),
            ("caller.kind", "user"),
        ] {
            assert_eq!(attribute(&span.attributes, name), value, "{name}: {span:?}");
        }
        assert!(
            span.events.is_empty(),
            "log lines are for the log: {span:?}"
        );
        // WhoIs is asked for the request, unless the network map has changed since the connection
        // came: then the identity was refreshed for the connection before, outside of any request.
        let children = eventually("its children", async || {
            let (mut children, others): (Vec<_>, Vec<_>) = collector
                .spans()
                .into_iter()
                .partition(|other| other.parent_span_id == span.span_id);
            children.sort_by(|one, other| one.name.cmp(&other.name));
            let names: Vec<_> = children.iter().map(|child| child.name.as_str()).collect();
            let refreshed = |other: &Span| other.name == "whois" && other.parent_span_id.is_empty();
            let complete =
                names == ["sign", "whois"] || names == ["sign"] && others.iter().any(refreshed);
            complete
                .then_some(children.clone())
                .ok_or(format!("{children:?} beside {others:?}"))
        })
        .await;
        assert!(children.iter().all(|child| child.trace_id == span.trace_id));
        // The first key was published at the start, without a request.
        let publish = collector
            .spans()
            .into_iter()
            .find(|span| span.name == "publish")
            .unwrap();
        assert_ne!(publish.trace_id, span.trace_id);

        eventually("the token is counted", async || {
            let issued = collector.tokens_issued();
            (issued == 1.0).then_some(()).ok_or(format!("{issued}"))
        })
        .await;
        let names: Vec<_> = collector
            .metrics()
            .into_iter()
            .map(|metric| metric.name)
            .collect();
        for name in [
            "tailbone_ready",
            "tailbone_signing_seconds",
            "tailbone_join_state",
            "tailbone_build_info",
            "process_open_fds",
        ] {
            assert!(
                names.iter().any(|known| known == name),
                "{name} is not in {names:?}"
            );
        }

        issuer.stop();
        let message = collector
            .messages::<ExportTraceServiceRequest>("/v1/traces")
            .pop()
            .unwrap();
        let resource = message.resource_spans[0]
            .resource
            .clone()
            .unwrap()
            .attributes;
        let message = collector
            .messages::<ExportMetricsServiceRequest>("/v1/metrics")
            .pop()
            .unwrap();
        let same = message.resource_metrics[0]
            .resource
            .clone()
            .unwrap()
            .attributes;
        for attributes in [resource, same] {
            assert_eq!(attribute(&attributes, "service.name"), "tokens");
            assert_eq!(attribute(&attributes, "deployment.environment"), "test");
            assert_eq!(
                attribute(&attributes, "service.instance.id"),
                "tokens--abc-1"
            );
            assert_eq!(
                attribute(&attributes, "service.version"),
                env!("CARGO_PKG_VERSION")
            );
        }
        let token = answer.json()["token"].as_str().unwrap().to_owned();
        let mut secrets: Vec<&str> = token.split('.').collect();
        secrets.extend([issuer.key.as_str(), "collector-key", "alice"]);
        for got in collector.all() {
            assert_eq!(got.headers["authorization"], "Bearer collector-key");
            assert_eq!(got.headers["content-type"], "application/x-protobuf");
            let text = String::from_utf8_lossy(&got.body).into_owned();
            for secret in &secrets {
                assert!(!text.contains(secret), "{secret} was sent to {}", got.path);
            }
        }
        let said = issuer.daemon.log();
        assert!(
            !said.contains("WRN") && !said.contains("collector-key"),
            "{said}"
        );
        assert!(
            !said.contains("caller.kind"),
            "what a span tells is in the log's lines:\n{said}"
        );
    });
}

/// The switches that tsiam's documents name.
#[test]
fn each_signal_can_be_left_out_by_opentelemetrys_variables() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let (traces, metrics) = ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER");
        let cases = [
            (vec![(traces, "none")], [false, true], 0),
            (vec![(metrics, "none"), (traces, "otlp")], [true, false], 0),
            (
                vec![(metrics, "prometheus"), (traces, "console")],
                [false; 2],
                2,
            ),
            (vec![("OTEL_SDK_DISABLED", "true")], [false; 2], 0),
        ];
        for (switches, exported, warnings) in cases {
            let collector = Collector::start(200).await;
            let endpoint = format!("http://{}", collector.addr);
            let mut variables = vec![("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
            variables.extend(&switches);
            let mut issuer = Issuer::start(&tailnet, &[], &variables).await;
            // The publication of the first key has a span.
            issuer.daemon.ready();
            // Which exports what is left.
            issuer.stop();
            let all = collector.all();
            let got = ["/v1/traces", "/v1/metrics"]
                .map(|path| all.iter().any(|message| message.path == path));
            assert_eq!(got, exported, "{switches:?}");
            let said = issuer.daemon.log();
            let told = said.matches("only otlp and none are known here").count();
            assert_eq!(told, warnings, "{switches:?}: {said}");
        }
    });
}

#[test]
fn a_stop_exports_the_last_spans_and_numbers() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let collector = Collector::start(200).await;
        let alice = tailnet
            .node("alice", Owner::User("alice@example.com"))
            .await;
        let endpoint = format!("http://{}", collector.addr);
        let more = ["--otlp-endpoint", &endpoint, "--otlp-interval", "1h"];
        let mut issuer =
            Issuer::start(&tailnet, &more, &[("OTEL_BSP_SCHEDULE_DELAY", "3600000")]).await;
        issuer.issue(&*alice, None).await;
        assert!(collector.spans().is_empty());
        issuer.stop();
        let spans = collector.spans();
        let span = spans
            .iter()
            .find(|span| span.name == "POST /issue")
            .unwrap_or_else(|| panic!("{spans:?}"));
        assert!(span.parent_span_id.is_empty(), "{span:?}");
        assert!(collector.tokens_issued() > 0.0, "{:?}", collector.metrics());
    });
}

#[test]
fn a_collector_in_trouble_costs_one_warning_and_no_token() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let collector = Collector::start(503).await;
        let alice = tailnet
            .node("alice", Owner::User("alice@example.com"))
            .await;
        let endpoint = format!("http://{}", collector.addr);
        let more = [
            "--otlp-endpoint",
            &endpoint,
            "--otlp-interval",
            "100ms",
            "--grace",
            "1s",
        ];
        let mut issuer = Issuer::start(&tailnet, &more, &[("OTEL_BSP_SCHEDULE_DELAY", "50")]).await;
        issuer.issue(&*alice, None).await;
        eventually("some tries", async || {
            let tries = collector.all().len();
            (tries >= 6).then_some(()).ok_or(format!("{tries}"))
        })
        .await;
        let warnings = |said: &str| said.matches("the collector does not take").count();
        assert_eq!(warnings(&issuer.daemon.log()), 1, "{}", issuer.daemon.log());

        collector.status.store(200, Ordering::Relaxed);
        issuer.daemon.logs("takes traces and metrics again").await;

        // A collector that never answers delays neither tokens nor the end.
        collector.status.store(0, Ordering::Relaxed);
        let before = collector.all().len();
        eventually("it hangs", async || {
            let tries = collector.all().len();
            (tries > before).then_some(()).ok_or(format!("{tries}"))
        })
        .await;
        issuer.issue(&*alice, None).await;
        let took = issuer.stop();
        assert!(
            took < Duration::from_secs(6),
            "{took:?}: {}",
            issuer.daemon.log()
        );
        assert_eq!(warnings(&issuer.daemon.log()), 1, "{}", issuer.daemon.log());
    });
}
