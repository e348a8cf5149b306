//! Envoy's generic matching API (xds/type/matcher/v3/matcher.proto): trees that lead from what is known of a request or a
//! connection to what is done with it.
//!
//! A tree is compiled once. Maps are hashed or are the radix tree of routes, ranges are kept by their lengths, and a long
//! list is indexed by what its conditions can't do without, so that only candidates are tried, in the list's order.

mod input;
mod list;
mod predicate;
mod tree;

#[cfg(test)]
mod tests;

pub use input::{Input, Subject};
pub use predicate::{Predicate, Test};
pub use tree::{Range, Then, Tree};
