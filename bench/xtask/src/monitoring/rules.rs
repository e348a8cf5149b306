//! Alerts, and their file as Prometheus reads it.

use std::fmt::Write as _;

use super::Alert;

pub(super) struct Group {
    pub(super) name: &'static str,
    pub(super) alerts: &'static [Alert],
}

pub(super) const GROUPS: &[Group] =
    &[Group { name: "sixfold-gateway", alerts: GATEWAY }, Group { name: "sixfold-sidecar", alerts: SIDECAR }];

const GATEWAY: &[Alert] = &[
    Alert {
        name: "SixfoldGatewayDown",
        value: "up{job=\"sixfold-gateway\"}",
        condition: "== 0",
        holds: "1m",
        severity: "critical",
        summary: "Gateway {{ $labels.instance }} can't be scraped",
        description: "The process is gone or hangs, or the page of metrics is off (plugin_attr.prometheus).",
    },
    Alert {
        name: "SixfoldGatewayErrors",
        value: "sum by (instance) (rate(apisix_http_status{code=~\"5..\"}[5m])) / sum by (instance) (rate(apisix_http_status[5m]))",
        condition: "> 0.05",
        holds: "5m",
        severity: "critical",
        summary: "{{ $value | humanizePercentage }} of the requests of {{ $labels.instance }} fail",
        description: "Look at 'Share of 5xx' for who answers them; sixfold explain tells where a request goes.",
    },
    Alert {
        name: "SixfoldGatewaySlow",
        value: "histogram_quantile(0.99, sum by (le, instance) (rate(apisix_http_latency_bucket{type=\"apisix\"}[5m])))",
        condition: "> 100",
        holds: "10m",
        severity: "warning",
        summary: "The gateway {{ $labels.instance }} itself adds {{ $value }} ms to every hundredth request",
        description: "Upstreams are not counted: plugins that ask other services, or a processor that is too busy.",
    },
    Alert {
        name: "SixfoldGatewayUpstreamDown",
        value: "max by (instance, name) (apisix_upstream_status)",
        condition: "== 0",
        holds: "1m",
        severity: "critical",
        summary: "{{ $labels.instance }} finds no node of {{ $labels.name }} healthy",
        description: "All of them are asked in spite of that. /v1/healthcheck tells what the checks have counted.",
    },
    Alert {
        name: "SixfoldGatewayStoreUnreachable",
        value: "apisix_etcd_reachable",
        condition: "== 0",
        holds: "1m",
        severity: "critical",
        summary: "Gateway {{ $labels.instance }} does not reach its store of resources",
        description: "It serves what it has; changes don't come, and the Admin API answers with 503.",
    },
    Alert {
        name: "SixfoldGatewayResourcesRefused",
        value: "sum by (instance, kind) (apisix_config_refused_resources)",
        condition: "> 0",
        holds: "5m",
        severity: "warning",
        summary: "{{ $labels.instance }} has refused {{ $value }} of its {{ $labels.kind }}",
        description: "Last good ones serve until a restart. /v1/refused of the control API has names and reasons.",
    },
    Alert {
        name: "SixfoldGatewayConfigurationUnread",
        value: "apisix_config_read",
        condition: "== 0",
        holds: "5m",
        severity: "warning",
        summary: "Gateway {{ $labels.instance }} can't read its resources",
        description: "What it has read before serves. /v1/refused of the control API has the reason.",
    },
    Alert {
        name: "SixfoldGatewayStreamsFail",
        value: "sum by (instance) (rate(apisix_stream_status{code=~\"5..\"}[5m])) / sum by (instance) (rate(apisix_stream_status[5m]))",
        condition: "> 0.05",
        holds: "5m",
        severity: "warning",
        summary: "{{ $value | humanizePercentage }} of the streams of {{ $labels.instance }} reach no node",
        description: "Code 502 is a node that can't be reached, 503 a limit, 500 a fault of the configuration.",
    },
    Alert {
        name: "SixfoldGatewayLogEntriesDropped",
        value: "increase(apisix_batch_process_dropped_entries_total[10m])",
        condition: "> 0",
        holds: "0m",
        severity: "warning",
        summary: "{{ $labels.instance }} has dropped {{ $value }} entries of loggers",
        description: "The server that they go to takes too little or is away.",
    },
    Alert {
        name: "SixfoldGatewayMetricsOverBudget",
        value: "increase(apisix_nginx_metric_errors_total[10m])",
        condition: "> 0",
        holds: "0m",
        severity: "warning",
        summary: "Metrics of {{ $labels.instance }} have more series than 64 MiB hold",
        description: "A label of extra_labels has too many values; new series are counted under __rest__.",
    },
];

