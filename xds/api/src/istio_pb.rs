//! Istio's own messages, which `envoy-types` does not have; their modules are named after their packages. What the JSON mapping
//! knows of them is in `build/istio.rs`.

use prost::Name;

macro_rules! named {
    ($($message:ident in $package:literal as $name:literal),* $(,)?) => {$(
        impl Name for $message {
            const NAME: &'static str = $name;
            const PACKAGE: &'static str = $package;
        }
    )*};
}

pub mod stats {
    //! contrib/envoy/extensions/filters/http/istio_stats/v3/istio_stats.proto

    use super::Name;
    use crate::pb::google::protobuf::Duration;
    use prost::{Enumeration, Message};
    use std::collections::BTreeMap;

    named!(PluginConfig in "stats" as "PluginConfig");

    /// Configuration of Istio's statistics.
    #[derive(Clone, PartialEq, Message)]
    pub struct PluginConfig {
        /// Whether Host says nothing about the service that is called.
        #[prost(bool, tag = "6")]
        pub disable_host_header_fallback: bool,
        /// Time between two reports of a connection, 5 s by default.
        #[prost(message, optional, tag = "7")]
        pub tcp_reporting_duration: Option<Duration>,
        /// Changes of metrics.
        #[prost(message, repeated, tag = "8")]
        pub metrics: Vec<MetricConfig>,
        /// Metrics beside the standard ones.
        #[prost(message, repeated, tag = "9")]
        pub definitions: Vec<MetricDefinition>,
        /// Whose view it is.
        #[prost(enumeration = "Reporter", tag = "10")]
        pub reporter: i32,
        /// Deprecated, and without effect in Envoy.
        #[prost(message, optional, tag = "11")]
        pub rotation_interval: Option<Duration>,
        /// Deprecated, and without effect in Envoy.
        #[prost(message, optional, tag = "12")]
        pub graceful_deletion_interval: Option<Duration>,
    }

    /// Changes of one metric, or of all.
    #[derive(Clone, PartialEq, Message)]
    pub struct MetricConfig {
        /// Expressions by label.
        #[prost(btree_map = "string, string", tag = "1")]
        pub dimensions: BTreeMap<String, String>,
        /// The metric without `istio_`; empty means all.
        #[prost(string, tag = "2")]
        pub name: String,
        /// Labels that are left out.
        #[prost(string, repeated, tag = "3")]
        pub tags_to_remove: Vec<String>,
        /// Not implemented in Envoy either.
        #[prost(string, tag = "4")]
        pub r#match: String,
        /// Whether the metric is not counted at all.
        #[prost(bool, tag = "5")]
        pub drop: bool,
    }

    /// A metric beside the standard ones.
    #[derive(Clone, PartialEq, Message)]
    pub struct MetricDefinition {
        /// Its name without `istio_`.
        #[prost(string, tag = "1")]
        pub name: String,
        /// An expression for its value.
        #[prost(string, tag = "2")]
        pub value: String,
        /// What it is.
        #[prost(enumeration = "MetricType", tag = "3")]
        pub r#type: i32,
    }

    /// What a metric is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
    #[repr(i32)]
    pub enum MetricType {
        /// Only grows.
        Counter = 0,
        /// Goes up and down.
        Gauge = 1,
        /// A distribution.
        Histogram = 2,
    }

    /// Whose view metrics are.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
    #[repr(i32)]
    pub enum Reporter {
        /// As the listener's direction says.
        Unspecified = 0,
        /// A gateway before several workloads, such as a waypoint.
        ServerGateway = 1,
    }
}

pub mod io {
    //! Package `io`.
    pub mod istio {
        //! Package `io.istio`.
        pub mod http {
            //! Package `io.istio.http`.
            pub mod peer_metadata {
                //! contrib/envoy/extensions/filters/http/peer_metadata/v3/peer_metadata.proto

                use prost::{Message, Name};

                named!(Config in "io.istio.http.peer_metadata" as "Config");

