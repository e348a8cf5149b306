//! Labels that `plugin_metadata` leaves empty (`disabled_labels`).

use super::render::{STATUS, TRAFFIC};
use serde::Deserialize;
use sixfold_core::error::ConfigError;
use sixfold_core::metrics::series::SEPARATOR;
use std::collections::BTreeMap;

/// What `plugin_metadata` of prometheus may say.
#[derive(Deserialize)]
pub(super) struct MetadataConfig {
    #[serde(default)]
    disabled_labels: BTreeMap<String, Vec<String>>,
}

/// Labels of metrics that are empty.
#[derive(Default)]
pub(super) struct DisabledLabels {
    pub(super) status: Labels,
    pub(super) latency: Labels,
    pub(super) bandwidth: Labels,
}

/// Labels of one metric, a bit each by their place.
#[derive(Clone, Copy, Default)]
pub(super) struct Labels(u16);

impl Labels {
    /// Takes the values of these out of the key of a series; nearly always there are none.
    pub(super) fn take_out(self, key: &mut Vec<u8>) {
        if self.0 == 0 {
            return;
        }
        let mut place = 0;
        key.retain(|byte| {
            place += u32::from(*byte == SEPARATOR);
            *byte == SEPARATOR || place >= u16::BITS || self.0 & (1 << place) == 0
        });
    }
}

impl DisabledLabels {
    pub(super) fn read(config: MetadataConfig) -> Result<DisabledLabels, ConfigError> {
        let MetadataConfig { disabled_labels } = config;
        let labels = |metric: &str, names: &[&str]| {
            let disabled = disabled_labels.get(metric);
            let is_disabled = |name: &str| disabled.is_some_and(|labels| labels.iter().any(|l| l == name));
            let bits = (0u32..).zip(names).filter(|(_, name)| is_disabled(name)).map(|(place, _)| 1 << place);
            Labels(bits.sum())
        };
        Ok(DisabledLabels {
            status: labels("http_status", &STATUS),
            latency: labels("http_latency", &TRAFFIC),
            bandwidth: labels("bandwidth", &TRAFFIC),
        })
    }
}
