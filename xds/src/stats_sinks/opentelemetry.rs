//! Statistics for collectors of OpenTelemetry (source/extensions/stat_sinks/open_telemetry; opentelemetry-proto, metrics v1).

use std::future::Future;
use std::pin::Pin;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::{Message, Oneof};
use sixfold_core::metrics::flush::{Change, Flush, Point, StatsSink};
use sixfold_core::metrics::{BUCKETS, Distribution, Tagged};
use sixfold_xds_api::pb::envoy::extensions::stat_sinks::open_telemetry::v3::SinkConfig;
use sixfold_xds_api::pb::envoy::extensions::stat_sinks::open_telemetry::v3::sink_config::ProtocolSpecifier;
use sixfold_xds_api::pb::opentelemetry::proto::common::v1::KeyValue;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, bool_or, one_of};

use crate::context::Context;
use crate::otlp::{self, Collector, Export, Resource};

/// Values since the last time.
const DELTA: i32 = 1;
/// Values since the process began.
const CUMULATIVE: i32 = 2;

/// Tells a collector.
pub(super) struct Metrics {
    collector: Collector,
    resource: Resource,
    form: Form,
    /// Metrics of one message; 0 has all in one.
    batch: usize,
}

/// What statistics become.
struct Form {
    prefix: String,
    counters_as_deltas: bool,
    histograms_as_deltas: bool,
    /// Whether tags are attributes.
    attributes: bool,
    /// Whether names are without their tags.
    short_names: bool,
}

pub(super) fn sink(context: &Context, value: &SinkConfig) -> Result<Metrics> {
    let SinkConfig {
        resource_detectors,
        report_counters_as_deltas,
        report_histograms_as_deltas,
        emit_tags_as_attributes,
        use_tag_extracted_name,
        prefix,
        custom_metric_conversions,
        max_data_points_per_request,
        protocol_specifier,
    } = value;
    refuse!(custom_metric_conversions);
    let collector = match one_of::<SinkConfig, _>(protocol_specifier, "protocol_specifier")? {
        ProtocolSpecifier::GrpcService(service) => {
            super::is_static(context, service)?;
            Collector::grpc(context, service)?
        }
        ProtocolSpecifier::HttpService(service) => Collector::http(context, service)?,
    };
    let mut resource = Resource { attributes: Vec::new() };
    resource.add_sdk();
    resource.detect(resource_detectors)?;
    let form = Form {
        prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}.") },
        counters_as_deltas: *report_counters_as_deltas,
        histograms_as_deltas: *report_histograms_as_deltas,
        attributes: bool_or(emit_tags_as_attributes, true),
        short_names: bool_or(use_tag_extracted_name, true),
    };
    Ok(Metrics { collector, resource, form, batch: *max_data_points_per_request as usize })
}

impl StatsSink for Metrics {
    fn flush<'a>(&'a mut self, flush: &'a Flush) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        let batch = if self.batch == 0 { usize::MAX } else { self.batch };
        Box::pin(async move {
            for points in flush.points.chunks(batch.min(flush.points.len()).max(1)) {
                let metrics = points.iter().map(|point| self.form.metric(flush, point).encode_to_vec());
                let message = Export::encoded(&self.resource, None, metrics);
                if !self.collector.export(otlp::METRICS, message).await {
                    return tracing::debug!("a collector has not taken statistics");
                }
            }
        })
    }
}

