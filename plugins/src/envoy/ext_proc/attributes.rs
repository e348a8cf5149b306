//! Attributes that a processor is told beside a message: names of CEL's
//! (docs/root/intro/arch_overview/advanced/attributes.rst), as many as are simple values of a request.

use serde_json::{Map, Value};
use sixfold_core::error::ConfigError;
use sixfold_core::headers::Known;
use sixfold_core::stream::Stream;
use sixfold_xds_api::values::Result;

type Read = fn(&Stream) -> Option<Value>;

fn text(bytes: &[u8]) -> Option<Value> {
    Some(String::from_utf8_lossy(bytes).into_owned().into())
}

fn header(stream: &Stream, name: Known) -> Option<Value> {
    text(stream.request.headers.get(name)?)
}

const ATTRIBUTES: [(&str, Read); 27] = [
    ("request.path", |s| text(s.request.target.full())),
    ("request.url_path", |s| text(s.request.target.path())),
    ("request.query", |s| text(s.request.target.query().unwrap_or_default())),
    ("request.host", |s| text(&s.request.authority)),
    ("request.scheme", |s| text(s.request.scheme.as_str().as_bytes())),
    ("request.method", |s| text(s.request.method.as_str().as_bytes())),
    ("request.protocol", |s| text(s.request.version.as_str().as_bytes())),
    ("request.referer", |s| header(s, Known::REFERER)),
    ("request.useragent", |s| header(s, Known::USER_AGENT)),
    ("request.id", |s| header(s, Known::X_REQUEST_ID)),
    ("request.size", |s| Some(s.bytes.request_body.into())),
    ("response.code", |s| (s.response.status > 0).then(|| s.response.status.into())),
    ("response.code_details", |s| s.details.as_deref().filter(|text| !text.is_empty()).map(Into::into)),
    ("response.size", |s| Some(s.bytes.response_body.into())),
    ("source.address", |s| Some(s.connection.remote.to_string().into())),
    ("source.port", |s| Some(s.connection.remote.port().into())),
    ("destination.address", |s| Some(s.connection.local.to_string().into())),
    ("destination.port", |s| Some(s.connection.local.port().into())),
    ("connection.id", |s| Some(s.connection.id.into())),
    ("connection.mtls", |s| Some(tls(s).is_some_and(|tls| tls.peer.is_some()).into())),
    ("connection.requested_server_name", |s| Some(s.connection.server_name()?.into())),
    ("connection.tls_version", |s| Some(tls(s)?.version.into())),
    ("connection.subject_peer_certificate", |s| Some(tls(s)?.peer.as_ref()?.subject.as_str().into())),
    ("connection.uri_san_peer_certificate", |s| {
        Some(tls(s)?.peer.as_ref()?.uri_sans.first()?.as_str().into())
    }),
    ("connection.dns_san_peer_certificate", |s| {
        Some(tls(s)?.peer.as_ref()?.dns_sans.first()?.as_str().into())
    }),
    ("xds.route_name", |s| Some((&*s.route.as_ref()?.name).into())),
    ("xds.cluster_name", |s| Some((&*s.upstream.cluster.as_ref()?.config.name).into())),
];

fn tls(stream: &Stream) -> Option<&sixfold_core::connection::TlsInfo> {
    stream.connection.tls.as_ref()
}

/// Attributes that a processor is told.
#[derive(Default)]
pub(super) struct Attributes(Vec<(&'static str, Read)>);

impl Attributes {
    pub(super) fn new(names: &[String], field: &str) -> Result<Attributes> {
        let find = |(index, name): (usize, &String)| {
            let found = ATTRIBUTES.iter().find(|(known, _)| known == name);
            let missing =
                || ConfigError::new(format!("the attribute \"{name}\" is not supported")).in_index(index);
            found.copied().ok_or_else(missing)
        };
        let found = names.iter().enumerate().map(find).collect::<Result<_>>();
        found.map(Attributes).map_err(|error| error.in_key(field))
    }

    /// Those that the request has.
    pub(super) fn of(&self, stream: &Stream) -> Map<String, Value> {
        self.0.iter().filter_map(|(name, read)| Some(((*name).to_owned(), read(stream)?))).collect()
    }
}
