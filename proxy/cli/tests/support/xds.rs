//! What control planes and agents of the tests share.

use bytes::{BufMut, Bytes, BytesMut};
use sixfold_core::document::{Node, Options};
use sixfold_xds_api::json::encode_node;

/// Where the service is reached that a bootstrap of these tests follows.
pub const CLUSTER: &str = "xds-grpc";

/// A message of the discovery service from its text, as gRPC carries it.
pub fn framed(kind: &str, text: &str) -> Bytes {
    let node = Node::parse(text, &Options::default()).unwrap();
    let message = encode_node(&format!("envoy.service.discovery.v3.{kind}"), &node).unwrap();
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(&message);
    framed.freeze()
}

/// Takes the first message out of what has come of a stream of gRPC, if all of it has.
pub fn message(received: &mut BytesMut) -> Option<BytesMut> {
    let length = u32::from_be_bytes(received.get(1..5)?.try_into().ok()?) as usize;
    (received.len() >= 5 + length).then(|| received.split_to(5 + length).split_off(5))
}

/// A static cluster of one socket that gRPC is spoken on.
pub fn service(name: &str, socket: &str) -> String {
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    format!(
        "{{name: {name}, typed_extension_protocol_options: {{{options}: {{\"@type\": type.googleapis.com/{options}, \
         explicit_http_config: {{http2_protocol_options: {{}}}}}}}}, load_assignment: {{cluster_name: {name}, \
         endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: {socket}}}}}}}}}]}}]}}}}"
    )
}

/// A sidecar's bootstrap that has clusters and listeners of a control plane on a socket, beside `clusters` and `listeners`
/// of its own, each a line of a list.
pub fn bootstrap(admin: u16, socket: &str, api_type: &str, clusters: &str, listeners: &str) -> String {
    let service = service(CLUSTER, socket);
    let listeners = if listeners.is_empty() { String::new() } else { format!("  listeners:\n{listeners}") };
    format!(
        r#"
node: {{id: sidecar~127.0.0.1~a.b~b.svc.cluster.local, cluster: a.b}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
dynamic_resources:
  lds_config: {{ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3}}
  cds_config: {{ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3}}
  ads_config:
    api_type: {api_type}
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{{envoy_grpc: {{cluster_name: {CLUSTER}}}}}]
static_resources:
  clusters:
  - {service}
{clusters}{listeners}"#
    )
}
