//! What the configuration changes of metrics: which are not counted, and which labels they have.

use super::key::Key;
use super::labels::{LABELS, Standard, name};
use super::store::{METRICS, Metric};
use sixfold_core::cel::{Extras, Program};
use sixfold_core::metrics::LabelSet;
use sixfold_core::stream::Stream;
use sixfold_xds_api::istio_pb::stats::MetricConfig;
use std::sync::Arc;

/// The value of an expression.
pub(super) type Value = Arc<str>;

/// Changes of all metrics.
#[derive(Default)]
pub(super) struct Overrides {
    /// Expressions of labels with their texts, each once.
    expressions: Vec<(String, Program)>,
    changes: [Change; METRICS.len()],
}

/// Changes of one metric.
#[derive(Default)]
struct Change {
    is_dropped: bool,
    /// Standard labels that are left out, or have the value of an expression.
    replaced: Vec<(usize, Option<usize>)>,
    /// Further labels with their expressions.
    added: Vec<(Arc<str>, usize)>,
}

impl Overrides {
    /// As in Envoy, names of metrics and labels that nobody knows change nothing.
    pub(super) fn new(configs: &[MetricConfig]) -> Overrides {
        let mut overrides = Overrides::default();
        for config in configs {
            overrides.take(config);
        }
        overrides
    }

    fn take(&mut self, config: &MetricConfig) {
        // Envoy takes `match` too, and does nothing with it.
        let MetricConfig { dimensions, name: metric, tags_to_remove, r#match: _, drop } = config;
        let dimensions = dimensions.iter().filter_map(|(label, text)| Some((label, self.expression(text)?)));
        let dimensions: Vec<(&String, usize)> = dimensions.collect();
        let meant = METRICS.iter().zip(&mut self.changes);
        let meant = meant.filter(|((_, known), _)| metric.is_empty() && !drop || metric == known);
        for (_, change) in meant {
            if *drop {
                change.is_dropped = true;
                continue;
            }
            for label in tags_to_remove.iter().filter_map(|tag| LABELS.iter().position(|known| known == tag))
            {
                change.replace(label, None);
            }
            for (label, expression) in &dimensions {
                match LABELS.iter().position(|known| known == label) {
                    Some(known) => change.replace(known, Some(*expression)),
                    None => change.add(label, *expression),
                }
            }
        }
    }

    /// The place of an expression; as in Envoy, one that is none changes nothing.
    fn expression(&mut self, text: &str) -> Option<usize> {
        if let Some(known) = self.expressions.iter().position(|(known, _)| known == text) {
            return Some(known);
        }
        let extras = Extras { string_conversion: true, ..Extras::default() };
        match Program::parse(text, extras) {
            Ok(program) => self.expressions.push((text.to_owned(), program)),
            Err(error) => {
                tracing::debug!("istio.stats: \"{text}\" is no expression: {error}");
                return None;
            }
        }
        Some(self.expressions.len() - 1)
    }

    /// Adds the values of the expressions to a key.
    pub(super) fn add_to(&self, stream: &Stream, key: &mut Key) {
        self.expressions.iter().for_each(|(_, program)| key.write(|out| write(program, stream, out)));
    }

    /// The values of the expressions, for the labels of a series that there was not.
    pub(super) fn values(&self, stream: &Stream) -> Vec<Value> {
        let value = |(_, program): &(String, Program)| {
            let mut text = Vec::new();
            write(program, stream, &mut text);
            String::from_utf8_lossy(&text).into()
        };
        self.expressions.iter().map(value).collect()
    }

    /// Whether the metric is not counted.
    pub(super) fn drops(&self, metric: Metric) -> bool {
        self.of(metric).is_some_and(|change| change.is_dropped)
    }

    /// The labels of a metric, with the values of expressions.
    pub(super) fn apply(&self, metric: Metric, labels: &Standard, values: &[Value]) -> LabelSet {
        let change = self.of(metric);
        let value = |expression: usize| values.get(expression).cloned().unwrap_or_default();
        let replaced = |label: usize| {
            let found = change?.replaced.iter().find(|(known, _)| *known == label)?;
            Some(found.1.map(value))
        };
        let kept = labels.iter().filter_map(|(label, own)| {
            let text = replaced(*label).unwrap_or_else(|| Some(own.clone()))?;
            Some((name(*label), text))
        });
        let added = change.into_iter().flat_map(|change| &change.added);
        kept.chain(added.map(|(label, expression)| (label.clone(), value(*expression)))).collect()
    }

    fn of(&self, metric: Metric) -> Option<&Change> {
        self.changes.get(metric as usize)
    }
}

/// The value of an expression.
fn write(program: &Program, stream: &Stream, out: &mut Vec<u8>) {
    if !program.write(stream, false, out) {
        out.extend_from_slice(b"unknown");
    }
}

impl Change {
    fn replace(&mut self, label: usize, by: Option<usize>) {
        self.replaced.retain(|(known, _)| *known != label);
        self.replaced.push((label, by));
    }

    fn add(&mut self, label: &str, expression: usize) {
        self.added.retain(|(known, _)| **known != *label);
        self.added.push((label.into(), expression));
    }
}
