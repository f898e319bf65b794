//! Traces and metrics for a collector, over OTLP (http/protobuf), where the settings name one.
//!
//! Invariants
//! - Nobody waits for the collector: finished spans go into a bounded queue that drops what is too much, numbers are read when an
//!   export is due, and both are sent by tasks of their own.
//! - A collector that cannot be reached is one warning, until it can again; what could not be sent is lost.
//! - The numbers are those of the component `metrics`, from the same registry; nothing is counted twice.
//! - It is an HTTP client of the machine: nothing of it goes over the tailnet.
//!
//! What a span tells is in [`super::trace`]. OpenTelemetry's SDK reads its own variables: `OTEL_SERVICE_NAME`,
//! `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_…`.

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
use crate::{config, version};

pub use collector::NoCollector;

/// The running export.
#[derive(Debug)]
pub struct Otlp {
    collector: Collector,
    interval: Duration,
    resource: Resource,
    provider: SdkTracerProvider,
    numbers: Option<(JoinHandle<()>, Arc<Notify>)>,
}

impl Otlp {
    /// Within the runtime whose threads are to send.
    pub fn start(settings: &config::Otlp) -> Result<Self, NoCollector> {
        let collector = Collector::new(settings)?;
        let resource = resource();
        let exporter = Spans {
            collector: collector.clone(),
            resource: ResourceAttributesWithSchema::default(),
            runtime: Handle::current(),
        };
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_batch_exporter(exporter)
            .build();
        trace::export();
        Ok(Self {
            collector,
            interval: settings.interval,
            resource,
            provider,
            numbers: None,
        })
    }

    /// What hands finished spans of ours over. Events are for the log: their words are not made for others.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("tailbone"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|meta| meta.is_span() && log::is_ours(meta)))
    }

    /// Sends numbers from now on. `read`: a look at all of them.
    pub fn measure<F, Fut>(&mut self, read: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Registry> + Send + 'static,
    {
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
                    // The collector has said what is wrong with it.
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

    /// Sends what there is still, within the time at most.
    pub async fn stop(&mut self, within: Duration) {
        let provider = self.provider.clone();
        // It blocks the thread that asks.
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

/// Who we are; what the variables say wins.
fn resource() -> Resource {
    let ours = Resource::builder_empty()
        .with_service_name("tailbone")
        .with_attribute(KeyValue::new("service.version", version::VERSION))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match std::env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => ours.with_service_name(name),
        _ => ours,
    }
    .build()
}

/// Sends finished spans. The SDK asks from a thread of its own, which knows no runtime.
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
