//! `plugin_attr.prometheus`

use crate::apisix;
use serde_json::Value;
use sixfold_core::error::ConfigError;
use sixfold_core::format::Format;
use std::time::Duration;

/// Upper bounds of latency buckets, milliseconds.
const LATENCY: [f64; 15] =
    [1., 2., 5., 10., 20., 50., 100., 200., 500., 1000., 2000., 5000., 10_000., 30_000., 60_000.];

/// How metrics look.
pub(super) struct Settings {
    /// `apisix_`
    pub(super) prefix: String,
    pub(super) buckets: Vec<f64>,
    pub(super) status: MetricSettings,
    pub(super) latency: MetricSettings,
    pub(super) bandwidth: MetricSettings,
}

/// What can be set for one metric.
#[derive(Default)]
pub(super) struct MetricSettings {
    /// Further labels and their templates.
    pub(super) extra: Vec<(String, Format)>,
    /// Series without a request for so long are dropped.
    pub(super) expire: Option<Duration>,
}

impl Settings {
    /// From the attributes; `null` takes the defaults.
    pub(super) fn new(attributes: &Value) -> Result<Settings, ConfigError> {
        let buckets = match attributes.get("default_buckets") {
            None => LATENCY.to_vec(),
            Some(list) => buckets(list)
                .ok_or_else(|| ConfigError::field("default_buckets", "must be ascending numbers"))?,
        };
        let of = |name: &str| MetricSettings::new(attributes.pointer(&format!("/metrics/{name}")));
        Ok(Settings {
            prefix: attributes.get("metric_prefix").and_then(Value::as_str).unwrap_or("apisix_").to_owned(),
            buckets,
            status: of("http_status")?,
            latency: of("http_latency")?,
            bandwidth: of("bandwidth")?,
        })
    }
}

impl MetricSettings {
    fn new(config: Option<&Value>) -> Result<MetricSettings, ConfigError> {
        let Some(config) = config else { return Ok(MetricSettings::default()) };
        let labels = config.get("extra_labels").and_then(Value::as_array).into_iter().flatten();
        let labels = labels.filter_map(Value::as_object).flatten();
        let extra = labels.map(|(name, value)| {
            let text =
                value.as_str().ok_or_else(|| ConfigError::new(format!("label '{name}' must be a text")))?;
            Ok((name.clone(), apisix::template(text)?))
        });
        let expire = config.get("expire").and_then(Value::as_u64).filter(|s| *s > 0).map(Duration::from_secs);
        Ok(MetricSettings { extra: extra.collect::<Result<_, ConfigError>>()?, expire })
    }
}

fn buckets(list: &Value) -> Option<Vec<f64>> {
    let bounds: Vec<f64> = list.as_array()?.iter().map(Value::as_f64).collect::<Option<_>>()?;
    (!bounds.is_empty() && bounds.is_sorted_by(|a, b| a < b)).then_some(bounds)
}
