//! HTTP connections.

use crate::drain::Drain;
use crate::io::Io;
use crate::worker::Worker;
use sixfold_core::connection::Connection;
use sixfold_core::hcm::HttpConnectionManager;
use std::sync::Arc;

/// Serves a connection until it ends.
pub async fn serve(
    io: Io,
    connection: Arc<Connection>,
    hcm: Arc<HttpConnectionManager>,
    worker: Arc<Worker>,
    drain: Drain,
) {
    drop((io, connection, hcm, worker, drain));
}
