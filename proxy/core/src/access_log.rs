//! Access logs: what is written when a stream or a connection ends.

use crate::stream::Stream;
use std::sync::Arc;

/// Takes formatted lines; the server implements it with files that a writer thread flushes.
pub trait LogSink: Send + Sync {
    /// Adds one line, its end included. Must not block.
    fn write(&self, line: &[u8]);
}

/// Where an access log is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogTarget {
    /// A file, opened for appending and made when it is missing.
    File(std::path::PathBuf),
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Opens access logs for sources that compile configuration; equal targets share one sink.
pub trait OpenLog: Send + Sync {
    /// The sink of a target.
    ///
    /// # Errors
    /// Why a file can't be opened.
    fn open(&self, target: &LogTarget) -> Result<Arc<dyn LogSink>, String>;
}

/// One access log of a connection manager, a listener or a TCP proxy.
pub struct AccessLog {
    /// Which streams are logged; `None` logs all.
    pub filter: Option<LogFilter>,
    /// How a line looks.
    pub format: Arc<dyn LineFormat>,
    /// Where it goes.
    pub sink: Arc<dyn LogSink>,
}

/// Writes one line for a stream.
pub trait LineFormat: Send + Sync {
    /// Appends the line, its end included.
    fn write_line(&self, stream: &Stream, out: &mut Vec<u8>);
}

/// Envoy's access log filters.
#[derive(Debug)]
pub enum LogFilter {
    /// Compares the status code.
    Status(Comparison),
    /// Compares the duration in milliseconds.
    Duration(Comparison),
    /// Not a health check request; sixfold has no health check filter, so all pass.
    NotHealthCheck,
    /// A share of requests.
    Fraction(crate::runtime::Fraction),
    /// All must pass.
    And(Vec<LogFilter>),
    /// Any must pass.
    Or(Vec<LogFilter>),
    /// A request header.
    Header(crate::matcher::HeaderMatcher),
    /// Any of these flags, or any flag at all when empty.
    Flags(Vec<crate::flags::Flag>),
    /// gRPC status, also derived from the HTTP status; the flag excludes instead.
    GrpcStatus(Vec<u32>, bool),
}

/// A comparison with a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Equal.
    Equal(u64),
    /// Greater or equal.
    AtLeast(u64),
    /// Less or equal.
    AtMost(u64),
    /// Different.
    NotEqual(u64),
}

impl Comparison {
    /// Whether `value` compares as asked.
    pub fn holds(self, value: u64) -> bool {
        match self {
            Comparison::Equal(n) => value == n,
            Comparison::AtLeast(n) => value >= n,
            Comparison::AtMost(n) => value <= n,
            Comparison::NotEqual(n) => value != n,
        }
    }
}

impl std::fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "access log, filter {:?}", self.filter)
    }
}
