//! Bytes of a proxied connection in the statistics, as they move.

use super::pump::Moved;
use sixfold_core::cluster::ClusterStats;
use sixfold_core::listener::{L4Stats, TcpStats};
use sixfold_core::stream::ByteCounts;

/// Carries the totals of a connection over to the statistics.
pub(crate) struct Meter<'a> {
    tcp: &'a TcpStats,
    cluster: &'a ClusterStats,
    upstream: Option<&'a L4Stats>,
    up: Moved,
    down: Moved,
}

impl Meter<'_> {
    /// Nothing has moved yet.
    pub(crate) fn new<'a>(
        tcp: &'a TcpStats,
        cluster: &'a ClusterStats,
        upstream: Option<&'a L4Stats>,
    ) -> Meter<'a> {
        Meter { tcp, cluster, upstream, up: Moved::default(), down: Moved::default() }
    }

    /// Takes the totals of both directions, for the log too; tells whether anything has moved since the last time.
    pub(crate) fn update(&mut self, up: Moved, down: Moved, bytes: &mut ByteCounts) -> bool {
        if self.up == up && self.down == down {
            return false;
        }
        self.tcp.downstream_cx_rx_bytes_total().add(up.read - self.up.read);
        self.cluster.upstream_cx_tx_bytes_total().add(up.written - self.up.written);
        self.cluster.upstream_cx_rx_bytes_total().add(down.read - self.down.read);
        self.tcp.downstream_cx_tx_bytes_total().add(down.written - self.down.written);
        self.tcp.downstream_cx_rx_bytes_buffered().add(up.held() - self.up.held());
        self.tcp.downstream_cx_tx_bytes_buffered().add(down.held() - self.down.held());
        if let Some(upstream) = self.upstream {
            upstream.upstream_tx_bytes_total().add(up.written - self.up.written);
            upstream.upstream_rx_bytes_total().add(down.read - self.down.read);
        }
        bytes.request_body = up.read;
        bytes.upstream_sent = up.written;
        bytes.upstream_received = down.read;
        bytes.response_body = down.written;
        (self.up, self.down) = (up, down);
        true
    }
}

impl Drop for Meter<'_> {
    /// What is still held is held no longer.
    fn drop(&mut self) {
        self.tcp.downstream_cx_rx_bytes_buffered().add(-self.up.held());
        self.tcp.downstream_cx_tx_bytes_buffered().add(-self.down.held());
    }
}
