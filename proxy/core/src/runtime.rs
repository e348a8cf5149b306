//! Runtime values: Envoy's layered runtime as far as static and admin layers go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Runtime keys and their values, read when configuration is compiled.
#[derive(Debug, Clone, Default)]
pub struct Runtime {
    values: BTreeMap<String, serde_json::Value>,
}

impl Runtime {
    /// From the merged layers.
    pub fn new(values: BTreeMap<String, serde_json::Value>) -> Runtime {
        Runtime { values }
    }

    /// The number of a key, else the default.
    pub fn number(&self, key: &str, default: f64) -> f64 {
        self.values.get(key).and_then(serde_json::Value::as_f64).unwrap_or(default)
    }

    /// Whether a boolean key holds, else the default.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        self.values.get(key).and_then(serde_json::Value::as_bool).unwrap_or(default)
    }

    /// The raw value of a key.
    pub fn get(&self, key: &str) -> Option<&serde_json::Value> {
        self.values.get(key)
    }
}

/// A share of requests, numerator over denominator (type/v3/percent.proto FractionalPercent).
#[derive(Debug, Clone)]
pub struct Fraction {
    /// Requests that count, of `denominator`; shared so that a runtime layer could change it.
    numerator: Arc<AtomicU64>,
    denominator: u64,
}

impl Fraction {
    /// `numerator` of `denominator` requests.
    pub fn new(numerator: u64, denominator: u64) -> Fraction {
        Fraction { numerator: Arc::new(AtomicU64::new(numerator)), denominator: denominator.max(1) }
    }

    /// Whether a request with this random number is in the share.
    pub fn draw(&self, random: u64) -> bool {
        random % self.denominator < self.numerator.load(Relaxed)
    }
}
