//! Settings of the OTLP export: ours, and OpenTelemetry's variables with lower precedence.

use serde_json::json;

use super::{file, load, mistake, remarks, run, show, with_file};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";

#[test]
fn nothing_is_exported_unless_asked_for() {
    assert_eq!(load(&[]).unwrap().server.otlp, None);
    // Headers alone do not enable the export.
    assert_eq!(load(&[(HEADERS, "a=b")]).unwrap().server.otlp, None);
}

#[test]
fn opentelemetrys_variables_count_where_ours_are_not_given() {
    let both = [(ENDPOINT, "http://theirs:4318"), (HEADERS, "a=1,B=x%20y")];
    let otlp = load(&both).unwrap().server.otlp.unwrap();
    assert_eq!(otlp.endpoint, "http://theirs:4318");
    let headers: Vec<_> = otlp
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.reveal()))
        .collect();
    assert_eq!(headers, [("a", "1"), ("b", "x y")]);
    assert_eq!(
        show(&[], &both)["server.telemetry.otlp.endpoint"],
        (json!("http://theirs:4318"), format!("variable {ENDPOINT}"))
    );
    assert_eq!(
        show(&[], &both)["server.telemetry.otlp.headers"].0,
        json!("(hidden)")
    );

    let ours = ("TB_SERVER_TELEMETRY_OTLP_ENDPOINT", "http://ours:4318");
    let otlp = load(&[both[0], ours]).unwrap().server.otlp.unwrap();
    assert_eq!(otlp.endpoint, "http://ours:4318");
    let (_directory, path) = file(
        "t.toml",
        "[server.telemetry.otlp]\nendpoint = 'http://file:4318'\n",
    );
    let shown = show(&["--config", path.to_str().unwrap()], &both);
    assert_eq!(
        shown["server.telemetry.otlp.endpoint"].0,
        json!("http://file:4318")
    );
}

#[test]
fn opentelemetrys_variables_say_what_is_exported() {
    let (traces, metrics) = ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER");
    let signals = |more: &[(&str, &str)]| {
        let mut variables = vec![(ENDPOINT, "http://c:4318")];
        variables.extend(more);
        let otlp = load(&variables).unwrap().server.otlp;
        otlp.map(|otlp| (otlp.signals.traces, otlp.signals.metrics))
    };
    assert_eq!(signals(&[]), Some((true, true)));
    assert_eq!(signals(&[(traces, "none")]), Some((false, true)));
    assert_eq!(signals(&[(metrics, "none")]), Some((true, false)));
    assert_eq!(signals(&[(metrics, "console, otlp")]), Some((true, true)));
    assert_eq!(signals(&[(traces, "none"), (metrics, "none")]), None);
    // Our setting says that both are wanted.
    let ours = ("TB_SERVER_TELEMETRY_OTLP_ENDPOINT", "http://ours:4318");
    assert_eq!(signals(&[ours, (traces, "none")]), Some((true, true)));

    let prometheus = [(ENDPOINT, "http://c:4318"), (metrics, "prometheus")];
    let (warnings, _) = remarks(&prometheus);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let start = "OTEL_METRICS_EXPORTER=prometheus: only otlp and none are known here";
    assert!(warnings[0].starts_with(start), "{warnings:?}");
    assert_eq!(signals(&prometheus[1..]), Some((true, false)));
}

#[test]
fn mistakes_in_opentelemetrys_variables_are_warnings() {
    for (variables, words) in [
        (vec![(ENDPOINT, "collector:4317")], "not an address"),
        (vec![(ENDPOINT, "http://u:hush@c:4318")], "name or password"),
        (
            vec![
                (ENDPOINT, "http://c:4317"),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ],
            "only http/protobuf is spoken here",
        ),
    ] {
        let (warnings, mistakes) = remarks(&variables);
        assert_eq!(mistakes, [""; 0]);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0].contains(words) && !warnings[0].contains("hush"),
            "{warnings:?}"
        );
        assert_eq!(load(&variables).unwrap().server.otlp, None);
    }
    let odd = [(ENDPOINT, "http://c:4318"), (HEADERS, "hush")];
    let (warnings, mistakes) = remarks(&odd);
    assert_eq!(mistakes, [""; 0]);
    assert!(
        warnings[0].contains("pair 1 is not name=value") && !warnings[0].contains("hush"),
        "{warnings:?}"
    );
    assert!(load(&odd).unwrap().server.otlp.unwrap().headers.is_empty());
    let off = [(ENDPOINT, "http://c:4318"), ("OTEL_SDK_DISABLED", "true")];
    assert_eq!(load(&off).unwrap().server.otlp, None);
}

#[test]
fn headers_are_secret_and_mistakes_in_our_settings_are_errors() {
    let told = mistake("TB_SERVER_TELEMETRY_OTLP_HEADERS", "hush");
    assert!(
        told.contains("pair 1 is not name=value") && !told.contains("hush"),
        "{told}"
    );
    let told = mistake("TB_SERVER_TELEMETRY_OTLP_ENDPOINT", "c:4317");
    assert!(told.contains("not an address"), "{told}");
    let (_directory, path) = file("headers", "authorization=Bearer key\n");
    let variables = [
        (
            "TB_SERVER_TELEMETRY_OTLP_HEADERS_FILE",
            path.to_str().unwrap(),
        ),
        ("TB_SERVER_TELEMETRY_OTLP_ENDPOINT", "http://c:4318"),
    ];
    let otlp = load(&variables).unwrap().server.otlp.unwrap();
    assert_eq!(otlp.headers[0].1.reveal(), "Bearer key");
    let ran = with_file(
        "t.toml",
        "[server.telemetry.otlp]\nheaders = 'a=hush'\n",
        &["config", "show"],
    );
    assert!(ran.code == 0 && !ran.out.contains("hush"), "{}", ran.out);
    let shown = run(&["config", "check", "--otlp-headers", "a=hush"], &[]);
    assert!(
        shown.err.contains("list of processes") && !shown.err.contains("hush"),
        "{}",
        shown.err
    );
}
