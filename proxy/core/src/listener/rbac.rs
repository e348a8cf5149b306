//! Envoy's rbac filter for connections (source/extensions/filters/network/rbac): who may connect.

use super::{Admission, ConnectionGuard};
use crate::connection::Connection;
use crate::metrics::{Registry, scope};
use crate::rbac::{Rules, Subject};

crate::stat_block! {
    /// Statistics under `PREFIX.rbac.`.
    pub struct RbacStats { counters: [allowed, denied], gauges: [], histograms: [] }
}

crate::stat_block! {
    /// Statistics under `PREFIX.rbac.` and the prefix of the shadow rules.
    pub struct ShadowRbacStats { counters: [shadow_allowed, shadow_denied], gauges: [], histograms: [] }
}

/// Rules, and rules that only count what they would do.
pub struct ConnectionRbac {
    rules: Option<Rules>,
    shadow: Option<Rules>,
    stats: RbacStats,
    shadow_stats: ShadowRbacStats,
}

impl ConnectionRbac {
    /// Statistics stand under `stat_prefix`, those of the shadow rules under `shadow_prefix` behind it.
    pub fn new(
        registry: &Registry,
        stat_prefix: &str,
        rules: Option<Rules>,
        shadow: Option<Rules>,
        shadow_prefix: &str,
    ) -> ConnectionRbac {
        let stats = RbacStats::new(registry, &scope(&[stat_prefix, "rbac"]));
        let shadow_stats = ShadowRbacStats::new(registry, &scope(&[stat_prefix, "rbac", shadow_prefix]));
        ConnectionRbac { rules, shadow, stats, shadow_stats }
    }
}

impl ConnectionGuard for ConnectionRbac {
    fn admit(&self, connection: &Connection) -> Admission {
        let subject = Subject::of_connection(connection);
        if let Some(shadow) = &self.shadow {
            match shadow.judge(&subject).allowed {
                true => self.shadow_stats.shadow_allowed().inc(),
                false => self.shadow_stats.shadow_denied().inc(),
            }
        }
        let Some(rules) = &self.rules else { return Admission::Allowed(None) };
        let verdict = rules.judge(&subject);
        if verdict.allowed {
            self.stats.allowed().inc();
            return Admission::Allowed(None);
        }
        self.stats.denied().inc();
        Admission::Denied(verdict.details())
    }
}

impl std::fmt::Debug for ConnectionRbac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rules {:?}, shadow rules {:?}", self.rules, self.shadow)
    }
}
