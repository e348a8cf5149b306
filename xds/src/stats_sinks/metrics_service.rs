//! Statistics for Envoy's metrics service (source/extensions/stat_sinks/metrics_service), over one stream that is kept.

use std::future::Future;
use std::pin::Pin;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;
use sixfold_core::error::ConfigContext;
use sixfold_core::metrics::flush::{Change, Flush, Point, StatsSink};
use sixfold_core::metrics::render::{QUANTILES, quantile};
use sixfold_core::metrics::{BUCKETS, Distribution, Tagged};
use sixfold_xds_api::pb::envoy::config::metrics::v3::{HistogramEmitMode, MetricsServiceConfig};
use sixfold_xds_api::pb::envoy::service::metrics::v3::StreamMetricsMessage;
use sixfold_xds_api::pb::envoy::service::metrics::v3::stream_metrics_message::Identifier;
use sixfold_xds_api::pb::io::prometheus::client::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType, Quantile, Summary,
};
use sixfold_xds_api::values::{Result, bool_or, enum_value, required};

use crate::collector::{self, Kept};
use crate::context::Context;

/// Where messages go.
const METHOD: &str = "/envoy.service.metrics.v3.MetricsService/StreamMetrics";

/// Tells the service.
pub(super) struct Service {
    stream: Kept,
    identifier: Identifier,
    form: Form,
    /// Statistics of one message; 0 has all in one.
    batch: usize,
}

/// What statistics become.
struct Form {
    counters_as_deltas: bool,
    labels: bool,
    histograms: HistogramEmitMode,
}

pub(super) fn sink(context: &Context, value: &MetricsServiceConfig) -> Result<Service> {
    let MetricsServiceConfig {
        grpc_service,
        // There is one version.
        transport_api_version: _,
        report_counters_as_deltas,
        emit_tags_as_labels,
        histogram_emit_mode,
        batch_size,
    } = value;
    let service = required(grpc_service, "grpc_service")?;
    super::is_static(context, service)?;
    let form = Form {
        counters_as_deltas: bool_or(report_counters_as_deltas, false),
        labels: *emit_tags_as_labels,
        histograms: enum_value(*histogram_emit_mode, "histogram_emit_mode")?,
    };
    Ok(Service {
        stream: Kept::new(collector::grpc(context, service).in_key("grpc_service")?, METHOD),
        identifier: Identifier { node: Some((*context.node.whole).clone()) },
        form,
        batch: *batch_size as usize,
    })
}

impl StatsSink for Service {
    fn flush<'a>(&'a mut self, flush: &'a Flush) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        let batch = if self.batch == 0 { usize::MAX } else { self.batch };
        Box::pin(async move {
            for points in flush.points.chunks(batch.min(flush.points.len()).max(1)) {
                let envoy_metrics =
                    points.iter().flat_map(|point| self.form.families(flush, point)).collect();
                let mut message = StreamMetricsMessage { identifier: None, envoy_metrics };
                let more = message.encode_to_vec();
                message.identifier = Some(self.identifier.clone());
                let encode = |first: bool| if first { message.encode_to_vec() } else { more.clone() };
                if !self.stream.send(encode).await {
                    return tracing::debug!("a service has not taken statistics");
                }
            }
        })
    }
}

impl Form {
    /// What a point becomes: a histogram two families, one of its quantiles and one of its buckets.
    fn families(&self, flush: &Flush, point: &Point) -> Vec<MetricFamily> {
        let (name, tags) = match self.labels {
            true => {
                let Tagged { name, tags } = flush.tagged(point);
                (name, tags)
            }
            false => (point.name.clone(), Vec::new()),
        };
        let label = |(name, value): (String, String)| LabelPair { name: Some(name), value: Some(value) };
        let metric = Metric {
            label: tags.into_iter().map(label).collect(),
            timestamp_ms: Some(millis(flush.at)),
            ..Metric::default()
        };
        let family = |kind: MetricType, metric: Metric| MetricFamily {
            name: Some(name.clone()),
            r#type: Some(kind as i32),
            metric: vec![metric],
            ..MetricFamily::default()
        };
        match &point.change {
            Change::Counter { total, delta } => {
                let value = if self.counters_as_deltas { *delta } else { *total };
                let counter = Counter { value: Some(value as f64), ..Counter::default() };
                vec![family(MetricType::Counter, Metric { counter: Some(counter), ..metric })]
            }
            Change::Gauge(value) => {
                let gauge = Gauge { value: Some(*value as f64) };
                vec![family(MetricType::Gauge, Metric { gauge: Some(gauge), ..metric })]
            }
            // Quantiles are of the time since the last flush, buckets of all, as in Envoy.
            Change::Histogram { total, delta } => {
                let summary = || Metric { summary: Some(summary(delta)), ..metric.clone() };
                let buckets = || Metric { histogram: Some(histogram(total)), ..metric.clone() };
                let mut families = Vec::new();
                if self.histograms != HistogramEmitMode::Histogram {
                    families.push(family(MetricType::Summary, summary()));
                }
                if self.histograms != HistogramEmitMode::Summary {
                    families.push(family(MetricType::Histogram, buckets()));
                }
                families
            }
        }
    }
}

fn millis(moment: SystemTime) -> i64 {
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn summary(seen: &Distribution) -> Summary {
    let quantile = |percent: f64| {
        let value = if seen.count > 0 { quantile(seen, percent) } else { f64::NAN };
        Quantile { quantile: Some(percent / 100.0), value: Some(value) }
    };
    Summary {
        sample_count: Some(seen.count),
        sample_sum: Some(seen.sum as f64),
        quantile: QUANTILES.map(quantile).into(),
        ..Summary::default()
    }
}

fn histogram(seen: &Distribution) -> Histogram {
    let bucket = |(upper, count): (&f64, u64)| Bucket {
        cumulative_count: Some(count),
        upper_bound: Some(*upper),
        ..Bucket::default()
    };
    Histogram {
        sample_count: Some(seen.count),
        sample_sum: Some(seen.sum as f64),
        bucket: BUCKETS.iter().zip(seen.below).map(bucket).collect(),
        ..Histogram::default()
    }
}
