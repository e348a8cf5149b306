//! Statistics of a cluster.

use super::Member;
use super::filter_stats::{AuthzCounts, ByPrefix, RateLimitCounts};
use super::grpc_stats::GrpcStats;
use super::hash_stats::{HashTable, MaglevStats, RingStats};
use crate::codec_stats::Http2Counts;
use crate::metrics::responses::Responses;
use crate::metrics::{Registry, named_scope};
use crate::tls::{TlsSide, TlsStats};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use std::ops::Deref;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

crate::stat_block! {
    /// The fixed part of a cluster's statistics, as Envoy names them.
    pub struct ClusterCounts {
        counters: [
            upstream_cx_total, upstream_cx_http1_total, upstream_cx_http2_total, upstream_cx_connect_fail,
            upstream_cx_connect_timeout, upstream_cx_idle_timeout, upstream_cx_overflow, upstream_cx_destroy,
            upstream_cx_destroy_local, upstream_cx_destroy_remote, upstream_cx_destroy_with_active_rq,
            upstream_cx_destroy_local_with_active_rq, upstream_cx_destroy_remote_with_active_rq,
            upstream_cx_max_requests, upstream_cx_connect_attempts_exceeded, upstream_cx_close_notify,
            upstream_cx_max_duration_reached, upstream_cx_none_healthy, upstream_cx_rx_bytes_total,
            upstream_cx_tx_bytes_total, upstream_cx_protocol_error,
            upstream_rq_total, upstream_rq_timeout, upstream_rq_per_try_timeout,
            upstream_rq_per_try_idle_timeout, upstream_rq_max_duration_reached, upstream_rq_rx_reset,
            upstream_rq_tx_reset, upstream_rq_cancelled, upstream_rq_maintenance_mode, upstream_rq_pending_total,
            upstream_rq_pending_overflow, upstream_rq_active_overflow, upstream_rq_pending_failure_eject,
            upstream_rq_retry, upstream_rq_retry_success, upstream_rq_retry_overflow,
            upstream_rq_retry_limit_exceeded, upstream_rq_retry_backoff_exponential,
            upstream_rq_retry_backoff_ratelimited,
            lb_healthy_panic, lb_subsets_created, lb_subsets_removed, lb_subsets_selected, lb_subsets_fallback, lb_subsets_fallback_panic, lb_recalculate_zone_structures, lb_local_cluster_not_ok,
            lb_zone_cluster_too_small, lb_zone_no_capacity_left, lb_zone_routing_all_directly, lb_zone_routing_sampled, lb_zone_routing_cross_zone, membership_change, update_attempt, update_success,
            update_no_rebuild, assignment_stale, assignment_timeout_received, update_failure, update_empty, bind_errors, retry_or_shadow_abandoned,
            upstream_internal_redirect_succeeded_total, upstream_internal_redirect_failed_total,
            original_dst_host_invalid,
            total_match_count = "default.total_match_count",
        ],
        gauges: [
            upstream_cx_active, upstream_rq_active, upstream_rq_pending_active, membership_total,
            membership_healthy, membership_degraded, membership_excluded, lb_subsets_active, warming_state, max_host_weight,
        ],
        numbers: [version],
        histograms: [upstream_cx_connect_ms, upstream_cx_length_ms, upstream_rq_per_cx],
        zeros: [
            Counter "assignment_use_cached", Counter "http1.dropped_headers_with_underscores",
            Counter "http1.metadata_not_supported_error", Counter "http1.requests_rejected_with_underscores_in_headers",
            Counter "http1.response_flood", Counter "upstream_cx_connect_with_0_rtt",
            Counter "upstream_cx_http3_total", Counter "upstream_cx_pool_overflow", Counter "upstream_cx_preconnect_skipped",
            Gauge "upstream_cx_rx_bytes_buffered", Gauge "upstream_cx_tx_bytes_buffered",
            Counter "upstream_flow_control_backed_up_total", Counter "upstream_flow_control_drained_total",
            Counter "upstream_flow_control_paused_reading_total", Counter "upstream_flow_control_resumed_reading_total",
            Counter "upstream_http3_broken", Gauge "upstream_queue_overloaded", Counter "upstream_rq_0rtt",
            Counter "upstream_rq_rx_reset_no_error",
        ],
    }
}

/// Zones whose responses are counted apart.
const MAX_ZONES: usize = 64;

