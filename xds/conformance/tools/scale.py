#!/usr/bin/env python3
"""Serves the configuration of a sidecar in a large mesh, made here in the shapes that a real istiod sends.

    scale.py --bootstrap FILE --answers PORT,PORT [--admin PORT] [--probe PORT] [--services N]
             [--endpoints N] [--virtual-services N] [--protocol delta|sotw]

Writes a bootstrap for the sidecar to FILE, serves it over ADS and SDS, and says `serving` with the number of resources
and bytes of each type. Lines on standard input: `step N` sends the one endpoint of `bench.ns0` to the first port (N even)
or the second, and answers `sent SECONDS`, the time of day at which the response was handed over.

The filters that Istio alone has are left out, so that every proxy gets the same. Beside what istiod sends there is one
listener, on 127.0.0.1 and the port of --probe: requests for the host `bench` there take the route of that service.
"""
import argparse, os, queue, sys, tempfile, threading, time

import yaml

import replay, xds

EXT = xds.PREFIX + "envoy.extensions."
LOG = ('[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% '
       '%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% '
       '%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" '
       '"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% '
       '%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n')
ADS = {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
MOST = 4294967295


def typed(name, kind, **fields):
    """An extension."""
    return {"name": name, "typed_config": {"@type": EXT + kind, **fields}}


# ---- services -----------------------------------------------------------------------------------------------

class Service:
    """The n-th service: 15 % speak TCP on ports and addresses of their own, 5 % gRPC, the others HTTP on two ports."""

    def __init__(self, n, endpoints, virtual):
        self.name, self.namespace = "svc-%d" % n, "ns%d" % (n % 10)
        self.kind = "tcp" if n % 20 < 3 else "grpc" if n % 20 == 3 else "http"
        self.port = {"tcp": 5000 + n % 50, "grpc": 9000, "http": 80 if n % 2 else 8080}[self.kind]
        self.host = "%s.%s.svc.cluster.local" % (self.name, self.namespace)
        self.address = "127.250.%d.%d" % (n // 250, n % 250 + 1)
        self.subsets = ["", "v1", "v2"] if virtual else [""]
        self.virtual = virtual and self.kind != "tcp"
        self.number = n
        self.endpoints = [(n * endpoints + e, 1 + e % 2, 1 + e % 3) for e in range(endpoints)]

    def cluster_name(self, subset, port=None):
        return "outbound|%d|%s|%s" % (port or self.port, subset, self.host)

    def cluster(self, subset):
        name = self.cluster_name(subset)
        about = {"services": [{"host": self.host, "name": self.host, "namespace": self.namespace}]}
        if len(self.subsets) > 1:
            about["config"] = "/apis/networking.istio.io/v1/namespaces/%s/destination-rule/%s" % (self.namespace, self.name)
        if subset:
            about["subset"] = subset
        alpn = ["istio-peer-exchange", "istio"] + (["h2"] if self.kind == "grpc" else [])
        tls = typed("envoy.transport_sockets.tls", "transport_sockets.tls.v3.UpstreamTlsContext", common_tls_context={
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": alpn, "tls_certificate_sds_secret_configs": [secret("default")],
            "combined_validation_context": {
                "default_validation_context": {"match_subject_alt_names": [
                    {"exact": "spiffe://cluster.local/ns/%s/sa/%s" % (self.namespace, self.name)}]},
                "validation_context_sds_secret_config": secret("ROOTCA")}},
            sni="outbound_.%d_.%s_.%s" % (self.port, subset or "_", self.host))
        out = {
            "name": name, "type": "EDS", "eds_cluster_config": {"eds_config": ADS, "service_name": name},
            "connect_timeout": "10s", "lb_policy": "LEAST_REQUEST",
            "circuit_breakers": {"thresholds": [{"max_connections": 100 if len(self.subsets) > 1 else MOST,
                                                 "max_pending_requests": MOST, "max_requests": MOST, "max_retries": MOST}]},
            "metadata": {"filter_metadata": {"istio": about}},
            "common_lb_config": {"healthy_panic_threshold": {}}, "alt_stat_name": name + ";",
            "transport_socket_matches": [
                {"name": "tlsMode-istio", "match": {"tlsMode": "istio"}, "transport_socket": tls},
                {"name": "tlsMode-disabled", "match": {}, "transport_socket": typed(
                    "envoy.transport_sockets.raw_buffer", "transport_sockets.raw_buffer.v3.RawBuffer")}]}
        if len(self.subsets) > 1:
            out["outlier_detection"] = {"consecutive_5xx": 7, "enforcing_consecutive_5xx": 100, "enforcing_success_rate": 0}
        if self.kind == "grpc":
            out["typed_extension_protocol_options"] = http2()
        return out

    def assignment(self, subset):
        zones = {}
        for number, version, zone in self.endpoints:
            if not subset or subset == "v%d" % version:
                zones.setdefault(zone, []).append(self.endpoint(number, version))
        return {"cluster_name": self.cluster_name(subset), "endpoints": [
            {"locality": {"region": "region1", "zone": "zone%d" % zone}, "lb_endpoints": hosts,
             "load_balancing_weight": len(hosts), "priority": 0 if zone == 1 else 1} for zone, hosts in sorted(zones.items())]}

    def endpoint(self, number, version):
        address = "127.%d.%d.%d" % (100 + number // 62500, number // 250 % 250, number % 250 + 1)
        return {"endpoint": {"address": socket(address, 8000)}, "load_balancing_weight": 1, "metadata": {"filter_metadata": {
            "istio": {"workload": ";;%s;v%d;Kubernetes" % (self.name, version)},
            "envoy.transport_socket_match": {"tlsMode": "istio"}}}}

    def virtual_host(self, port):
        """Its own in the table of its port, and in that of port 80 for the sake of its VirtualService."""
        domains = [self.host]
        if port == self.port:
            domains += [self.host + ".", "%s.%s" % (self.name, self.namespace), "%s.%s.svc" % (self.name, self.namespace),
                        self.address] + ([self.name] if self.namespace == "ns0" else [])
        return {"name": "%s:%d" % (self.host, port), "domains": domains, "include_request_attempt_count": True,
                "routes": self.routes(port)}

    def routes(self, port):
        if not self.virtual:
            return [route({"prefix": "/"}, {"cluster": self.cluster_name("", port)}, self, name="default")]
        to_beta = {"cluster": self.cluster_name("v2", port)}
        header = {"name": "x-beta", "string_match": {"exact": "1"}}
        weighted = {"weighted_clusters": {"clusters": [{"name": self.cluster_name("v1", port), "weight": 90},
                                                       {"name": self.cluster_name("v2", port), "weight": 10}]}}
        return [
            route({"prefix": "/", "case_sensitive": True, "headers": [header]}, to_beta, self, name="beta"),
            route({"prefix": "/beta/%d" % self.number, "case_sensitive": True}, to_beta, self, name="beta"),
            route({"prefix": "/"}, weighted, self, "10s", {"retry_on": "5xx", "num_retries": 3, "per_try_timeout": "2s"}, "main")]


class Bench(Service):
    """The service whose endpoint changes: it is not in the mesh, and one answers for it."""

    def __init__(self, port):
        super().__init__(1_000_000_001, 0, False)
        self.name, self.namespace, self.host = "bench", "ns0", "bench.ns0.svc.cluster.local"
        self.kind, self.port, self.address, self.answers = "http", 80, "127.250.9.1", port

    def assignment(self, subset):
        return {"cluster_name": self.cluster_name(subset), "endpoints": [
            {"locality": {"region": "region1", "zone": "zone1"}, "load_balancing_weight": 1, "lb_endpoints": [
                {"endpoint": {"address": socket("127.0.0.1", self.answers)}, "load_balancing_weight": 1}]}]}


def route(match, action, service, timeout="0s", retry=None, name=""):
    retry = retry or {"retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", "num_retries": 2}
    previous = typed("envoy.retry_host_predicates.previous_hosts", "retry.host.previous_hosts.v3.PreviousHostsPredicate")
    return {"match": match, "name": name, "decorator": {"operation": "%s:%d/*" % (service.host, service.port)},
            "metadata": {"filter_metadata": {"istio": {
                "config": "/apis/networking.istio.io/v1/namespaces/%s/virtual-service/%s" % (service.namespace, service.name)}}},
            "route": {**action, "timeout": timeout, "max_grpc_timeout": timeout, "retry_policy": {
                **retry, "retry_host_predicate": [previous], "host_selection_retry_max_attempts": "5"}}}


def socket(address, port):
    return {"socket_address": {"address": address, "port_value": port}}


def secret(name):
    return {"name": name, "sds_config": {
        "api_config_source": {"api_type": "GRPC", "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
                              "set_node_on_first_message_only": True, "transport_api_version": "V3"},
        "initial_fetch_timeout": "0s", "resource_api_version": "V3"}}


def http2():
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": EXT + "upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}}


# ---- listeners ----------------------------------------------------------------------------------------------

def access_log():
    return [typed("envoy.access_loggers.file", "access_loggers.file.v3.FileAccessLog", path="/dev/stdout",
                  log_format={"text_format_source": {"inline_string": LOG}})]


def tcp_proxy(cluster):
    return typed("envoy.filters.network.tcp_proxy", "filters.network.tcp_proxy.v3.TcpProxy", stat_prefix=cluster,
                 cluster=cluster, access_log=access_log())


def manager(prefix, routes):
    labels = {"istio.canonical_revision": "v1", "istio.canonical_service": "client", "istio.cluster_id": "Kubernetes",
              "istio.mesh_id": "cluster.local", "istio.namespace": "ns0"}
    filters = [("grpc_stats", "grpc_stats.v3.FilterConfig", {"emit_filter_state": True, "stats_for_all_methods": False}),
               ("fault", "fault.v3.HTTPFault", {}), ("cors", "cors.v3.Cors", {}), ("router", "router.v3.Router", {})]
    return typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager", stat_prefix=prefix, **routes,
        http_filters=[typed("envoy.filters.http." + name, "filters.http." + kind, **config) for name, kind, config in filters],
        tracing={"client_sampling": {"value": 100.0}, "random_sampling": {"value": 1.0}, "overall_sampling": {"value": 100.0},
                 "custom_tags": [{"tag": tag, "literal": {"value": value}} for tag, value in labels.items()]},
        access_log=access_log(), use_remote_address=False, proxy_100_continue=True, stream_idle_timeout="0s",
        upgrade_configs=[{"upgrade_type": "websocket"}], normalize_path=True,
        request_id_extension={"typed_config": {"@type": EXT + "request_id.uuid.v3.UuidRequestIdConfig",
                                               "use_request_id_for_trace_sampling": True}})


