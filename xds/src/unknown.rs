//! What is done about fields that a control plane sends and that nobody here knows: it speaks a newer language.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use sixfold_core::error::ConfigError;
use sixfold_core::metrics::Registry;
use sixfold_xds_api::unknown;
use sixfold_xds_api::values::Result;

sixfold_core::stat_block! {
    /// Under `server.`, as Envoy names them.
    pub struct UnknownStats {
        counters: [dynamic_unknown_fields], gauges: [], histograms: [],
    }
}

/// Kinds of unknown fields that are told at most; whoever sends more is told of no longer.
const MAX_TOLD: usize = 1000;

/// What becomes of a resource with an unknown field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnUnknown {
    /// It is taken, which is told and counted once for each type and its unknown fields.
    #[default]
    Warn,
    /// It is taken (`--ignore-unknown-dynamic-fields`).
    Ignore,
    /// It is refused (`--reject-unknown-dynamic-fields`).
    Reject,
}

/// Unknown fields of all that has come by itself.
pub struct Unknown {
    policy: OnUnknown,
    stats: UnknownStats,
    told: Mutex<BTreeSet<(&'static str, BTreeSet<u32>)>>,
}

/// Of nobody's statistics.
impl Default for Unknown {
    fn default() -> Unknown {
        Unknown::new(OnUnknown::default(), &Registry::default())
    }
}

impl Unknown {
    /// None yet; how many there are is shown in `registry`.
    pub fn new(policy: OnUnknown, registry: &Registry) -> Unknown {
        Unknown { policy, stats: UnknownStats::new(registry, "server."), told: Mutex::default() }
    }

    /// Looks at an encoded message of the type `full_name`.
    ///
    /// # Errors
    /// It has unknown fields, and such are refused.
    pub(crate) fn look(&self, full_name: &str, encoded: &[u8]) -> Result<()> {
        if self.policy == OnUnknown::Ignore {
            return Ok(());
        }
        for (kind, numbers) in unknown::fields(full_name, encoded) {
            if self.policy == OnUnknown::Reject {
                return Err(ConfigError::new(format!("{kind} has unknown fields, by number {numbers:?}")));
            }
            let mut told = self.told.lock();
            if told.len() < MAX_TOLD && told.insert((kind, numbers.clone())) {
                self.stats.dynamic_unknown_fields().inc();
                tracing::warn!(
                    "{kind} comes with unknown fields, by number {numbers:?}: they change nothing"
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// They were dropped without a sign, whatever the options said.
    #[test]
    fn unknown_fields_are_counted_once_a_kind_or_refused() {
        const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
        // Fields 9000 and 9001, each the number 5.
        let [one, other]: [&[u8]; 2] = [&[0xc0, 0xb2, 0x04, 5], &[0xc8, 0xb2, 0x04, 5]];
        let of = |policy| {
            let registry = Registry::new();
            let unknown = Unknown::new(policy, &registry);
            let looked =
                [one, one, other].map(|bytes| unknown.look(CLUSTER, bytes).map_err(|e| e.to_string()));
            (looked[0].clone(), registry.sum("server.", "dynamic_unknown_fields"))
        };
        assert_eq!(of(OnUnknown::Warn), (Ok(()), 2));
        assert_eq!(of(OnUnknown::Ignore), (Ok(()), 0));
        let refused = format!("{CLUSTER} has unknown fields, by number {{9000}}");
        assert_eq!(of(OnUnknown::Reject), (Err(refused), 0));
    }
}