/// Statistics under `cluster.NAME.`.
pub struct ClusterStats {
    counts: ClusterCounts,
    grpc: OnceLock<GrpcStats>,
    tls: OnceLock<Box<TlsStats>>,
    http2: OnceLock<Http2Counts>,
    ring: OnceLock<RingStats>,
    maglev: OnceLock<MaglevStats>,
    /// The table that was made last, which is told of once it is in force.
    table: Mutex<Option<HashTable>>,
    authz: ByPrefix<AuthzCounts>,
    rate_limit: ByPrefix<RateLimitCounts>,
    responses: Responses,
    /// Those of responses of some kind, once there was one.
    of_kind: [OnceLock<Responses>; 4],
    /// Those of responses from zones; nothing where it is not known in which zone this proxy is.
    zones: ArcSwapOption<Box<[OfZone]>>,
    /// Where they are made.
    registry: Option<(Registry, Box<str>)>,
}

/// Responses of the endpoints in a zone.
#[derive(Clone)]
struct OfZone {
    zone: Arc<str>,
    responses: Arc<Responses>,
}

/// The place of a member's zone among those whose responses are counted; out of reach while it has none.
#[derive(Debug)]
pub(super) struct ZonePlace(AtomicU8);

impl Default for ZonePlace {
    fn default() -> ZonePlace {
        ZonePlace(AtomicU8::new(u8::MAX))
    }
}

impl Clone for ZonePlace {
    fn clone(&self) -> ZonePlace {
        ZonePlace(AtomicU8::new(self.0.load(Relaxed)))
    }
}

/// Responses that are counted apart, beside all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseKind {
    /// To requests from outside.
    External,
    /// To requests from inside.
    Internal,
    /// Those that were not passed on, since another attempt followed.
    Retry,
    /// From an endpoint that is a canary.
    Canary,
}

impl ResponseKind {
    fn name(self) -> &'static str {
        match self {
            ResponseKind::External => "external",
            ResponseKind::Internal => "internal",
            ResponseKind::Retry => "retry",
            ResponseKind::Canary => "canary",
        }
    }
}

impl ClusterStats {
    /// Zeros for the cluster of this name.
    pub fn named(registry: &Registry, name: &str) -> ClusterStats {
        let prefix = named_scope(&["cluster", name]);
        ClusterStats {
            counts: ClusterCounts::new(registry, &prefix),
            responses: Responses::new(registry, &prefix),
            of_kind: Default::default(),
            zones: ArcSwapOption::empty(),
            grpc: OnceLock::new(),
            tls: OnceLock::new(),
            http2: OnceLock::new(),
            ring: OnceLock::new(),
            maglev: OnceLock::new(),
            table: Mutex::default(),
            authz: ByPrefix::default(),
            rate_limit: ByPrefix::default(),
            registry: Some((registry.clone(), prefix.into())),
        }
    }

    /// Statistics that nobody counts, for a source whose surfaces show none.
    pub fn none() -> ClusterStats {
        ClusterStats {
            counts: ClusterCounts::none(),
            responses: Responses::none(),
            of_kind: Default::default(),
            zones: ArcSwapOption::empty(),
            grpc: OnceLock::new(),
            tls: OnceLock::new(),
            http2: OnceLock::new(),
            ring: OnceLock::new(),
            maglev: OnceLock::new(),
            table: Mutex::default(),
            authz: ByPrefix::default(),
            rate_limit: ByPrefix::default(),
            registry: None,
        }
    }

    /// Whether somebody shows them.
    pub fn are_shown(&self) -> bool {
        self.registry.is_some()
    }

    /// Counts a gRPC call by its status as it was said, under `grpc.`; the first call of a cluster makes the place.
    pub fn count_grpc(&self, status: &str) {
        let Some((registry, stats)) = self.grpc() else { return };
        stats.count(registry, status);
    }

    /// Counts messages of gRPC calls, to the cluster and from it.
    pub fn count_grpc_messages(&self, requests: u64, responses: u64) {
        if requests + responses > 0
            && let Some((_, stats)) = self.grpc()
        {
            stats.count_messages(requests, responses);
        }
    }

    fn grpc(&self) -> Option<(&Registry, &GrpcStats)> {
        let (registry, prefix) = self.registry.as_ref()?;
        let make = || GrpcStats::new(registry, &format!("{prefix}grpc."));
        Some((registry, self.grpc.get_or_init(make)))
    }

    /// Those of HTTP/2, which are shown from the first call on.
    pub fn http2(&self) -> Http2Counts {
        let Some((registry, prefix)) = &self.registry else { return Http2Counts::none() };
        self.http2.get_or_init(|| Http2Counts::new(registry, &format!("{prefix}http2."))).clone()
    }

