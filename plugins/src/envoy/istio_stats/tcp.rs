//! Connections of TCP: a network filter counts them while they last, and when they end.

use super::IstioStats;
use super::key::Key;
use super::labels::View;
use super::store::{About, Tcp};
use crate::envoy;
use prost::Name;
use sixfold_core::listener::ConnectionFilter;
use sixfold_core::plugin::{NetworkFilterFactory, Slot};
use sixfold_core::stream::Stream;
use sixfold_xds_api::istio_pb::stats::PluginConfig;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) fn factory() -> NetworkFilterFactory {
    NetworkFilterFactory::new(PluginConfig::full_name(), |config, context| {
        let config = envoy::decode::<PluginConfig>(config)?;
        Ok(Arc::new(IstioStats::new(&config, context)?) as Arc<dyn ConnectionFilter>)
    })
}

/// What was counted of a connection, and of which series: that is settled when it is first counted, as in Envoy.
struct Reported {
    key: Box<[u8]>,
    about: Arc<About>,
    sent: u64,
    received: u64,
}

impl ConnectionFilter for IstioStats {
    fn report_interval(&self) -> Option<Duration> {
        Some(self.reports_every).filter(|every| !every.is_zero())
    }

    /// A connection is counted as opened once it is known who is at its other end, or that nobody will say.
    fn on_report(&self, connection: &mut Stream, slot: Slot) {
        if connection.state::<Reported>(slot).is_some() || !self.awaits_peer(connection) {
            self.count(connection, slot, false);
        }
    }

    fn on_close(&self, connection: &mut Stream, slot: Slot) {
        self.count(connection, slot, true);
    }
}

impl std::fmt::Debug for IstioStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Istio's statistics, {:?}", self.reporter)
    }
}

impl IstioStats {
    fn awaits_peer(&self, connection: &Stream) -> bool {
        let awaited = connection.peers.awaited;
        if self.is_of_caller() { awaited.upstream } else { awaited.downstream }
    }

    /// Counts what has come about since the last time.
    fn count(&self, connection: &mut Stream, slot: Slot, ends: bool) {
        let known = connection.take_state::<Reported>(slot);
        let opens = known.is_none();
        let mut reported = known.unwrap_or_else(|| Box::new(self.series(connection)));
        let bytes = &connection.bytes;
        let more =
            |before: &mut u64, now: u64| now.saturating_sub(std::mem::replace(before, now.max(*before)));
        let sent = more(&mut reported.sent, bytes.response_body);
        let received = more(&mut reported.received, bytes.request_body);
        self.store.tcp.touch(&reported.key, Instant::now(), |counts: &mut Tcp| {
            counts.about.get_or_insert_with(|| reported.about.clone());
            counts.opened += u64::from(opens);
            counts.closed += u64::from(ends);
            counts.sent += sent;
            counts.received += received;
        });
        connection.set_state(slot, *reported);
    }

    fn series(&self, connection: &Stream) -> Reported {
        let (view, values) = (View::new(self, connection), self.overrides.values(connection));
        let flags = connection.flags;
        let about = self.about_connection(&view, flags, &values);
        Key::with(|key| {
            view.add_to(self.number, key);
            flags.iter().for_each(|flag| key.number(flag as u64));
            values.iter().for_each(|value| key.text(value.as_bytes()));
            Reported { key: key.bytes().into(), about, sent: 0, received: 0 }
        })
    }
}
