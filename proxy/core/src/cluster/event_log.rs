//! Logs of what becomes of endpoints: a line of JSON for each event, with the fields of Envoy's messages in their order
//! (data/core/v3 HealthCheckEvent, data/cluster/v3 OutlierDetectionEvent).

use crate::log_sink::LogSink;
use jiff::Timestamp;
use serde_json::Value;
use std::fmt;
use std::sync::Arc;

/// A log of one cluster's events.
#[derive(Clone)]
pub struct EventLog {
    sink: Arc<dyn LogSink>,
    cluster: Arc<str>,
}

impl EventLog {
    /// Of a cluster of this name.
    pub fn new(sink: Arc<dyn LogSink>, cluster: impl Into<Arc<str>>) -> EventLog {
        EventLog { sink, cluster: cluster.into() }
    }

    /// Opens the file; waits for its disk, and for a bounded time only. What is written before is lost.
    ///
    /// # Errors
    /// Why it can't be opened.
    pub fn open(&self) -> Result<(), String> {
        self.sink.open()
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Writes an event; waits for nothing.
    pub fn write(&self, event: &Event) {
        self.sink.write(format!("{{{}}}\n", event.0).as_bytes());
    }
}

impl fmt::Debug for EventLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event log of {}", self.cluster)
    }
}

impl PartialEq for EventLog {
    fn eq(&self, other: &EventLog) -> bool {
        Arc::ptr_eq(&self.sink, &other.sink) && self.cluster == other.cluster
    }
}

/// The fields of an event, in the order of the message.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Event(String);

impl Event {
    /// With one more field.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Event {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(&format!("\"{name}\":{}", value.into()));
        self
    }

    /// With one more field that is a message.
    #[must_use]
    pub fn with_message(mut self, name: &str, Event(message): Event) -> Event {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(&format!("\"{name}\":{{{message}}}"));
        self
    }

    /// With the time.
    #[must_use]
    pub fn now(self) -> Event {
        self.at(Timestamp::now())
    }

    fn at(self, now: Timestamp) -> Event {
        self.with("timestamp", now.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stay_in_their_order() {
        let now = Timestamp::from_millisecond(1_700_000_000_007).unwrap_or_default();
        let event = Event::default().with("type", "a\"b").at(now).with("n", 1);
        let event = event
            .with_message("none", Event::default())
            .with_message("one", Event::default().with("x", true));
        assert_eq!(
            event.0,
            r#""type":"a\"b","timestamp":"2023-11-14T22:13:20.007Z","n":1,"none":{},"one":{"x":true}"#
        );
    }
}
