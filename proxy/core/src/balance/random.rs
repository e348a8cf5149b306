//! Envoy's RANDOM: every host is as likely; weights do not count.

use super::levels::{Algorithm, LbContext, Weighted};
use crate::cluster::Member;
use std::sync::Arc;

/// No state at all.
pub(super) struct Random;

impl Algorithm for Random {
    type Group = Vec<Arc<Member>>;
    const HASHED: bool = false;

    fn prepare(&self, hosts: Vec<Weighted>, _workers: usize) -> Vec<Arc<Member>> {
        hosts.into_iter().map(|h| h.member).collect()
    }

    #[inline]
    fn pick<'g>(&self, group: &'g Vec<Arc<Member>>, context: LbContext) -> Option<&'g Arc<Member>> {
        group.get((context.value % group.len().max(1) as u64) as usize)
    }
}
