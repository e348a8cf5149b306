//! Micro benchmarks of sixfold (`benches/`), and programs that its load tests run beside it (`src/bin/`).

pub mod filters;
pub mod fixtures;
