//! Envoy's rbac filter for connections (source/extensions/filters/network/rbac): who may connect.
//!
//! It decides when the client has sent something, and not before: by then filters before it have noted what they know.

use super::{ClientBytes, Closing, ConnectionFilter, FilterStep};
use crate::metrics::{Registry, scope};
use crate::plugin::Slot;
use crate::rbac::{Rules, ShadowKeys, Verdict};
use crate::stream::Stream;
use std::time::Duration;

/// Whose dynamic metadata the results of shadow rules are.
const NAME: &str = "envoy.filters.network.rbac";

crate::stat_block! {
    /// Statistics under `PREFIX.rbac.`.
    pub struct RbacStats { counters: [allowed, denied], gauges: [], histograms: [] }
}

crate::stat_block! {
    /// Statistics under `PREFIX.rbac.` and the prefix of the shadow rules.
    pub struct ShadowRbacStats { counters: [shadow_allowed, shadow_denied], gauges: [], histograms: [] }
}

/// What a [`ConnectionRbac`] is made of.
#[derive(Debug, Default)]
pub struct RbacSettings {
    /// What decides; without it everybody may connect.
    pub rules: Option<Rules>,
    /// What only says what it would do.
    pub shadow: Option<Rules>,
    /// Prefix of the shadow rules' statistics and metadata; may be empty.
    pub shadow_prefix: String,
    /// Decides anew with all that the client sends (`CONTINUOUS`), not only the first time.
    pub continuous: bool,
    /// How long a connection that is denied stays open, unread.
    pub delay: Duration,
}

/// Rules, and rules that only count and note what they would do.
pub struct ConnectionRbac {
    settings: RbacSettings,
    keys: ShadowKeys,
    stats: RbacStats,
    shadow_stats: ShadowRbacStats,
}

impl ConnectionRbac {
    /// Statistics stand under `stat_prefix`, those of the shadow rules under their prefix behind it.
    pub fn new(registry: &Registry, stat_prefix: &str, settings: RbacSettings) -> ConnectionRbac {
        let prefix = settings.shadow_prefix.as_str();
        let stats = RbacStats::new(registry, &scope(&[stat_prefix, "rbac"]));
        let shadow_stats = ShadowRbacStats::new(registry, &scope(&[stat_prefix, "rbac", prefix]));
        ConnectionRbac { keys: ShadowKeys::new(NAME, prefix), settings, stats, shadow_stats }
    }

    fn note_shadow(&self, connection: &mut Stream, rules: &Rules) {
        let verdict = rules.judge(connection);
        match verdict.allowed {
            true => self.shadow_stats.shadow_allowed().inc(),
            false => self.shadow_stats.shadow_denied().inc(),
        }
        self.keys.note(&verdict, connection);
    }

    fn refuse(&self, verdict: &Verdict<'_>) -> FilterStep {
        self.stats.denied().inc();
        FilterStep::Close(Closing {
            details: verdict.details().into(),
            reason: "rbac_deny_close",
            delay: self.settings.delay,
            status: 0,
        })
    }
}

impl ConnectionFilter for ConnectionRbac {
    fn on_data(&self, connection: &mut Stream, _: Slot, _: &mut ClientBytes<'_>) -> FilterStep {
        if let Some(shadow) = &self.settings.shadow {
            self.note_shadow(connection, shadow);
        }
        if let Some(rules) = &self.settings.rules {
            let verdict = rules.judge(connection);
            if !verdict.allowed {
                return self.refuse(&verdict);
            }
            self.stats.allowed().inc();
            verdict.hint(connection);
        }
        if self.settings.continuous { FilterStep::Continue } else { FilterStep::Done }
    }
}

impl std::fmt::Debug for ConnectionRbac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.settings.fmt(f)
    }
}