const SIDECAR: &[Alert] = &[
    Alert {
        name: "SixfoldSidecarNotLive",
        value: "envoy_server_live",
        condition: "== 0",
        holds: "10m",
        severity: "warning",
        summary: "Proxy {{ $labels.instance }} is not live",
        description: "It still waits for its first configuration, or drains for long.",
    },
    Alert {
        name: "SixfoldSidecarErrors",
        value: "sum by (destination_service_name, reporter) (rate(istio_requests_total{response_code=~\"5..\"}[5m])) / sum by (destination_service_name, reporter) (rate(istio_requests_total[5m]))",
        condition: "> 0.05",
        holds: "5m",
        severity: "critical",
        summary: "{{ $value | humanizePercentage }} of the requests to {{ $labels.destination_service_name }} fail",
        description: "The label response_flags of istio_requests_total says why where a proxy answered itself.",
    },
    Alert {
        name: "SixfoldSidecarControlPlaneLost",
        value: "envoy_control_plane_connected_state",
        condition: "== 0",
        holds: "5m",
        severity: "warning",
        summary: "Proxy {{ $labels.instance }} has no stream to its control plane",
        description: "It serves what it has; changes of services and endpoints don't reach it.",
    },
    Alert {
        name: "SixfoldSidecarClustersRefused",
        value: "increase(envoy_cluster_manager_cds_update_rejected[10m])",
        condition: "> 0",
        holds: "0m",
        severity: "warning",
        summary: "Proxy {{ $labels.instance }} has refused clusters",
        description: "The last good ones serve. error_state in /config_dump has the field and the reason.",
    },
    Alert {
        name: "SixfoldSidecarListenersRefused",
        value: "increase(envoy_listener_manager_lds_update_rejected[10m])",
        condition: "> 0",
        holds: "0m",
        severity: "warning",
        summary: "Proxy {{ $labels.instance }} has refused listeners",
        description: "The last good ones serve. error_state in /config_dump has the field and the reason.",
    },
    Alert {
        name: "SixfoldSidecarNoHealthyEndpoint",
        value: "envoy_cluster_membership_healthy and envoy_cluster_membership_total > 0",
        condition: "== 0",
        holds: "2m",
        severity: "critical",
        summary: "A cluster of {{ $labels.instance }} has endpoints, and none is healthy",
        description: "Health checks or outlier detection hold all of them for ill.",
    },
    Alert {
        name: "SixfoldSidecarCircuitOpen",
        value: "envoy_cluster_circuit_breakers_default_rq_open",
        condition: "== 1",
        holds: "1m",
        severity: "warning",
        summary: "A cluster of {{ $labels.instance }} takes no more requests at once",
        description: "Requests beyond the circuit breaker's limit are answered with 503 and the flag UO.",
    },
    Alert {
        name: "SixfoldSidecarLogLinesDropped",
        value: "increase(envoy_filesystem_write_dropped[10m])",
        condition: "> 0",
        holds: "0m",
        severity: "warning",
        summary: "{{ $labels.instance }} has dropped {{ $value }} lines of access logs",
        description: "The disk is slower than requests come.",
    },
];

impl Alert {
    pub(super) fn expression(&self) -> String {
        let compound = self.value.contains(" and ");
        let value = if compound { format!("({})", self.value) } else { self.value.to_owned() };
        format!("{value} {}", self.condition)
    }
}

pub(super) fn yaml(group: &Group) -> String {
    let mut out = format!(
        "# Written by `cargo xtask monitoring --write`. Thresholds are a beginning: they are yours to change.\ngroups:\n- name: {}\n  rules:\n",
        group.name
    );
    for alert in group.alerts {
        let Alert { name, holds, severity, summary, description, .. } = alert;
        let _ = writeln!(out, "  - alert: {name}\n    expr: |-\n      {}", alert.expression());
        let _ = writeln!(out, "    for: {holds}\n    labels:\n      severity: {severity}");
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let _ = writeln!(
            out,
            "    annotations:\n      summary: {}\n      description: {}",
            quoted(summary),
            quoted(description)
        );
    }
    out
}
