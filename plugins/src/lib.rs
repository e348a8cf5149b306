//! Plugins of sixfold: APISIX plugins and Envoy HTTP filters, one module each
