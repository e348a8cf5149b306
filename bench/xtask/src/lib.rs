//! The project's own chores, behind `cargo xtask`: what CI runs, what a developer runs before a commit, and the
//! load tests behind `bench/RESULTS.md`.

pub mod bench;
pub mod book;
pub mod chart;
pub mod conformance;
pub mod deny;
pub mod fuzz;
pub mod h2spec;
pub mod image;
pub mod layout;
pub mod lint;
pub mod mesh;
pub mod monitoring;
pub mod needs;
pub mod package;
pub mod process;
pub mod report;
pub mod soak;
pub mod suite;
pub mod survey;
pub mod symbols;
pub mod tools;
