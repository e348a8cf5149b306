//! What Envoy's grpc_stats counts of calls, under `cluster.NAME.grpc.` (source/common/grpc/context_impl.cc).

use super::filter_stats::ByPrefix;
use crate::metrics::{Block, Counter, Kind, Registry, StatDef, block_slot};
use std::sync::Arc;

/// Status codes that gRPC has.
const CODES: usize = 17;
/// Those of one code come first, then these.
const SUCCESS: usize = CODES;
const FAILURE: usize = CODES + 1;
const TOTAL: usize = CODES + 2;
const REQUESTS: usize = CODES + 3;
const RESPONSES: usize = CODES + 4;

/// Digits of a status that gRPC does not have and that is counted apart; what is no number of so many is not.
const MAX_DIGITS: usize = 10;

const NAMES: [&str; CODES + 5] = [
    "0",
    "1",
    "2",
    "3",
    "4",
    "5",
    "6",
    "7",
    "8",
    "9",
    "10",
    "11",
    "12",
    "13",
    "14",
    "15",
    "16",
    "success",
    "failure",
    "total",
    "request_message_count",
    "response_message_count",
];

const DEFS: [StatDef; NAMES.len()] = {
    let mut defs = [const { StatDef { name: "", kind: Kind::Counter, slot: 0 } }; NAMES.len()];
    let mut at = 0;
    while at < NAMES.len() {
        defs[at] = StatDef { name: NAMES[at], kind: Kind::Counter, slot: block_slot(at, NAMES.len()) };
        at += 1;
    }
    defs
};

crate::stat_block! {
    /// Calls that ended with a status which gRPC does not have: its text is the end of the prefix.
    pub struct OtherCounts { counters: [calls = ""], gauges: [], histograms: [] }
}

/// Calls by their status, and their messages. Most clusters serve none, so they are made with the first; what was never
/// counted is not shown.
pub(super) struct GrpcStats {
    block: Arc<Block>,
    /// Of statuses that gRPC does not have, up to as many as filters may have prefixes.
    others: ByPrefix<OtherCounts>,
}

impl GrpcStats {
    /// Zeros under `prefix`, with its final dot.
    pub(super) fn new(registry: &Registry, prefix: &str) -> GrpcStats {
        let block = registry.register(Block::of_responses(prefix, &DEFS, true));
        GrpcStats { block, others: ByPrefix::default() }
    }

    /// Counts a call that ended with this `grpc-status`.
    pub(super) fn count(&self, registry: &Registry, status: &str) {
        match NAMES.iter().take(CODES).position(|code| *code == status) {
            Some(code) => self.counter(code).inc(),
            None if status.len() <= MAX_DIGITS && status.bytes().all(|byte| byte.is_ascii_digit()) => {
                let make = || OtherCounts::new(registry, &format!("{}{status}", self.block.prefix()));
                self.others.count(&status.into(), make, |counts| counts.calls().inc());
            }
            None => {}
        }
        self.counter(if status == "0" { SUCCESS } else { FAILURE }).inc();
        self.counter(TOTAL).inc();
    }

    /// Counts messages of calls.
    pub(super) fn count_messages(&self, requests: u64, responses: u64) {
        self.counter(REQUESTS).add(requests);
        self.counter(RESPONSES).add(responses);
    }

    fn counter(&self, at: usize) -> Counter<'_> {
        Counter::new(Some(&self.block), block_slot(at, NAMES.len()))
    }
}