    /// Keeps what is to be told of a table of hashes, and shows its names. Making one changes no value.
    pub(crate) fn keep_table(&self, table: HashTable) {
        let Some((registry, prefix)) = &self.registry else { return };
        match table {
            HashTable::Ring { .. } => {
                self.ring.get_or_init(|| RingStats::new(registry, &format!("{prefix}ring_hash_lb.")));
            }
            HashTable::Maglev { .. } => {
                self.maglev.get_or_init(|| MaglevStats::new(registry, &format!("{prefix}maglev_lb.")));
            }
        }
        *self.table.lock() = Some(table);
    }

    /// Tells of the table of hashes that is in force now.
    pub(crate) fn show_table(&self) {
        match self.table.lock().take() {
            Some(HashTable::Ring { size, least, most }) => {
                let Some(stats) = self.ring.get() else { return };
                stats.size().set(size);
                stats.min_hashes_per_host().set(least);
                stats.max_hashes_per_host().set(most);
            }
            Some(HashTable::Maglev { least, most }) => {
                let Some(stats) = self.maglev.get() else { return };
                stats.min_entries_per_host().set(least);
                stats.max_entries_per_host().set(most);
            }
            None => {}
        }
    }

    /// Those of TLS, which are shown from the first call on.
    pub fn tls(&self) -> Option<&TlsStats> {
        let (registry, prefix) = self.registry.as_ref()?;
        let make = || Box::new(TlsStats::new(registry, prefix, TlsSide::Client));
        Some(self.tls.get_or_init(make))
    }

    /// Has `count` count what an authorisation service said of a request, by the prefix of the filter that asked it.
    pub fn count_authz(&self, prefix: &Arc<str>, count: impl FnOnce(&AuthzCounts)) {
        let Some((registry, scope)) = &self.registry else { return };
        self.authz.count(prefix, || AuthzCounts::of_cluster(registry, scope, prefix), count);
    }

    /// Has `count` count what a rate limit service said of a request, by the prefix of the filter that asked it.
    pub fn count_rate_limit(&self, prefix: &Arc<str>, count: impl FnOnce(&RateLimitCounts)) {
        let Some((registry, scope)) = &self.registry else { return };
        self.rate_limit.count(prefix, || RateLimitCounts::of_cluster(registry, scope, prefix), count);
    }

    /// All responses.
    pub fn responses(&self) -> &Responses {
        &self.responses
    }

    /// Makes room for what these endpoints answer to a proxy in the zone `own`, under `zone.OWN.ZONE.`, and has them know
    /// it.
    pub(super) fn count_zones<'m>(&self, own: &str, members: impl Iterator<Item = &'m Arc<Member>>) {
        let Some((registry, prefix)) = self.registry.as_ref().filter(|_| !own.is_empty()) else { return };
        let known = self.zones.load_full();
        let mut all = known.map_or_else(Vec::new, |known| known.to_vec());
        let before = all.len();
        for member in members {
            let zone = &member.locality().zone;
            let mut at = all.iter().position(|known| known.zone == *zone);
            if at.is_none() && all.len() < MAX_ZONES && !zone.is_empty() {
                let responses = Arc::new(Responses::sparse(registry, &format!("{prefix}zone.{own}.{zone}.")));
                at = Some(all.len());
                all.push(OfZone { zone: zone.clone(), responses });
            }
            let place = at.and_then(|at| u8::try_from(at).ok()).unwrap_or(u8::MAX);
            member.zone_place.0.store(place, Relaxed);
        }
        if all.len() > before {
            self.zones.store(Some(Arc::new(all.into())));
        }
    }

    /// Has `count` count a response of an endpoint in the zone of this one.
    #[inline]
    pub fn of_zone(&self, member: &Member, count: impl FnOnce(&Responses)) {
        let place = member.zone_place.0.load(Relaxed);
        // The cluster that came after this one may have other places.
        if place != u8::MAX
            && let Some(zones) = &*self.zones.load()
            && let Some(of) = zones.get(usize::from(place))
            && of.zone == member.locality().zone
        {
            count(&of.responses);
        }
    }

    /// Responses of a kind, which have statistics of their own from the first one on; `None` where nobody counts.
    pub fn responses_of(&self, kind: ResponseKind) -> Option<&Responses> {
        let (registry, prefix) = self.registry.as_ref()?;
        let make = || Responses::sparse(registry, &format!("{prefix}{}.", kind.name()));
        Some(self.of_kind.get(kind as usize)?.get_or_init(make))
    }
}

impl Deref for ClusterStats {
    type Target = ClusterCounts;
    fn deref(&self) -> &ClusterCounts {
        &self.counts
    }
}