def by_name(port):
    return {"rds": {"config_source": ADS, "route_config_name": str(port)}}


def outbound(name, address, port, chains, **more):
    return {"name": name, "address": socket(address, port), "traffic_direction": "OUTBOUND", "bind_to_port": False,
            "filter_chains": chains, **more}


def http_listener(port):
    match = {"transport_protocol": "raw_buffer", "application_protocols": ["http/1.1", "h2c"]}
    return outbound(
        "0.0.0.0_%d" % port, "0.0.0.0", port,
        [{"filter_chain_match": match, "filters": [manager("outbound_0.0.0.0_%d;" % port, by_name(port))]}],
        listener_filters=[typed("envoy.filters.listener.http_inspector", "filters.listener.http_inspector.v3.HttpInspector")],
        listener_filters_timeout="0s", continue_on_listener_filters_timeout=True,
        default_filter_chain={"filters": [tcp_proxy("PassthroughCluster")], "name": "PassthroughFilterChain"})


def inbound():
    """What istiod makes of one HTTP port in PERMISSIVE mode, and of all others."""
    context = {
        "require_client_certificate": True, "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"], "tls_certificate_sds_secret_configs": [secret("default")],
            "combined_validation_context": {
                "default_validation_context": {"match_subject_alt_names": [{"prefix": "spiffe://cluster.local/"}]},
                "validation_context_sds_secret_config": secret("ROOTCA")}}}
    tls = typed("envoy.transport_sockets.tls", "transport_sockets.tls.v3.DownstreamTlsContext", **context)
    alpn = ["istio-http/1.0", "istio-http/1.1", "istio-h2"]
    routes = {"route_config": {"name": "inbound|9080||", "validate_clusters": False, "virtual_hosts": [
        {"name": "inbound|http|9080", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "name": "default", "route": {"cluster": "InboundPassthroughCluster", "timeout": "0s"}}]}]}}
    hcm = manager("inbound_0.0.0.0_9080;", routes)
    return {
        "name": "virtualInbound", "address": socket("127.0.0.1", 0), "traffic_direction": "INBOUND", "filter_chains": [
            {"filter_chain_match": {"destination_port": 15006}, "filters": [tcp_proxy("BlackHoleCluster")], "name": "blackhole"},
            {"filter_chain_match": {"destination_port": 9080, "transport_protocol": "tls", "application_protocols": alpn},
             "filters": [hcm], "transport_socket": tls, "name": "0.0.0.0_9080"},
            {"filter_chain_match": {"destination_port": 9080, "transport_protocol": "raw_buffer"}, "filters": [hcm],
             "name": "0.0.0.0_9080"},
            {"filter_chain_match": {"transport_protocol": "raw_buffer"}, "filters": [tcp_proxy("InboundPassthroughCluster")],
             "name": "virtualInbound"}],
        "listener_filters": [
            typed("envoy.filters.listener.tls_inspector", "filters.listener.tls_inspector.v3.TlsInspector"),
            typed("envoy.filters.listener.http_inspector", "filters.listener.http_inspector.v3.HttpInspector")]}


