//! The client of an xDS control plane.
//!
//! Everything that decides is pure: events and the time go in, requests and changes come out. `session` speaks the
//! protocol, `update` is what a response says in either of its forms, `inbox` merges what waits, `world` knows what is
//! in force and in which order it comes there, `machine` puts them together. `resources` compiles, and `client` does what
//! the machine says, over gRPC to the control plane's cluster.

mod backoff;
mod client;
mod inbox;
mod kind;
mod machine;
mod resources;
mod session;
mod stats;
mod update;
mod users;
mod world;

pub use backoff::BackoffConfig;
pub use client::{Apply, Batches, Service, Statics, Target, follow};
pub use kind::Kind;
pub use machine::{AdsConfig, Failure, Machine, Step};
pub use resources::{Part, Resources};
pub use session::{Flavor, Request};
pub use update::{Response, UnknownType};
pub use world::{Asks, Change, Compile, Compiled, HOLD, LINGER, LINGER_MAX, Need};
