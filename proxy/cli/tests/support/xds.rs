//! What control planes and agents of the tests share.

use bytes::{BufMut, Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response};
use sixfold_core::document::{Node, Options};
use sixfold_xds_api::json::encode_node;
use std::path::PathBuf;
use tokio::net::{UnixListener, UnixStream};

/// Types of resources.
pub mod types {
    /// What all of them begin with, before a dot.
    pub const PREFIX: &str = "type.googleapis.com/envoy";
    pub const CLUSTER: &str = "config.cluster.v3.Cluster";
    pub const ENDPOINTS: &str = "config.endpoint.v3.ClusterLoadAssignment";
    pub const LISTENER: &str = "config.listener.v3.Listener";
    pub const ROUTES: &str = "config.route.v3.RouteConfiguration";
    pub const EXTENSION: &str = "config.core.v3.TypedExtensionConfig";
    pub const SECRET: &str = "extensions.transport_sockets.tls.v3.Secret";
}

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

/// Gives every connection to a socket to `serve`, one after the other, on a thread of its own.
pub fn listen(path: PathBuf, mut serve: impl AsyncFnMut(UnixStream) + Send + 'static) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = UnixListener::bind(path).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                serve(stream).await;
            }
        });
    });
}

/// Gives every stream of every connection to a socket to a task of its own.
pub fn serve<F: Future<Output = ()> + Send + 'static>(
    path: PathBuf,
    answer: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + Send + 'static,
) {
    listen(path, async move |stream| {
        let answer = answer.clone();
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(answer(request, respond));
            }
        });
    });
}

/// Begins the answer of a call.
pub fn begin(mut respond: SendResponse<Bytes>) -> h2::SendStream<Bytes> {
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    respond.send_response(head, false).unwrap()
}

/// What a stream of gRPC brings.
pub struct Messages {
    body: RecvStream,
    received: BytesMut,
}

impl Messages {
    pub fn of(body: RecvStream) -> Messages {
        Messages { body, received: BytesMut::new() }
    }

    /// The messages that are whole with what comes next; `None` at the end.
    pub async fn next(&mut self) -> Option<Vec<BytesMut>> {
        let data = self.body.data().await?.ok()?;
        let _ = self.body.flow_control().release_capacity(data.len());
        self.received.extend_from_slice(&data);
        Some(std::iter::from_fn(|| message(&mut self.received)).collect())
    }
}

/// Takes the first message out of what has come of a stream of gRPC, if all of it has.
pub fn message(received: &mut BytesMut) -> Option<BytesMut> {
    let length = u32::from_be_bytes(received.get(1..5)?.try_into().ok()?) as usize;
    (received.len() >= 5 + length).then(|| received.split_to(5 + length).split_off(5))
}

/// The fields of a listener named `l` on a port, with `routes` of a connection manager.
pub fn listener(port: u16, routes: &str) -> String {
    let extensions = "type.googleapis.com/envoy.extensions.filters";
    format!(
        "name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: [{{filters: [{{name: hcm, \
         typed_config: {{\"@type\": {extensions}.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: l, \
         {routes}, http_filters: [{{name: router, typed_config: {{\"@type\": {extensions}.http.router.v3.Router}}}}]}}}}]}}]"
    )
}

/// The fields of a route configuration named `r` that does the same with every request.
pub fn routes(action: &str) -> String {
    format!(
        "name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, {action}}}]}}]"
    )
}

/// The fields of endpoints of a cluster: one, on a port.
pub fn endpoints(cluster: &str, port: u16) -> String {
    let address = format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}");
    format!("cluster_name: {cluster}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {address}}}}}]}}]")
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
