//! Envoy's RANDOM: every host is as likely; weights do not count.

use super::levels::{Algorithm, Ask, Weighted};
use crate::cluster::Host;
use std::sync::Arc;

/// No state at all.
pub(super) struct Random;

impl Algorithm for Random {
    type Group = Vec<Arc<Host>>;
    const HASHED: bool = false;

    fn prepare(&self, hosts: Vec<Weighted>, _workers: usize) -> Vec<Arc<Host>> {
        hosts.into_iter().map(|h| h.host).collect()
    }

    #[inline]
    fn pick<'g>(&self, group: &'g Vec<Arc<Host>>, ask: Ask) -> Option<&'g Arc<Host>> {
        group.get((ask.value % group.len().max(1) as u64) as usize)
    }
}
