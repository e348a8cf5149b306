//! Statistics whose names are families with labels of their own: shown without `envoy_` before them, as Envoy does with a custom
//! statistics namespace.

use super::Value;
use std::sync::Arc;

/// Statistics with labels of their own, put together when they are asked for.
pub trait Labelled: Send + Sync {
    /// Hands out each of them with the value of this moment.
    fn list(&self, show: &mut dyn FnMut(LabelledSample));
}

/// Labels of a series: names and values, in the order in which they are shown.
pub type LabelSet = Arc<[(Arc<str>, Arc<str>)]>;

/// One series at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledSample {
    /// The namespace, which stands before the name where there are no labels: `istiocustom`.
    pub namespace: &'static str,
    /// The family, such as `istio_requests_total`.
    pub family: Arc<str>,
    /// Its labels.
    pub labels: LabelSet,
    /// Its value.
    pub value: Value,
}

impl LabelledSample {
    /// Its name where there are no labels: `istiocustom.istio_requests_total.reporter.source…`.
    pub fn flat_name(&self) -> String {
        let mut name = format!("{}.{}", self.namespace, self.family);
        for (label, value) in self.labels.iter() {
            name.extend([".", label, ".", value]);
        }
        name
    }
}
