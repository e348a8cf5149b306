//! limit-conn on streams: connections of a key that are open at once (apisix/stream/plugins/limit-conn.lua).

use super::LEAST_DELAY;
use crate::shared::counters::concurrent::{Concurrent, Lease};
use crate::shared::counters::{Counters, Key as CounterKey};
use crate::shared::limits::{Key, KeyType};
use serde::Deserialize;
use sixfold_core::error::ConfigError;
use sixfold_core::listener::{Closing, ConnectionFilter, FilterStep, Resume};
use sixfold_core::plugin::{BuildContext, Slot};
use sixfold_core::stream::Stream;
use std::sync::Arc;
use std::time::Duration;

pub(super) const SCHEMA: &str = include_str!("../../../schemas/limit-conn-stream.json");

/// `only_use_default_delay` is not among it, as for requests.
#[derive(Deserialize)]
pub(super) struct Config {
    conn: u64,
    burst: u64,
    default_conn_delay: f64,
    key: String,
    key_type: KeyType,
}

struct LimitStreams {
    conn: u64,
    burst: u64,
    /// Seconds that a connection waits for each `conn` that are before it.
    delay: f64,
    key: Key,
    /// What counters are told apart by: the resource and its configuration.
    owner: CounterKey,
    counters: Arc<Counters>,
    running: Arc<Concurrent>,
}

pub(super) fn build(
    config: Config,
    context: &BuildContext,
) -> Result<Arc<dyn ConnectionFilter>, ConfigError> {
    let Config { conn, burst, default_conn_delay, key, key_type } = config;
    let counters = Counters::of(&context.shared);
    let combined = key_type == KeyType::VarCombination;
    let told_apart_by = format!("{conn} {burst} {default_conn_delay} {combined} {key}");
    Ok(Arc::new(LimitStreams {
        conn,
        burst,
        delay: default_conn_delay,
        key: Key::new(&key, key_type)?,
        owner: counters.key(("limit-conn", &*context.resource, told_apart_by.as_str())),
        running: Concurrent::of(&context.shared),
        counters,
    }))
}

impl ConnectionFilter for LimitStreams {
    fn on_new_connection(&self, connection: &mut Stream, slot: Slot) -> FilterStep {
        // Without a value it is the client's address.
        let value = self.key.value(connection, false).unwrap_or_default();
        let key = self.counters.key((self.owner, value.as_slice()));
        let Some((lease, count)) = self.running.enter(key, self.conn.saturating_add(self.burst)) else {
            return FilterStep::Close(Closing { status: 503, ..Closing::default() });
        };
        connection.set_state(slot, lease);
        let times = count.saturating_sub(1).checked_div(self.conn).unwrap_or(0);
        let delay = Duration::try_from_secs_f64(self.delay * times as f64).unwrap_or(Duration::MAX);
        if delay < LEAST_DELAY {
            return FilterStep::Done;
        }
        FilterStep::wait(async move {
            tokio::time::sleep(delay).await;
            Box::new(|_: &mut Stream| FilterStep::Done) as Resume
        })
    }

    fn on_close(&self, connection: &mut Stream, slot: Slot) {
        drop(connection.take_state::<Lease>(slot));
    }
}

impl std::fmt::Debug for LimitStreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "limit-conn of {} and {} more", self.conn, self.burst)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::testing::{StreamFilter, stream_plugin};
    use serde_json::json;

    #[tokio::test(start_paused = true)]
    async fn connections_of_a_key_are_limited_while_they_are_open() {
        let plugin = stream_plugin(
            "limit-conn",
            json!({"conn": 2, "burst": 1, "default_conn_delay": 0.1, "key": "remote_addr"}),
        );
        let begin = tokio::time::Instant::now();
        let one = StreamFilter::begin(&plugin, "10.0.0.1:1").await.unwrap();
        let _two = StreamFilter::begin(&plugin, "10.0.0.1:2").await.unwrap();
        assert!(begin.elapsed().is_zero());
        let three = StreamFilter::begin(&plugin, "10.0.0.1:3").await.unwrap();
        assert_eq!(begin.elapsed().as_millis(), 100, "over the limit it waits");
        assert_eq!(StreamFilter::begin(&plugin, "10.0.0.1:4").await.err(), Some(503));
        assert!(StreamFilter::begin(&plugin, "10.0.0.2:1").await.is_ok(), "another client");
        three.end();
        assert!(StreamFilter::begin(&plugin, "10.0.0.1:5").await.is_ok());
        drop(one);
    }

    #[tokio::test]
    async fn a_key_of_nothing_is_the_clients_address() {
        let config = json!({"conn": 1, "burst": 0, "default_conn_delay": 0.1,
            "key": "$proxy_protocol_addr $proxy_protocol_port", "key_type": "var_combination"});
        let plugin = stream_plugin("limit-conn", config);
        let _one = StreamFilter::begin(&plugin, "10.0.0.1:1").await.unwrap();
        assert_eq!(StreamFilter::begin(&plugin, "10.0.0.1:2").await.err(), Some(503));
        assert!(StreamFilter::begin(&plugin, "10.0.0.2:2").await.is_ok());
    }
}
