"""Types, services and small helpers shared by replay.py and traffic.py.

All message types come from types.binpb.gz, a FileDescriptorSet of Envoy's v3 API (and of the few
Istio filter messages), so that only `grpcio` and `protobuf` have to be installed.
"""
import base64, gzip, json, os

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

HERE = os.path.dirname(os.path.abspath(__file__))
PREFIX = "type.googleapis.com/"
CDS = PREFIX + "envoy.config.cluster.v3.Cluster"
EDS = PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LDS = PREFIX + "envoy.config.listener.v3.Listener"
RDS = PREFIX + "envoy.config.route.v3.RouteConfiguration"
ECDS = PREFIX + "envoy.config.core.v3.TypedExtensionConfig"
SDS = PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"
NDS = PREFIX + "istio.networking.nds.v1.NameTable"
HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
SHORT = {CDS: "cds", EDS: "eds", LDS: "lds", RDS: "rds", ECDS: "ecds", SDS: "sds", NDS: "nds"}
LONG = {v: k for k, v in SHORT.items()}

POOL = descriptor_pool.DescriptorPool()


def _nds_file():
    """istio.networking.nds.v1.NameTable, the agent's DNS table (written down by hand)."""
    f = descriptor_pb2.FileDescriptorProto(name="nds.proto", package="istio.networking.nds.v1", syntax="proto3")
    t = f.message_type.add(name="NameTable")
    info = t.nested_type.add(name="NameInfo")
    for i, (name, label) in enumerate((("ips", 3), ("registry", 1), ("shortname", 1), ("namespace", 1),
                                       ("alt_hosts", 3)), 1):
        info.field.add(name=name, number=i, label=label, type=9)
    entry = t.nested_type.add(name="TableEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=9)
    entry.field.add(name="value", number=2, label=1, type=11, type_name=".istio.networking.nds.v1.NameTable.NameInfo")
    t.field.add(name="table", number=1, label=3, type=11, type_name=".istio.networking.nds.v1.NameTable.TableEntry")
    return f


def _load():
    files = descriptor_pb2.FileDescriptorSet()
    with gzip.open(os.path.join(HERE, "types.binpb.gz")) as f:
        files.ParseFromString(f.read())
    for f in files.file:
        POOL.Add(f)
    POOL.Add(_nds_file())


_load()


def cls(name):
    """The message class of a full name or type URL."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name.rsplit("/", 1)[-1]))


DiscoveryRequest = cls("envoy.service.discovery.v3.DiscoveryRequest")
DiscoveryResponse = cls("envoy.service.discovery.v3.DiscoveryResponse")
DeltaDiscoveryRequest = cls("envoy.service.discovery.v3.DeltaDiscoveryRequest")
DeltaDiscoveryResponse = cls("envoy.service.discovery.v3.DeltaDiscoveryResponse")
Resource = cls("envoy.service.discovery.v3.Resource")
Secret = cls(SDS)
ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"
SECRETS = "/envoy.service.secret.v3.SecretDiscoveryService/"


def decode(type_url, value):
    m = cls(type_url)()
    m.ParseFromString(value)
    return m


def unpack(any_):
    """The message inside an Any, or None when its type is unknown here."""
    try:
        return decode(any_.type_url, any_.value)
    except KeyError:
        return None


def name_of(type_url, msg):
    if type_url == EDS:
        return msg.cluster_name
    if type_url == NDS:
        return ""
    return msg.name


def to_dict(msg):
    """proto3 JSON; an Any of an unknown type is shown as {"@type", "value" (base64)}."""
    try:
        return json_format.MessageToDict(msg, preserving_proto_field_name=True, descriptor_pool=POOL)
    except (TypeError, json_format.SerializeToJsonError):
        return json_format.MessageToDict(_blind(msg), preserving_proto_field_name=True, descriptor_pool=POOL)


def _blind(msg):
    """A copy whose Anys of unknown type are wrapped as google.protobuf.BytesValue."""
    out = type(msg)()
    out.CopyFrom(msg)

    def walk(m):
        for fd, value in m.ListFields():
            if fd.type != fd.TYPE_MESSAGE:
                continue
            many = [value[k] for k in value] if fd.message_type.GetOptions().map_entry else (
                value if fd.is_repeated else [value])
            for v in many:
                if not hasattr(v, "ListFields"):
                    continue
                if v.DESCRIPTOR.full_name == "google.protobuf.Any":
                    inner = unpack(v)
                    if inner is None:
                        note = cls("google.protobuf.Struct")()
                        note.update({"unknown_type": v.type_url, "base64": base64.b64encode(v.value).decode()})
                        v.type_url, v.value = PREFIX + "google.protobuf.Struct", note.SerializeToString()
                    else:
                        walk(inner)
                        v.value = inner.SerializeToString()
                else:
                    walk(v)
    walk(out)
    return out


def from_dict(name, data):
    m = cls(name)()
    json_format.ParseDict(data, m, descriptor_pool=POOL)
    return m


# ---- what a configuration refers to -------------------------------------------------------------------------

def eds_name(cluster):
    """The EDS resource a cluster waits for, or None."""
    if cluster.WhichOneof("cluster_discovery_type") == "type" and cluster.type == 3:
        return cluster.eds_cluster_config.service_name or cluster.name
    return None


def listener_refs(listener):
    """(route configuration names, ECDS names) that a listener asks for over ADS."""
    routes, ext = set(), set()
    chains = list(listener.filter_chains)
    if listener.HasField("default_filter_chain"):
        chains.append(listener.default_filter_chain)
    for lf in listener.listener_filters:
        if lf.HasField("config_discovery"):
            ext.add(lf.name)
    for chain in chains:
        for f in chain.filters:
            if f.HasField("config_discovery"):
                ext.add(f.name)
            if not f.typed_config.type_url.endswith("/" + HCM):
                continue
            hcm = unpack(f.typed_config)
            if hcm.HasField("rds"):
                routes.add(hcm.rds.route_config_name)
            for h in hcm.http_filters:
                if h.HasField("config_discovery"):
                    ext.add(h.name)
    return routes, ext


# ---- recordings ---------------------------------------------------------------------------------------------

def open_text(path, mode="r"):
    if path.endswith(".gz"):
        return gzip.open(path, mode + "t", encoding="utf-8")
    return open(path, mode, encoding="utf-8")


def find(path):
    """path, or path + .gz, whichever exists (None otherwise)."""
    for p in (path, path + ".gz"):
        if os.path.exists(p):
            return p
    return None


def read_recording(path):
    """The records of a .jsonl[.gz] file; each gets `msg`, the decoded request or response."""
    with open_text(path) as f:
        for line in f:
            r = json.loads(line)
            if "b64" in r:
                kind = {("delta", "request"): DeltaDiscoveryRequest, ("delta", "response"): DeltaDiscoveryResponse,
                        ("sotw", "request"): DiscoveryRequest, ("sotw", "response"): DiscoveryResponse}
                r["msg"] = kind[r["protocol"], r["direction"]].FromString(base64.b64decode(r["b64"]))
            yield r
