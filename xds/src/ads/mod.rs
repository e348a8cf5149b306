//! The client of xDS control planes, and of files that hold what they would send.
//!
//! Everything that decides is pure: events and the time go in, requests and changes come out. `session` speaks the
//! protocol, `update` is what a response says in either of its forms and `file` the same of a file, `inbox` merges what
//! waits, `peer` is all of that for one stream or file, `world` knows what is in force and in which order it comes there,
//! `machine` puts them together. `resources` compiles, `client` does what the machine says, over gRPC to control planes'
//! clusters, and `files` looks at files.

mod backoff;
mod client;
mod file;
mod files;
mod inbox;
mod key;
mod kind;
mod machine;
mod peer;
mod rate;
mod resources;
mod session;
mod stats;
mod update;
mod users;
mod world;

pub use backoff::BackoffConfig;
pub use client::{Apply, Batches, Statics, Target, follow};
pub(crate) use file::{placed, routes as routes_of_file};
pub use key::{Channel, Key};
pub use kind::Kind;
pub use machine::{AdsConfig, Failure, Machine, Step, Wildcard};
pub use peer::StreamConfig;
pub use rate::RateLimit;
pub use resources::{Part, Resources};
pub use session::{Flavor, Request};
pub(crate) use stats::now;
pub use update::{Response, UnknownType};
pub use world::{Asks, Change, Compile, Compiled, HOLD, LINGER, LINGER_MAX, Need, Static};
