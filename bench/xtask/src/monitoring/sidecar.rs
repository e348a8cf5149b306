//! What is shown of Envoy's mode: Istio's metrics, and those of Envoy that tell how the proxy fares.

use super::{Dashboard, Panel};

pub(super) const DASHBOARD: Dashboard = Dashboard {
    name: "sixfold-sidecar",
    title: "sixfold: sidecar",
    description: "Traffic of a mesh by Istio's metrics, and upstreams, control plane and the proxy itself by Envoy's, of sidecars and gateways in Envoy's mode.",
    instances: "envoy_server_live",
    rows: &[
        ("Requests", REQUESTS),
        ("TCP", TCP),
        ("Upstreams", UPSTREAMS),
        ("Configuration", CONFIGURATION),
        ("The proxy itself", ITSELF),
    ],
};

const REQUESTS: &[Panel] = &[
    Panel {
        title: "Requests by code",
        description: "As the reporting proxy saw them: source is the caller's, destination the called one's",
        unit: "reqps",
        queries: &[(
            "{{reporter}} {{response_code}}",
            "sum by (reporter, response_code) (rate(istio_requests_total{$i}[$r]))",
        )],
    },
    Panel {
        title: "Requests by caller and service",
        description: "The twenty busiest pairs",
        unit: "reqps",
        queries: &[(
            "{{source_workload}} to {{destination_service_name}}",
            "topk(20, sum by (source_workload, destination_service_name) (rate(istio_requests_total{$i}[$r])))",
        )],
    },
    Panel {
        title: "Share of 5xx by service",
        description: "With the flags that say why where the proxy answered itself",
        unit: "percentunit",
        queries: &[(
            "{{destination_service_name}}",
            "sum by (destination_service_name) (rate(istio_requests_total{response_code=~\"5..\", $i}[$r])) / sum by (destination_service_name) (rate(istio_requests_total{$i}[$r]))",
        )],
    },
    Panel {
        title: "Request duration",
        description: "All services together",
        unit: "ms",
        queries: &[
            (
                "p50",
                "histogram_quantile(0.5, sum by (le) (rate(istio_request_duration_milliseconds_bucket{$i}[$r])))",
            ),
            (
                "p95",
                "histogram_quantile(0.95, sum by (le) (rate(istio_request_duration_milliseconds_bucket{$i}[$r])))",
            ),
            (
                "p99",
                "histogram_quantile(0.99, sum by (le) (rate(istio_request_duration_milliseconds_bucket{$i}[$r])))",
            ),
        ],
    },
    Panel {
        title: "Request duration by service, p99",
        description: "The ten slowest",
        unit: "ms",
        queries: &[(
            "{{destination_service_name}}",
            "topk(10, histogram_quantile(0.99, sum by (le, destination_service_name) (rate(istio_request_duration_milliseconds_bucket{$i}[$r]))))",
        )],
    },
    Panel {
        title: "Bytes of requests and responses",
        description: "Bodies and heads",
        unit: "Bps",
        queries: &[
            ("requests", "sum(rate(istio_request_bytes_sum{$i}[$r]))"),
            ("responses", "sum(rate(istio_response_bytes_sum{$i}[$r]))"),
        ],
    },
];

const TCP: &[Panel] = &[
    Panel {
        title: "TCP connections",
        description: "Opened and closed each second",
        unit: "cps",
        queries: &[
            ("opened", "sum(rate(istio_tcp_connections_opened_total{$i}[$r]))"),
            ("closed", "sum(rate(istio_tcp_connections_closed_total{$i}[$r]))"),
        ],
    },
    Panel {
        title: "TCP bytes",
        description: "As the client sees them: sent is what it was sent",
        unit: "Bps",
        queries: &[
            ("sent", "sum(rate(istio_tcp_sent_bytes_total{$i}[$r]))"),
            ("received", "sum(rate(istio_tcp_received_bytes_total{$i}[$r]))"),
        ],
    },
    Panel {
        title: "Client connections",
        description: "Open now, by listener",
        unit: "short",
        queries: &[(
            "{{envoy_listener_address}}{{listener_address}}",
            "sum by (envoy_listener_address, listener_address) (envoy_listener_downstream_cx_active{$i})",
        )],
    },
];