                /// How peers tell each other who they are.
                #[derive(Clone, PartialEq, Message)]
                pub struct Config {
                    /// How the caller is found out, the first that does counts.
                    #[prost(message, repeated, tag = "1")]
                    pub downstream_discovery: Vec<config::DiscoveryMethod>,
                    /// How the called one is found out.
                    #[prost(message, repeated, tag = "2")]
                    pub upstream_discovery: Vec<config::DiscoveryMethod>,
                    /// How the caller is told who we are.
                    #[prost(message, repeated, tag = "3")]
                    pub downstream_propagation: Vec<config::PropagationMethod>,
                    /// How the called one is told.
                    #[prost(message, repeated, tag = "4")]
                    pub upstream_propagation: Vec<config::PropagationMethod>,
                    /// Whether connections inside the process see it.
                    #[prost(bool, tag = "5")]
                    pub shared_with_upstream: bool,
                    /// Labels that are told beside the usual ones.
                    #[prost(string, repeated, tag = "6")]
                    pub additional_labels: Vec<String>,
                }

                pub mod config {
                    //! What is nested in [`Config`](super::Config).

                    use prost::{Message, Oneof};

                    /// The `baggage` header of W3C.
                    #[derive(Clone, Copy, PartialEq, Eq, Message)]
                    pub struct Baggage {}

                    /// By address, from a control plane.
                    #[derive(Clone, Copy, PartialEq, Eq, Message)]
                    pub struct WorkloadDiscovery {}

                    /// `x-envoy-peer-metadata` and `x-envoy-peer-metadata-id`.
                    #[derive(Clone, Copy, PartialEq, Eq, Message)]
                    pub struct IstioHeaders {
                        /// Clusters outside of the mesh are told nothing.
                        #[prost(bool, tag = "1")]
                        pub skip_external_clusters: bool,
                    }

                    /// One way to find out who a peer is.
                    #[derive(Clone, PartialEq, Message)]
                    pub struct DiscoveryMethod {
                        /// Which.
                        #[prost(oneof = "discovery_method::MethodSpecifier", tags = "1, 2, 3")]
                        pub method_specifier: Option<discovery_method::MethodSpecifier>,
                    }

                    pub mod discovery_method {
                        //! What is nested in [`DiscoveryMethod`](super::DiscoveryMethod).

                        /// The ways.
                        #[derive(Clone, PartialEq, super::Oneof)]
                        pub enum MethodSpecifier {
                            /// By the `baggage` header.
                            #[prost(message, tag = "1")]
                            Baggage(super::Baggage),
                            /// By address.
                            #[prost(message, tag = "2")]
                            WorkloadDiscovery(super::WorkloadDiscovery),
                            /// By Istio's headers.
                            #[prost(message, tag = "3")]
                            IstioHeaders(super::IstioHeaders),
                        }
                    }

                    /// One way to tell a peer who we are.
                    #[derive(Clone, PartialEq, Message)]
                    pub struct PropagationMethod {
                        /// Which.
                        #[prost(oneof = "propagation_method::MethodSpecifier", tags = "1")]
                        pub method_specifier: Option<propagation_method::MethodSpecifier>,
                    }

                    pub mod propagation_method {
                        //! What is nested in [`PropagationMethod`](super::PropagationMethod).

                        /// The ways.
                        #[derive(Clone, PartialEq, super::Oneof)]
                        pub enum MethodSpecifier {
                            /// By Istio's headers.
                            #[prost(message, tag = "1")]
                            IstioHeaders(super::IstioHeaders),
                        }
                    }
                }
            }
        }
    }
}

pub mod envoy {
    //! Package `envoy`, what Istio has put there.
    pub mod tcp {
        //! Package `envoy.tcp`.
        pub mod metadataexchange {
            //! Package `envoy.tcp.metadataexchange`.
            pub mod config {
                //! contrib/envoy/extensions/filters/network/metadata_exchange/v3/metadata_exchange.proto

                use prost::{Message, Name};

                named!(MetadataExchange in "envoy.tcp.metadataexchange.config" as "MetadataExchange");

                /// How the two ends of a connection tell each other who they are.
                #[derive(Clone, PartialEq, Message)]
                pub struct MetadataExchange {
                    /// The protocol (ALPN) of connections on which they do.
                    #[prost(string, tag = "1")]
                    pub protocol: String,
                    /// Whether a peer that tells nothing is looked for by its address.
                    #[prost(bool, tag = "2")]
                    pub enable_discovery: bool,
                    /// Labels that are told beside the usual ones.
                    #[prost(string, repeated, tag = "3")]
                    pub additional_labels: Vec<String>,
                }
            }
        }
    }
}

