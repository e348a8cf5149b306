//! What is asked of 5,000 routes.

use super::super::peers::Peer;
use super::super::scripted::Script;

/// One route of a table.
#[derive(Debug)]
pub(super) struct PairCase {
    pub name: &'static str,
    pub script: Script,
    /// Which one is asked, from 1
    pub route: usize,
}

/// The routes that are asked: all others lead to another upstream, whose answer is a wrong one.
pub(super) const ASKED: [usize; 3] = [1, 3_000, 5_000];

pub(super) const CASES: &[PairCase] = &[
    PairCase { name: "gateway-1", script: Script::Gateway, route: 1 },
    PairCase { name: "gateway-3000", script: Script::Gateway, route: 3_000 },
    PairCase { name: "gateway-5000", script: Script::Gateway, route: 5_000 },
    PairCase { name: "sidecar-1", script: Script::Sidecar, route: 1 },
    PairCase { name: "sidecar-3000", script: Script::Sidecar, route: 3_000 },
    PairCase { name: "sidecar-5000", script: Script::Sidecar, route: 5_000 },
];

impl PairCase {
    pub(super) fn title(&self) -> String {
        let (what, which) = match (self.script, self.route) {
            (Script::Gateway, _) => ("Gateway, 5,000 routes", self.ordinal()),
            (Script::Sidecar, _) => ("Sidecar, 5,000 routes by prefix", self.ordinal()),
        };
        format!("{what}, {which}")
    }

    fn ordinal(&self) -> &'static str {
        match self.route {
            1 => "the 1st",
            3_000 => "the 3,000th",
            _ => "the 5,000th",
        }
    }

    /// Who takes configuration of this kind. A sidecar's is Envoy's.
    pub(super) fn peers(&self) -> &'static [Peer] {
        match self.script {
            Script::Gateway => &[Peer::Sixfold, Peer::Envoy, Peer::Nginx, Peer::Haproxy, Peer::Apisix],
            Script::Sidecar => &[Peer::Sixfold, Peer::Envoy],
        }
    }
}