impl Form {
    fn metric(&self, flush: &Flush, point: &Point) -> Metric {
        let Tagged { name, tags } = flush.tagged(point);
        let name = if self.short_names { name } else { point.name.clone() };
        let tags = if self.attributes { tags } else { Vec::new() };
        let attributes = tags.into_iter().map(|(tag, value)| otlp::text(&tag, value)).collect();
        let began = |deltas| nanos(if deltas { flush.since } else { flush.start });
        let temporality = |deltas| if deltas { DELTA } else { CUMULATIVE };
        let number = |start, value: u64, attributes| NumberDataPoint {
            start_time_unix_nano: start,
            time_unix_nano: nanos(flush.at),
            as_int: Some(value as i64),
            attributes,
        };
        let data = match &point.change {
            Change::Gauge(value) => {
                Data::Gauge(Gauge { data_points: vec![number(nanos(flush.since), *value, attributes)] })
            }
            Change::Counter { total, delta } => {
                let deltas = self.counters_as_deltas;
                let value = if deltas { *delta } else { *total };
                Data::Sum(Sum {
                    data_points: vec![number(began(deltas), value, attributes)],
                    aggregation_temporality: temporality(deltas),
                    is_monotonic: true,
                })
            }
            Change::Histogram { total, delta } => {
                let deltas = self.histograms_as_deltas;
                let seen = if deltas { delta } else { total };
                let times = (began(deltas), nanos(flush.at));
                Data::Histogram(Histogram {
                    data_points: vec![HistogramDataPoint::new(seen, times, attributes)],
                    aggregation_temporality: temporality(deltas),
                })
            }
        };
        Metric { name: format!("{}{name}", self.prefix), data: Some(data) }
    }
}

fn nanos(moment: SystemTime) -> u64 {
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// `Metric`
#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(oneof = "Data", tags = "5, 7, 9")]
    data: Option<Data>,
}

/// Its values.
#[derive(Clone, PartialEq, Oneof)]
enum Data {
    #[prost(message, tag = "5")]
    Gauge(Gauge),
    #[prost(message, tag = "7")]
    Sum(Sum),
    #[prost(message, tag = "9")]
    Histogram(Histogram),
}

/// `Gauge`
#[derive(Clone, PartialEq, Message)]
struct Gauge {
    #[prost(message, repeated, tag = "1")]
    data_points: Vec<NumberDataPoint>,
}

/// `Sum`
#[derive(Clone, PartialEq, Message)]
struct Sum {
    #[prost(message, repeated, tag = "1")]
    data_points: Vec<NumberDataPoint>,
    #[prost(int32, tag = "2")]
    aggregation_temporality: i32,
    #[prost(bool, tag = "3")]
    is_monotonic: bool,
}

/// `NumberDataPoint`
#[derive(Clone, PartialEq, Message)]
struct NumberDataPoint {
    #[prost(fixed64, tag = "2")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "3")]
    time_unix_nano: u64,
    /// A member of a `oneof`, which is there though it be 0.
    #[prost(sfixed64, optional, tag = "6")]
    as_int: Option<i64>,
    #[prost(message, repeated, tag = "7")]
    attributes: Vec<KeyValue>,
}

/// `Histogram`
#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(message, repeated, tag = "1")]
    data_points: Vec<HistogramDataPoint>,
    #[prost(int32, tag = "2")]
    aggregation_temporality: i32,
}

/// `HistogramDataPoint`
#[derive(Clone, PartialEq, Message)]
struct HistogramDataPoint {
    #[prost(fixed64, tag = "2")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "3")]
    time_unix_nano: u64,
    #[prost(fixed64, tag = "4")]
    count: u64,
    #[prost(double, optional, tag = "5")]
    sum: Option<f64>,
    #[prost(fixed64, repeated, tag = "6")]
    bucket_counts: Vec<u64>,
    #[prost(double, repeated, tag = "7")]
    explicit_bounds: Vec<f64>,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
}

impl HistogramDataPoint {
    fn new(
        seen: &Distribution,
        (start_time_unix_nano, time_unix_nano): (u64, u64),
        attributes: Vec<KeyValue>,
    ) -> HistogramDataPoint {
        HistogramDataPoint {
            start_time_unix_nano,
            time_unix_nano,
            count: seen.count,
            sum: Some(seen.sum as f64),
            bucket_counts: seen.counts().collect(),
            explicit_bounds: BUCKETS.to_vec(),
            attributes,
        }
    }
}
