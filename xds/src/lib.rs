//! Envoy configuration compiled to the model of sixfold
