//! Statistics on their way to services (Envoy's `stats_sinks`), from the thread of telemetry: no worker knows of them.

mod statsd;
#[cfg(test)]
mod tests;

use sixfold_core::export::Background;
use sixfold_core::metrics::flush::{Latch, StatsSink};
use sixfold_core::metrics::{Registry, TagRules};
use sixfold_core::stats_sink::{Sink, Sinks, Target, When};
use statsd::{Connection, Datagrams};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch::{Receiver, Sender, channel};

/// How long a service may take to be told; what it is not told by then it is never told.
const PATIENCE: Duration = Duration::from_secs(5);

sixfold_core::stat_block! {
    /// Statistics under `statsd.`.
    pub struct StatsdStats { counters: [cx_overflow], gauges: [], histograms: [] }
}

/// Brings up to date what is only looked up when somebody wants to know it.
pub type Refresh = Arc<dyn Fn() + Send + Sync>;

/// Begins to tell services of the statistics of `registry`, each by itself: one that is slow is told later, and holds up no other.
/// What is given back has them told at once, where they are told when somebody asks.
pub fn start(
    sinks: Sinks,
    registry: &Registry,
    rules: &Arc<TagRules>,
    refresh: &Refresh,
    background: &dyn Background,
) -> Option<Sender<()>> {
    let Sinks { all, when } = sinks;
    if all.is_empty() {
        return None;
    }
    let (stats, (ask, asked)) = (StatsdStats::new(registry, "statsd."), channel(()));
    for sink in all {
        let latch = Latch::new(registry.clone(), rules.clone());
        let asked = (when == When::Asked).then(|| asked.clone());
        let pace = Pace { when, asked };
        background.spawn(Box::pin(run(sink_of(sink, &stats), latch, refresh.clone(), pace)));
    }
    (when == When::Asked).then_some(ask)
}

fn sink_of(sink: Sink, stats: &StatsdStats) -> Box<dyn StatsSink> {
    match sink {
        Sink::Statsd { lines, to: Target::Datagrams { to, bytes } } => {
            Box::new(Datagrams::new(lines, to, bytes))
        }
        Sink::Statsd { lines, to: Target::Cluster(cluster) } => {
            Box::new(Connection::new(lines, cluster, stats.clone()))
        }
        Sink::Called(sink) => sink,
    }
}

/// When a service is told.
struct Pace {
    when: When,
    /// Whoever asks.
    asked: Option<Receiver<()>>,
}

impl Pace {
    /// Waits until it is time; false when it never will be again.
    async fn wait(&mut self) -> bool {
        match (self.when, &mut self.asked) {
            (When::Every(interval), _) => tokio::time::sleep(interval).await,
            (When::Asked, Some(asked)) => return asked.changed().await.is_ok(),
            (When::Asked, None) => return false,
        }
        true
    }
}

async fn run(mut sink: Box<dyn StatsSink>, mut latch: Latch, refresh: Refresh, mut pace: Pace) {
    while pace.wait().await {
        refresh();
        let flush = latch.flush();
        sink.flush(&flush).await;
    }
}