pub mod istio {
    //! Package `istio`.
    pub mod envoy {
        //! Package `istio.envoy`.
        pub mod config {
            //! Package `istio.envoy.config`.
            pub mod filter {
                //! Package `istio.envoy.config.filter`.
                pub mod http {
                    //! Package `istio.envoy.config.filter.http`.
                    pub mod alpn {
                        //! Package `istio.envoy.config.filter.http.alpn`.
                        pub mod v2alpha1 {
                            //! contrib/envoy/extensions/filters/http/alpn/v3/alpn.proto

                            use prost::{Message, Name};

                            named!(FilterConfig in "istio.envoy.config.filter.http.alpn.v2alpha1" as "FilterConfig");

                            /// What is offered to upstreams (ALPN) by version of HTTP.
                            #[derive(Clone, PartialEq, Message)]
                            pub struct FilterConfig {
                                /// One for each version.
                                #[prost(message, repeated, tag = "1")]
                                pub alpn_override: Vec<filter_config::AlpnOverride>,
                            }

                            pub mod filter_config {
                                //! What is nested in [`FilterConfig`](super::FilterConfig).

                                use prost::{Enumeration, Message};

                                /// What is offered for one version.
                                #[derive(Clone, PartialEq, Message)]
                                pub struct AlpnOverride {
                                    /// The version that the upstream is spoken to in.
                                    #[prost(enumeration = "Protocol", tag = "1")]
                                    pub upstream_protocol: i32,
                                    /// What is offered in the place of what the cluster says.
                                    #[prost(string, repeated, tag = "2")]
                                    pub alpn_override: Vec<String>,
                                }

                                /// Versions of HTTP.
                                #[derive(
                                    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration,
                                )]
                                #[repr(i32)]
                                pub enum Protocol {
                                    /// HTTP/1.0
                                    Http10 = 0,
                                    /// HTTP/1.1
                                    Http11 = 1,
                                    /// HTTP/2
                                    Http2 = 2,
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::io::istio::http::peer_metadata::Config;
    use super::istio::envoy::config::filter::http::alpn::v2alpha1::FilterConfig;
    use super::stats::{PluginConfig, Reporter};
    use crate::json;
    use prost::{Message, Name};
    use sixfold_core::document::Node;

    fn read<M: Message + Default + Name>(text: &str) -> M {
        json::message_from_node(&Node::parse(text, &Default::default()).unwrap()).unwrap()
    }

    /// The table of the JSON mapping and the messages are written apart.
    #[test]
    fn messages_are_what_the_json_mapping_knows() {
        let config: Config = read(
            "{upstream_discovery: [{istio_headers: {}}, {workload_discovery: {}}], upstreamPropagation: [{istio_headers: {skip_external_clusters: true}}], additional_labels: [role], shared_with_upstream: true}",
        );
        assert_eq!((config.upstream_discovery.len(), config.shared_with_upstream), (2, true));
        assert_eq!(config.additional_labels, ["role"]);
        let config: PluginConfig = read(
            "{disable_host_header_fallback: true, tcp_reporting_duration: 10s, reporter: SERVER_GATEWAY, definitions: [{name: a, value: b, type: HISTOGRAM}], metrics: [{name: requests_total, dimensions: {a: request.host}, tags_to_remove: [b], drop: true, match: x}]}",
        );
        assert_eq!(config.tcp_reporting_duration.unwrap().seconds, 10);
        assert_eq!(
            (config.reporter(), config.metrics[0].dimensions["a"].as_str()),
            (Reporter::ServerGateway, "request.host")
        );
        assert_eq!((config.definitions[0].r#type, config.metrics[0].drop), (2, true));
        let config: FilterConfig =
            read("{alpn_override: [{upstream_protocol: HTTP2, alpn_override: [istio-h2, h2]}]}");
        assert_eq!(
            (config.alpn_override[0].upstream_protocol, config.alpn_override[0].alpn_override.len()),
            (2, 2)
        );
    }
}
