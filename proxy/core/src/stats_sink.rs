//! Services that statistics are told to, as they are configured (Envoy's `stats_sinks`).

use crate::cluster::ClusterCell;
use crate::metrics::flush::StatsSink;
use crate::metrics::statsd::Lines;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Who is told, and when.
pub struct Sinks {
    /// Each of them.
    pub all: Vec<Sink>,
    /// When.
    pub when: When,
}

/// When services are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Again and again, so long after the last time (`stats_flush_interval`).
    Every(Duration),
    /// When the administration is asked for statistics (`stats_flush_on_admin`).
    Asked,
}

/// A service.
pub enum Sink {
    /// One of statsd, whose lines go out over a socket.
    Statsd {
        /// Its lines.
        lines: Lines,
        /// Where they go.
        to: Target,
    },
    /// One that is called.
    Called(Box<dyn StatsSink>),
}

/// Where lines of statsd go.
#[derive(Debug, Clone)]
pub enum Target {
    /// To a socket of datagrams.
    Datagrams {
        /// Whose.
        to: Address,
        /// Bytes of one that has several lines; 0 has a line each.
        bytes: usize,
    },
    /// Over a connection to an endpoint of a cluster.
    Cluster(Arc<ClusterCell>),
}

/// Where datagrams go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// To a socket of UDP.
    Ip(SocketAddr),
    /// To a unix socket.
    Unix(PathBuf),
}