const UPSTREAMS: &[Panel] = &[
    Panel {
        title: "Endpoints",
        description: "Of clusters where some endpoint is not healthy, the share that is",
        unit: "percentunit",
        queries: &[(
            "{{envoy_cluster_name}}{{cluster_name}}",
            "bottomk(10, envoy_cluster_membership_healthy{$i} / (envoy_cluster_membership_total{$i} > 0))",
        )],
    },
    Panel {
        title: "Connections to upstreams",
        description: "Open, and those that failed each second",
        unit: "short",
        queries: &[
            ("open", "sum(envoy_cluster_upstream_cx_active{$i})"),
            ("failed a second", "sum(rate(envoy_cluster_upstream_cx_connect_fail{$i}[$r]))"),
            ("timed out a second", "sum(rate(envoy_cluster_upstream_cx_connect_timeout{$i}[$r]))"),
        ],
    },
    Panel {
        title: "Retries and overflows",
        description: "Requests tried again; turned away by circuit breakers; timed out; reset by the upstream",
        unit: "reqps",
        queries: &[
            ("retried", "sum(rate(envoy_cluster_upstream_rq_retry{$i}[$r]))"),
            ("overflow", "sum(rate(envoy_cluster_upstream_rq_pending_overflow{$i}[$r]))"),
            ("timed out", "sum(rate(envoy_cluster_upstream_rq_timeout{$i}[$r]))"),
            ("reset", "sum(rate(envoy_cluster_upstream_rq_rx_reset{$i}[$r]))"),
        ],
    },
];

const CONFIGURATION: &[Panel] = &[
    Panel {
        title: "Control plane",
        description: "1 if a stream to it is open",
        unit: "short",
        queries: &[("{{instance}}", "envoy_control_plane_connected_state{$i}")],
    },
    Panel {
        title: "Updates",
        description: "Of clusters and listeners: taken, and refused (the log and /config_dump say why)",
        unit: "short",
        queries: &[
            ("clusters taken", "sum(rate(envoy_cluster_manager_cds_update_success{$i}[$r]))"),
            ("clusters refused", "sum(rate(envoy_cluster_manager_cds_update_rejected{$i}[$r]))"),
            ("listeners taken", "sum(rate(envoy_listener_manager_lds_update_success{$i}[$r]))"),
            ("listeners refused", "sum(rate(envoy_listener_manager_lds_update_rejected{$i}[$r]))"),
        ],
    },
    Panel {
        title: "What is in force",
        description: "Clusters and listeners, and those that still wait for endpoints, routes or secrets",
        unit: "short",
        queries: &[
            ("clusters", "sum(envoy_cluster_manager_active_clusters{$i})"),
            ("clusters that wait", "sum(envoy_cluster_manager_warming_clusters{$i})"),
            ("listeners", "sum(envoy_listener_manager_total_listeners_active{$i})"),
            ("listeners that wait", "sum(envoy_listener_manager_total_listeners_warming{$i})"),
        ],
    },
];

const ITSELF: &[Panel] = &[
    Panel {
        title: "Live",
        description: "1 if the proxy serves and is not draining",
        unit: "short",
        queries: &[("{{instance}}", "envoy_server_live{$i}")],
    },
    Panel {
        title: "Resident memory",
        description: "Of the process",
        unit: "bytes",
        queries: &[("{{instance}}", "envoy_server_memory_physical_size{$i}")],
    },
    Panel {
        title: "Lines of logs that were dropped",
        description: "A disk, or whoever reads standard error, is too slow",
        unit: "short",
        queries: &[
            ("access logs", "sum(rate(envoy_filesystem_write_dropped{$i}[$r]))"),
            ("process log", "sum(rate(envoy_process_log_write_dropped{$i}[$r]))"),
        ],
    },
];
