//! Envoy's stateful_session filter (source/extensions/filters/http/stateful_session): requests of a session go where its
//! first one went, as a cookie or a header of theirs says.

mod state;
#[cfg(test)]
mod tests;

use crate::envoy;
use sixfold_core::cluster::Address;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::metrics::scope;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, Plugin, Slot, Step};
use sixfold_core::stream::{Stream, WantedHost};
use sixfold_xds_api::pb::envoy::extensions::filters::http::stateful_session::v3::stateful_session_per_route::Override;
use sixfold_xds_api::pb::envoy::extensions::filters::http::stateful_session::v3::{
    StatefulSession as Config, StatefulSessionPerRoute,
};
use sixfold_xds_api::values;
use state::State;
use std::net::SocketAddr;

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.stateful_session.` and the filter's own prefix.
    pub struct SessionStats { counters: [routed, failed_open, failed_closed, no_session], gauges: [], histograms: [] }
}

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build)
}

/// The most specific level counts alone.
fn build(own: Config, levels: Vec<StatefulSessionPerRoute>, context: &BuildContext) -> Built {
    // Of a route it is counted at the root, as in Envoy.
    let of = if levels.is_empty() { &*context.scope } else { "" };
    let config = match levels.into_iter().next_back() {
        None => own,
        Some(StatefulSessionPerRoute { r#override }) => match r#override {
            Some(Override::Disabled(true)) => return Ok(Plugin::default()),
            Some(Override::Disabled(false)) => return Err(ConfigError::field("disabled", "must be true")),
            Some(Override::StatefulSession(config)) => config,
            None => return Err(ConfigError::new("one of disabled and stateful_session is missing")),
        },
    };
    let Config { session_state, strict, stat_prefix, status_on_strict_destination_not_found } = config;
    // Without a state there are no sessions.
    let Some(state) = session_state.as_ref().map(State::new).transpose().in_key("session_state")? else {
        return Ok(Plugin::default());
    };
    let status = match status_on_strict_destination_not_found {
        0 => 503,
        status => values::status(status, "status_on_strict_destination_not_found")?,
    };
    let session = Session {
        state,
        strict: strict.then_some(status),
        stats: (!stat_prefix.is_empty())
            .then(|| SessionStats::new(&context.metrics, &scope(&[of, "stateful_session", &stat_prefix]))),
    };
    Ok(Plugin::of(session).access(Session::access).judging().header_filter(Session::header_filter).build())
}

struct Session {
    state: State,
    /// No other endpoint will do than the session's: the status of the answer without it.
    strict: Option<u16>,
    stats: Option<SessionStats>,
}

/// What a request's session says.
enum Kept {
    /// It begins.
    New,
    /// It is at this endpoint, or at none that there could be.
    At(Option<SocketAddr>),
}

impl Session {
    fn access(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        if !self.state.is_for(stream) {
            return Step::Continue;
        }
        match self.state.read(stream) {
            Some(address) => {
                stream.upstream.wanted = Some(Box::new(WantedHost { address, strict: self.strict }));
                stream.set_state(slot, Kept::At(address));
            }
            None => stream.set_state(slot, Kept::New),
        }
        Step::Continue
    }

    fn header_filter(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let Some(kept) = stream.take_state::<Kept>(slot) else { return Step::Continue };
        let address = stream.upstream.member.as_ref().and_then(|member| match member.host.address {
            Address::Ip(address) => Some(address),
            _ => None,
        });
        if let Some(stats) = &self.stats {
            match (&*kept, address) {
                (Kept::New, _) => stats.no_session().inc(),
                (Kept::At(wanted), Some(_)) if address == *wanted => stats.routed().inc(),
                (Kept::At(_), _) if self.strict.is_some() => stats.failed_closed().inc(),
                (Kept::At(_), _) => stats.failed_open().inc(),
            }
        }
        let changed = match (&*kept, address) {
            (_, None) => return Step::Continue,
            (Kept::At(wanted), Some(_)) => address != *wanted,
            (Kept::New, Some(_)) => true,
        };
        if let Some(address) = address.filter(|_| changed) {
            self.state.write(address, stream);
        }
        Step::Continue
    }
}
