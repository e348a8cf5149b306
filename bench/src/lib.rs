//! Micro benchmarks of sixfold
