//! What can't be compiled of what a running proxy has: this binary may lack what that one has. It matters to requests that
//! meet it.

use crate::Failure;
use serde_json::Value;
use sixfold_core::error::ConfigError;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// All of it.
#[derive(Default)]
pub(super) struct Faulty {
    pub(super) listeners: Vec<FaultyListener>,
    /// Route configurations by name.
    pub(super) routes: BTreeMap<Arc<str>, ConfigError>,
    /// Clusters and configurations of filters.
    pub(super) others: Vec<ConfigError>,
}

/// A listener that is not known here but for its address.
pub(super) struct FaultyListener {
    name: Arc<str>,
    addresses: Vec<SocketAddr>,
    /// Whether redirected connections come to it.
    takes_redirected: bool,
    error: ConfigError,
}

impl FaultyListener {
    pub(super) fn new(name: Arc<str>, value: &Value, error: ConfigError) -> FaultyListener {
        let more = value["additional_addresses"].as_array().into_iter().flatten();
        let all = std::iter::once(&value["address"]).chain(more.map(|more| &more["address"]));
        let address = |address: &Value| {
            let socket = &address["socket_address"];
            let ip: IpAddr = socket["address"].as_str()?.parse().ok()?;
            Some(SocketAddr::new(ip, u16::try_from(socket["port_value"].as_u64()?).ok()?))
        };
        let takes_redirected = value["use_original_dst"] == true && value["traffic_direction"] != "INBOUND";
        FaultyListener { name, addresses: all.filter_map(address).collect(), takes_redirected, error }
    }

    fn takes(&self, destination: SocketAddr) -> bool {
        let mut ours = self.addresses.iter().filter(|ours| ours.port() == destination.port());
        ours.any(|ours| ours.ip() == destination.ip() || ours.ip().is_unspecified())
    }
}

impl Faulty {
    pub(super) fn errors(&self) -> impl Iterator<Item = &ConfigError> {
        let listeners = self.listeners.iter().map(|listener| &listener.error);
        listeners.chain(self.routes.values()).chain(&self.others)
    }

    /// # Errors
    /// The listener of this name can't be compiled.
    pub(super) fn named(&self, name: &str) -> Result<(), Failure> {
        self.first(|listener| *listener.name == *name)
    }

    /// # Errors
    /// A listener of this address can't be compiled.
    pub(super) fn at(&self, destination: SocketAddr) -> Result<(), Failure> {
        self.first(|listener| listener.takes(destination))
    }

    /// # Errors
    /// A listener on this port can't be compiled.
    pub(super) fn on(&self, port: u16) -> Result<(), Failure> {
        self.first(|listener| listener.addresses.iter().any(|address| address.port() == port))
    }

    /// # Errors
    /// The listener that redirected connections come to can't be compiled.
    pub(super) fn redirected(&self) -> Result<(), Failure> {
        self.first(|listener| listener.takes_redirected)
    }

    fn first(&self, is: impl Fn(&FaultyListener) -> bool) -> Result<(), Failure> {
        match self.listeners.iter().find(|listener| is(listener)) {
            Some(met) => Err(met.error.clone().into()),
            None => Ok(()),
        }
    }
}
