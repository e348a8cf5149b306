//! Envoy's protobuf types with their JSON mapping, and what every user of them shares
