//! Extensions that control planes send everywhere and this proxy goes on without: none of them decides about a request
//! or a connection. Every other one that is not known is refused by name.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use parking_lot::Mutex;

/// What stands in `bootstrap_extensions`.
pub(crate) const BOOTSTRAP_EXTENSION: &str = "bootstrap extension";

/// An extension that is left out.
struct Skipped {
    /// Where it stands.
    place: &'static str,
    /// Full name of its configuration; inside of a `TypedStruct` as well.
    config: &'static str,
    /// What is missing without it.
    loss: &'static str,
    /// What the log was told.
    told: OnceLock<String>,
}

impl Skipped {
    const fn new(place: &'static str, config: &'static str, loss: &'static str) -> Skipped {
        Skipped { place, config, loss, told: OnceLock::new() }
    }
}

static SKIPPED: [Skipped; 1] = [Skipped::new(
    BOOTSTRAP_EXTENSION,
    "envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
    "there are no internal listeners",
)];

/// What else had no effect, as the log was told.
static NOTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// A bootstrap may have more of that, which is not told.
const MOST_NOTED: usize = 100;

/// Tells the log once of something that has no effect.
pub(crate) fn note(notice: String) {
    let mut noted = NOTED.lock();
    if noted.len() < MOST_NOTED && !noted.contains(&notice) {
        tracing::warn!("{notice}");
        noted.insert(notice);
    }
}

/// Whether an extension is left out here; the log is told once for each kind.
pub(crate) fn is_skipped(place: &str, name: &str, config: &str) -> bool {
    let Some(skipped) = SKIPPED.iter().find(|known| known.place == place && known.config == config) else {
        return false;
    };
    skipped.told.get_or_init(|| {
        let notice = format!("{} \"{name}\" of type {config} is left out: {}", place, skipped.loss);
        tracing::warn!("{notice}");
        notice
    });
    true
}

/// Extensions that Istio's control plane sends when its users ask for them, and that are refused by name: without what they
/// do, requests would be let through that should not be, or go where they should not.
pub const REFUSED: [(&str, &str); 5] = [
    ("HTTP filter", "envoy.extensions.filters.http.lua.v3.Lua"),
    ("HTTP filter", "envoy.extensions.filters.http.wasm.v3.Wasm"),
    ("network filter", "envoy.extensions.filters.network.set_filter_state.v3.Config"),
    ("network filter", "envoy.extensions.filters.network.wasm.v3.Wasm"),
    ("transport socket", "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport"),
];

/// Those that are left out: where each stands, its configuration, and what is missing without it.
pub fn skipped() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    SKIPPED.iter().map(|skipped| (skipped.place, skipped.config, skipped.loss))
}

/// What was left out of all that this process has compiled, a sentence for each kind, and what else had no effect.
pub fn left_out() -> Vec<String> {
    let skipped = SKIPPED.iter().filter_map(|skipped| skipped.told.get().cloned());
    skipped.chain(NOTED.lock().iter().cloned()).collect()
}

#[cfg(test)]
mod tests;