# ---- the whole ----------------------------------------------------------------------------------------------

def passthrough(name, **more):
    options = {"@type": EXT + "upstreams.http.v3.HttpProtocolOptions", "common_http_protocol_options": {"idle_timeout": "300s"},
               "use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}}}
    return {"name": name, "type": "ORIGINAL_DST", "connect_timeout": "10s", "lb_policy": "CLUSTER_PROVIDED",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}, **more}


def resources(services, probe):
    """All resources by type and name."""
    http = [s for s in services if s.kind != "tcp"]
    allow_any = {"name": "allow_any", "domains": ["*"], "routes": [
        {"match": {"prefix": "/"}, "name": "allow_any", "route": {"cluster": "PassthroughCluster", "timeout": "0s"}}]}
    clusters = [s.cluster(subset) for s in services for subset in s.subsets]
    clusters += [passthrough("PassthroughCluster"),
                 passthrough("InboundPassthroughCluster", upstream_bind_config={"source_address": {"address": "127.0.0.6", "port_value": 0}}),
                 {"name": "BlackHoleCluster", "type": "STATIC", "connect_timeout": "10s"}]
    listeners = [http_listener(port) for port in (80, 8080, 9000)] + [inbound()]
    listeners += [outbound("%s_%d" % (s.address, s.port), s.address, s.port, [{"filters": [tcp_proxy(s.cluster_name(""))]}])
                  for s in services if s.kind == "tcp"]
    listeners.append({"name": "probe", "address": socket("127.0.0.1", probe),
                      "filter_chains": [{"filters": [manager("probe", by_name(80))]}]})
    tables = [{"name": str(port), "validate_clusters": False, "ignore_port_in_host_matching": True, "virtual_hosts": [
        s.virtual_host(port) for s in http if s.port == port or s.virtual and port == 80] + [allow_any]}
        for port in (80, 8080, 9000)]
    assignments = [s.assignment(subset) for s in services for subset in s.subsets]
    return {
        xds.CDS: packed(xds.CDS, clusters), xds.EDS: packed(xds.EDS, assignments, "cluster_name"),
        xds.LDS: packed(xds.LDS, listeners), xds.RDS: packed(xds.RDS, tables)}


