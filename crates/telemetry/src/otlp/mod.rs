//! Exports traces and metrics to a collector over OTLP (http/protobuf), if the settings name one.
//!
//! Invariants
//! - Nobody waits for the collector: finished spans go into a bounded queue, which drops spans when
//!   it is full; numbers are read when an export is due; separate tasks send both.
//! - An outage of the collector causes one warning; what could not be sent is lost.
//! - The numbers are those of the component `metrics`, from the same registry; nothing is counted
//!   twice.
//! - The collector is called over the machine's own network, never over the tailnet.
//!
//! [`super::trace`] describes the contents of spans. OpenTelemetry's SDK reads its own variables:
//! `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_…`, and
//! `CONTAINER_APP_REPLICA_NAME` of Azure Container Apps.

mod collector;
mod numbers;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_proto::{
    tonic::{
        collector::trace::v1::ExportTraceServiceRequest, resource::v1::Resource as ResourceMessage,
    },
    transform::{
        common::tonic::ResourceAttributesWithSchema,
        trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    resource::EnvResourceDetector,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use prometheus_client::registry::Registry;
use tokio::{runtime::Handle, sync::Notify, task::JoinHandle, time::MissedTickBehavior};
use tracing::Subscriber;
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

use self::collector::{Collector, Signal};
use super::{log, trace};
use tailbone_values::Secret;

pub use collector::NoCollector;

/// Where traces and metrics are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Without the path of a signal.
    pub endpoint: String,
    /// Valid names and values of HTTP headers.
    pub headers: Vec<(String, Secret)>,
    pub interval: Duration,
    pub signals: Signals,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signals {
    pub traces: bool,
    pub metrics: bool,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            traces: true,
            metrics: true,
        }
    }
}

/// A running export.
#[derive(Debug)]
pub struct Otlp {
    collector: Collector,
    interval: Duration,
    signals: Signals,
    resource: Resource,
    provider: SdkTracerProvider,
    numbers: Option<(JoinHandle<()>, Arc<Notify>)>,
}

impl Otlp {
    /// To be called inside the runtime whose threads send. `version` is the program's.
    pub fn start(settings: &Settings, version: &'static str) -> Result<Self, NoCollector> {
        let collector = Collector::new(settings)?;
        let resource = resource(version);
        let exporter = Spans {
            collector: collector.clone(),
            resource: ResourceAttributesWithSchema::default(),
            runtime: Handle::current(),
        };
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_batch_exporter(exporter)
            .build();
        if settings.signals.traces {
            trace::export();
        }
        Ok(Self {
            collector,
            interval: settings.interval,
            signals: settings.signals,
            resource,
            provider,
            numbers: None,
        })
    }

    /// The tracing layer that exports our finished spans. Events stay in the log: their texts are
    /// not meant for other systems.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let traces = self.signals.traces;
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("tailbone"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(move |meta| {
                traces && meta.is_span() && log::is_ours(meta)
            }))
    }

    /// Starts to export numbers, which `read` collects.
    pub fn measure<F, Fut>(&mut self, read: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Registry> + Send + 'static,
    {
        if !self.signals.metrics {
            return;
        }
        let stop = Arc::new(Notify::new());
        let collector = self.collector.clone();
        let resource = ResourceMessage {
            attributes: ResourceAttributesWithSchema::from(&self.resource)
                .attributes
                .0,
            ..ResourceMessage::default()
        };
        let (interval, stopped) = (self.interval, stop.clone());
        let task = tokio::spawn(async move {
            let began = SystemTime::now();
            let mut ticks = tokio::time::interval(interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let last = tokio::select! {
                    _ = ticks.tick() => false,
                    () = stopped.notified() => true,
                };
                let registry = read().await;
                match numbers::message(&registry, &resource, began, SystemTime::now()) {
                    // The collector module logs its own failures.
                    Ok(message) => drop(collector.send(Signal::Metrics, &message).await),
                    Err(error) => {
                        tracing::warn!(target: "server", %error, "the numbers cannot be exported");
                    }
                }
                if last {
                    return;
                }
            }
        });
        self.numbers = Some((task, stop));
    }

    /// Sends what is left, within `within` at most.
    pub async fn stop(&mut self, within: Duration) {
        let provider = self.provider.clone();
        // The shutdown blocks its thread.
        let spans =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(within).is_ok());
        let numbers = self.numbers.take();
        let numbers = async {
            if let Some((task, stop)) = numbers {
                stop.notify_one();
                let _ = task.await;
            }
        };
        if tokio::time::timeout(within, async { tokio::join!(spans, numbers) })
            .await
            .is_err()
        {
            tracing::debug!(target: "server", "the collector did not take the last traces and metrics in time");
        }
    }
}

/// Our attributes, which the environment variables override.
fn resource(version: &'static str) -> Resource {
    let ours = Resource::builder_empty()
        .with_service_name("tailbone")
        .with_attribute(KeyValue::new("service.version", version))
        .with_detector(Box::new(EnvResourceDetector::new()));
    // Azure's name of the replica; tsiam too takes it as the instance.
    let ours = match std::env::var("CONTAINER_APP_REPLICA_NAME") {
        Ok(name) if !name.is_empty() => {
            ours.with_attribute(KeyValue::new("service.instance.id", name))
        }
        _ => ours,
    };
    match std::env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => ours.with_service_name(name),
        _ => ours,
    }
    .build()
}

/// Sends finished spans. The SDK calls it on a thread of its own, outside the runtime.
#[derive(Debug)]
struct Spans {
    collector: Collector,
    resource: ResourceAttributesWithSchema,
    runtime: Handle,
}

impl SpanExporter for Spans {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let message = ExportTraceServiceRequest {
            resource_spans: group_spans_by_resource_and_scope(batch, &self.resource),
        };
        let collector = self.collector.clone();
        let sent = self
            .runtime
            .spawn(async move { collector.send(Signal::Traces, &message).await });
        match sent.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(OTelSdkError::InternalFailure(error.to_string())),
            Err(error) => Err(OTelSdkError::InternalFailure(error.to_string())),
        }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}
