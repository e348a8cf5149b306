//! What is shown of a gateway: the metrics of APISIX's plugin `prometheus`.

use super::{Dashboard, Panel};

pub(super) const DASHBOARD: Dashboard = Dashboard {
    name: "sixfold-gateway",
    title: "sixfold: gateway",
    description: "Traffic, latency, connections, streams, loggers and configuration of gateways with APISIX's configuration. It takes a global rule with the plugin prometheus.",
    instances: "apisix_node_info",
    rows: &[
        ("Requests", REQUESTS),
        ("Latency", LATENCY),
        ("Connections and bytes", CONNECTIONS),
        ("Streams", STREAMS),
        ("The gateway itself", ITSELF),
    ],
};

const REQUESTS: &[Panel] = &[
    Panel {
        title: "Requests by code",
        description: "What clients were answered",
        unit: "reqps",
        queries: &[("{{code}}", "sum by (code) (rate(apisix_http_status{$i}[$r]))")],
    },
    Panel {
        title: "Requests by route",
        description: "The ten busiest; a request that no route took has an empty route",
        unit: "reqps",
        queries: &[("{{route}}", "topk(10, sum by (route) (rate(apisix_http_status{$i}[$r])))")],
    },
    Panel {
        title: "Share of 5xx",
        description: "By who answered: an upstream, the gateway, a plugin",
        unit: "percentunit",
        queries: &[(
            "{{response_source}}",
            "sum by (response_source) (rate(apisix_http_status{code=~\"5..\", $i}[$r])) / on () group_left () sum(rate(apisix_http_status{$i}[$r]))",
        )],
    },
    Panel {
        title: "Requests by consumer",
        description: "The ten busiest; requests without a consumer have an empty name",
        unit: "reqps",
        queries: &[("{{consumer}}", "topk(10, sum by (consumer) (rate(apisix_http_status{$i}[$r])))")],
    },
    Panel {
        title: "Requests by upstream node",
        description: "How the load is spread",
        unit: "reqps",
        queries: &[("{{node}}", "topk(20, sum by (node) (rate(apisix_http_status{node!=\"\", $i}[$r])))")],
    },
    Panel {
        title: "Healthy nodes of upstreams",
        description: "The share of those that health checks find well, of upstreams that have checks",
        unit: "percentunit",
        queries: &[("{{name}}", "avg by (name) (apisix_upstream_status{$i})")],
    },
    Panel {
        title: "All requests",
        description: "Those of routes without the plugin, and of no route, counted too",
        unit: "reqps",
        queries: &[("{{instance}}", "rate(apisix_http_requests_total{$i}[$r])")],
    },
];

const LATENCY: &[Panel] = &[
    Panel {
        title: "Request latency",
        description: "From the first byte of the request to the last of the response",
        unit: "ms",
        queries: &[
            (
                "p50",
                "histogram_quantile(0.5, sum by (le) (rate(apisix_http_latency_bucket{type=\"request\", $i}[$r])))",
            ),
            (
                "p95",
                "histogram_quantile(0.95, sum by (le) (rate(apisix_http_latency_bucket{type=\"request\", $i}[$r])))",
            ),
            (
                "p99",
                "histogram_quantile(0.99, sum by (le) (rate(apisix_http_latency_bucket{type=\"request\", $i}[$r])))",
            ),
        ],
    },
    Panel {
        title: "Latency of upstreams and of the gateway, p99",
        description: "apisix is what the gateway and its plugins added",
        unit: "ms",
        queries: &[(
            "{{type}}",
            "histogram_quantile(0.99, sum by (le, type) (rate(apisix_http_latency_bucket{type!=\"request\", $i}[$r])))",
        )],
    },
    Panel {
        title: "Mean latency by route",
        description: "The ten slowest routes",
        unit: "ms",
        queries: &[(
            "{{route}}",
            "topk(10, sum by (route) (rate(apisix_http_latency_sum{type=\"request\", $i}[$r])) / sum by (route) (rate(apisix_http_latency_count{type=\"request\", $i}[$r])))",
        )],
    },
];

const CONNECTIONS: &[Panel] = &[
    Panel {
        title: "Client connections",
        description: "Open now: with a request under way, waiting for the next one",
        unit: "short",
        queries: &[(
            "{{state}}",
            "sum by (state) (apisix_nginx_http_current_connections{state=~\"active|reading|writing|waiting\", $i})",
        )],
    },
    Panel {
        title: "New connections",
        description: "Accepted each second",
        unit: "cps",
        queries: &[(
            "{{instance}}",
            "rate(apisix_nginx_http_current_connections{state=\"accepted\", $i}[$r])",
        )],
    },
    Panel {
        title: "Bandwidth",
        description: "ingress is what clients sent",
        unit: "Bps",
        queries: &[("{{type}}", "sum by (type) (rate(apisix_bandwidth{$i}[$r]))")],
    },
];

const STREAMS: &[Panel] = &[
    Panel {
        title: "Streams",
        description: "TCP connections and UDP sessions open now, by address",
        unit: "short",
        queries: &[("{{listen_addr}}", "sum by (listen_addr) (apisix_stream_active_connections{$i})")],
    },
    Panel {
        title: "New streams by route and how streams ended",
        description: "Codes are nginx's: 200 well, 403 refused by a plugin, 502 no node reached, 503 too many",
        unit: "cps",
        queries: &[
            ("route {{route}}", "sum by (route) (rate(apisix_stream_connection_total{$i}[$r]))"),
            ("ended with {{code}}", "sum by (code) (rate(apisix_stream_status{$i}[$r]))"),
        ],
    },
    Panel {
        title: "Bandwidth of streams",
        description: "By side and direction",
        unit: "Bps",
        queries: &[("{{side}} {{type}}", "sum by (side, type) (rate(apisix_stream_bandwidth{$i}[$r]))")],
    },
];

const ITSELF: &[Panel] = &[
    Panel {
        title: "Versions",
        description: "Gateways by version",
        unit: "short",
        queries: &[("{{version}}", "count by (version) (apisix_node_info{$i})")],
    },
    Panel {
        title: "Store of resources",
        description: "1 if the store (embedded, or an etcd) could be read or written last",
        unit: "short",
        queries: &[("{{instance}}", "apisix_etcd_reachable{$i}")],
    },
    Panel {
        title: "Revision of the configuration",
        description: "Gateways of one etcd should show the same",
        unit: "none",
        queries: &[("{{instance}}", "apisix_etcd_modify_indexes{key=\"max_modify_index\", $i}")],
    },
    Panel {
        title: "Resources refused",
        description: "Written and not in force, by kind (/v1/refused of the control API names them), and whether the last look could be read",
        unit: "short",
        queries: &[
            ("{{kind}}", "sum by (kind) (apisix_config_refused_resources{$i})"),
            ("read {{instance}}", "apisix_config_read{$i}"),
        ],
    },
    Panel {
        title: "Log entries that wait",
        description: "In the batches of loggers, and dropped since their servers take too little",
        unit: "short",
        queries: &[
            ("{{name}} {{server_addr}}", "sum by (name, server_addr) (apisix_batch_process_entries{$i})"),
            ("dropped a second", "sum(rate(apisix_batch_process_dropped_entries_total{$i}[$r]))"),
        ],
    },
    Panel {
        title: "Values without a series",
        description: "Metrics that found no room (64 MiB) and are counted under __rest__",
        unit: "short",
        queries: &[("{{instance}}", "rate(apisix_nginx_metric_errors_total{$i}[$r])")],
    },
];