def packed(kind, messages, name="name"):
    return {m[name]: xds.from_dict(kind, m).SerializeToString(deterministic=True) for m in messages}


class Sidecar:
    """What replay.py serves: a node, and its resources before and after each step."""

    def __init__(self, o):
        virtual = lambda n: n * o.virtual_services // o.services != (n + 1) * o.virtual_services // o.services
        services = [Service(n, o.endpoints, virtual(n)) for n in range(o.services)]
        ports = [int(port) for port in o.answers.split(",")]
        first, other = (Bench(port) for port in ports)
        self.name, self.ip = "client", "127.0.0.1"
        self.node = xds.cls("envoy.config.core.v3.Node")(id="sidecar~127.0.0.31~client-v1-0.ns0~ns0.svc.cluster.local", cluster="client.ns0")
        self.node.metadata.update({"NAMESPACE": "ns0", "SERVICE_ACCOUNT": "client", "ISTIO_VERSION": "1.29.6"})
        before = resources(services + [first], o.probe)
        changed = {xds.EDS: {**before[xds.EDS], **packed(xds.EDS, [other.assignment("")], "cluster_name")}}
        self.steps = [before, {**before, **changed}]


class Server(replay.Server):
    """Takes note of when a push is handed over."""

    def __init__(self, sidecar):
        super().__init__([sidecar], replay.Edits())
        self.sidecar, self.sent = sidecar, queue.Queue()

    def snapshot(self, proxy):
        return proxy.steps[self.step % 2]

    def go(self, step):
        self.step = step
        for stream in list(self.streams):
            stream.put("push")


