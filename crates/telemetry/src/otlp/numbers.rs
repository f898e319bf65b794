//! Converts a Prometheus registry to an OTLP message with the same names, labels and values.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point,
    },
    resource::v1::Resource,
};
use prometheus_client::{
    encoding::prometheus_protobuf::{
        encode,
        prometheus_data_model::{self as prometheus, LabelPair, MetricFamily},
    },
    registry::Registry,
};

pub(super) fn message(
    registry: &Registry,
    resource: &Resource,
    began: SystemTime,
    now: SystemTime,
) -> Result<ExportMetricsServiceRequest, std::fmt::Error> {
    let times = Times {
        began: nanos(began),
        now: nanos(now),
    };
    let families = encode(registry)?;
    Ok(ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource.clone()),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(InstrumentationScope {
                    name: "tailbone".to_owned(),
                    ..InstrumentationScope::default()
                }),
                metrics: families
                    .into_iter()
                    .filter_map(|family| times.metric(family))
                    .collect(),
                ..ScopeMetrics::default()
            }],
            ..ResourceMetrics::default()
        }],
    })
}

/// The time since which counters and sums run, and the time of reading.
struct Times {
    began: u64,
    now: u64,
}

impl Times {
    /// `None` if nothing has been counted yet.
    fn metric(&self, family: MetricFamily) -> Option<Metric> {
        let (mut gauges, mut counters, mut histograms) = (Vec::new(), Vec::new(), Vec::new());
        for metric in family.metric {
            let labels = attributes(metric.label);
            if let Some(histogram) = metric.histogram {
                histograms.push(self.histogram(labels, &histogram));
            } else if let Some(counter) = metric.counter {
                counters.push(self.point(labels, counter.value));
            } else if let Some(gauge) = metric.gauge {
                gauges.push(self.point(labels, gauge.value));
            }
        }
        let cumulative = AggregationTemporality::Cumulative.into();
        let data = if !histograms.is_empty() {
            Data::Histogram(Histogram {
                data_points: histograms,
                aggregation_temporality: cumulative,
            })
        } else if !counters.is_empty() {
            Data::Sum(Sum {
                data_points: counters,
                aggregation_temporality: cumulative,
                is_monotonic: true,
            })
        } else if !gauges.is_empty() {
            Data::Gauge(Gauge {
                data_points: gauges,
            })
        } else {
            return None;
        };
        Some(Metric {
            name: family.name,
            description: family.help,
            unit: match family.unit.as_str() {
                "bytes" => "By",
                "seconds" => "s",
                _ => "",
            }
            .to_owned(),
            data: Some(data),
            ..Metric::default()
        })
    }

    fn point(&self, attributes: Vec<KeyValue>, value: f64) -> NumberDataPoint {
        NumberDataPoint {
            attributes,
            start_time_unix_nano: self.began,
            time_unix_nano: self.now,
            value: Some(number_data_point::Value::AsDouble(value)),
            ..NumberDataPoint::default()
        }
    }

    fn histogram(
        &self,
        attributes: Vec<KeyValue>,
        histogram: &prometheus::Histogram,
    ) -> HistogramDataPoint {
        let mut below = 0;
        let counts = histogram.bucket.iter().map(|bucket| {
            // Prometheus counts everything below a bound, OTLP what lies between two bounds.
            let own = bucket.cumulative_count.saturating_sub(below);
            below = bucket.cumulative_count;
            own
        });
        HistogramDataPoint {
            attributes,
            start_time_unix_nano: self.began,
            time_unix_nano: self.now,
            count: histogram.sample_count,
            sum: Some(histogram.sample_sum),
            bucket_counts: counts.collect(),
            // The last bucket covers everything above the last bound.
            explicit_bounds: histogram
                .bucket
                .iter()
                .map(|bucket| bucket.upper_bound)
                .filter(|bound| *bound < f64::MAX)
                .collect(),
            ..HistogramDataPoint::default()
        }
    }
}

fn attributes(labels: Vec<LabelPair>) -> Vec<KeyValue> {
    labels
        .into_iter()
        .map(|label| KeyValue {
            key: label.name,
            value: Some(AnyValue {
                value: Some(any_value::Value::StringValue(label.value)),
            }),
            ..KeyValue::default()
        })
        .collect()
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::meter::Meter;

    #[test]
    fn counts_and_histograms_are_those_of_the_meter() {
        let meter = Meter::default();
        meter.token_issued("issuer", Duration::from_millis(3));
        meter.token_issued("issuer", Duration::from_secs(9));
        let mut registry = Registry::default();
        meter.register(registry.sub_registry_with_prefix("tailbone"));
        let began = UNIX_EPOCH + Duration::from_secs(5);
        let message = message(&registry, &Resource::default(), began, began).unwrap();
        let metrics = &message.resource_metrics[0].scope_metrics[0].metrics;
        let named = |name: &str| {
            let found = metrics.iter().find(|metric| metric.name == name);
            found.and_then(|metric| metric.data.as_ref())
        };
        let Some(Data::Sum(tokens)) = named("tailbone_tokens_total") else {
            panic!("{metrics:?}");
        };
        assert!(tokens.is_monotonic && tokens.data_points.len() == 1);
        let point = &tokens.data_points[0];
        assert_eq!(point.value, Some(number_data_point::Value::AsDouble(2.0)));
        assert_eq!(point.start_time_unix_nano, 5_000_000_000);
        assert_eq!(point.attributes.len(), 3);
        let Some(Data::Histogram(signing)) = named("tailbone_signing_seconds") else {
            panic!("{metrics:?}");
        };
        let point = &signing.data_points[0];
        assert_eq!((point.count, point.sum), (2, Some(9.003)));
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert_eq!(point.bucket_counts.iter().sum::<u64>(), 2);
        assert_eq!(point.bucket_counts.last(), Some(&1));
        let at = point
            .explicit_bounds
            .iter()
            .position(|bound| *bound == 0.005);
        assert_eq!(at.map(|at| point.bucket_counts[at]), Some(1));
        // Metrics without values are left out.
        assert!(named("tailbone_reloads_total").is_none());
    }
}
