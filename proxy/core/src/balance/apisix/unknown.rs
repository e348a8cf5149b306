//! What stands for a balancer that APISIX does not have: its requests find that out.

use super::Picker;
use crate::cluster::{Choice, Member};
use std::sync::Arc;

/// Picks no node.
pub(in super::super) struct Unknown;

impl Picker for Unknown {
    type Group = Vec<Arc<Member>>;

    fn prepare(&self, nodes: Vec<Arc<Member>>, _workers: usize) -> Vec<Arc<Member>> {
        nodes
    }

    fn nodes(nodes: &Vec<Arc<Member>>) -> impl Iterator<Item = &Arc<Member>> {
        nodes.iter()
    }

    fn pick<'g>(
        &self,
        _: &'g Vec<Arc<Member>>,
        _: &Choice<'_>,
        _: impl Fn(&Member) -> bool,
    ) -> Option<&'g Arc<Member>> {
        None
    }
}