def handed_over(push, server):
    """Marks the responses of endpoints as they go."""
    def marked(self, t, fresh=()):
        for message in push(self, t, fresh):
            if t == xds.EDS:
                server.sent.put(time.time())
            yield message
    return marked


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--bootstrap", required=True)
    a.add_argument("--answers", required=True, metavar="PORT,PORT")
    a.add_argument("--admin", type=int, default=15000)
    a.add_argument("--probe", type=int, default=15080)
    a.add_argument("--services", type=int, default=1000)
    a.add_argument("--endpoints", type=int, default=5)
    a.add_argument("--virtual-services", type=int, default=590, help="of which a sixth is for services of TCP, and nothing then")
    a.add_argument("--protocol", choices=["delta", "sotw"], default="delta")
    o = a.parse_args()
    sidecar = Sidecar(o)
    server = Server(sidecar)
    replay.Stream.push = handed_over(replay.Stream.push, server)
    server.start("127.0.0.1:0")
    tempfile.tempdir = os.path.dirname(os.path.abspath(o.bootstrap))
    secrets = replay.Secrets()
    sds = os.path.join(secrets.dir, "socket")
    secrets.identity("ns0", "client")
    secrets.start(sds)
    bootstrap = replay.bootstrap(sidecar, server.port, sds, o.protocol, o.admin)
    with open(o.bootstrap, "w") as f:
        yaml.safe_dump(bootstrap, f)
    sizes = {xds.SHORT[t]: (len(v), sum(map(len, v.values()))) for t, v in sidecar.steps[0].items()}
    print("serving", *("%s %d (%d bytes)" % (t, n, size) for t, (n, size) in sizes.items()), flush=True)
    for line in sys.stdin:
        word = line.split()
        if word[:1] == ["step"]:
            while not server.sent.empty():
                server.sent.get()
            server.go(int(word[1]))
            print("sent %.6f" % server.sent.get(timeout=10), flush=True)
        elif word[:1] == ["nacks"]:
            print("nacks", server.nacks, flush=True)
    server.grpc.stop(0)


if __name__ == "__main__":
    main()
