//! Envoy's network filter ext_authz (source/extensions/filters/network/ext_authz/ext_authz.cc): a service decides whether a
//! connection may go on, once its client has sent something.

use crate::envoy::authz::{self, Peer};
use crate::envoy::service::{self, Service};
use prost::{Message, Name};
use sixfold_core::connection::Connection;
use sixfold_core::error::ConfigContext;
use sixfold_core::flags::Flag;
use sixfold_core::format::Format;
use sixfold_core::listener::{ClientBytes, Closing, ConnectionFilter, FilterStep, Resume};
use sixfold_core::matcher::MetadataMatcher;
use sixfold_core::metrics::{self, GaugeGuard};
use sixfold_core::plugin::{BuildContext, NetworkFilterFactory, Slot};
use sixfold_core::stream::Stream;
use sixfold_xds_api::any::struct_to_json;
use sixfold_xds_api::pb::envoy::extensions::filters::network::ext_authz::v3::ExtAuthz as ProtoAuthz;
use sixfold_xds_api::pb::envoy::service::auth::v3::attribute_context::TlsSession;
use sixfold_xds_api::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use sixfold_xds_api::values::{Result, not_empty, required};
use sixfold_xds_api::{destructure, format, matcher};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Whose dynamic metadata it is what the service says.
const NAME: &str = "envoy.filters.network.ext_authz";

sixfold_core::stat_block! {
    /// Statistics under `ext_authz.PREFIX.`.
    pub struct TcpAuthzStats {
        counters: [total, ok, denied, error, failure_mode_allowed, cx_closed, disabled],
        gauges: [active],
        histograms: [],
    }
}

pub(crate) fn factory() -> NetworkFilterFactory {
    NetworkFilterFactory::new(ProtoAuthz::full_name(), |config, context| {
        let config = crate::envoy::decode::<ProtoAuthz>(config)?;
        Ok(Arc::new(ExtAuthz(Arc::new(Settings::new(&config, context)?))))
    })
}

struct ExtAuthz(Arc<Settings>);

struct Settings {
    service: Service,
    /// [`NAME`], whose metadata it is.
    namespace: Arc<str>,
    allow_on_error: bool,
    certificate: Option<Format>,
    tls_session: bool,
    enabled_metadata: Option<MetadataMatcher>,
    labels: HashMap<String, String>,
    metadata: Box<[Arc<str>]>,
    stats: TcpAuthzStats,
}

impl std::fmt::Debug for ExtAuthz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(NAME)
    }
}

impl Settings {
    fn new(value: &ProtoAuthz, context: &BuildContext) -> Result<Settings> {
        destructure!(ProtoAuthz {
            stat_prefix,
            grpc_service,
            failure_mode_allow,
            include_peer_certificate,
            transport_api_version,
            filter_enabled_metadata,
            bootstrap_metadata_labels_key,
            include_tls_session,
            metadata_context_namespaces,
            // Nothing here leaves messages in the metadata of a connection.
            typed_metadata_context_namespaces: _
        } refusing { send_tls_alert_on_denial, shadow_mode } = value);
        service::check_version(*transport_api_version)?;
        let grpc = required(grpc_service, "grpc_service")?;
        let enabled = filter_enabled_metadata.as_ref().map(matcher::metadata).transpose();
        let prefix = metrics::scope(&["ext_authz", not_empty(stat_prefix, "stat_prefix")?]);
        Ok(Settings {
            service: Service::new(grpc, Some(authz::TIMEOUT), context).in_key("grpc_service")?,
            namespace: NAME.into(),
            allow_on_error: *failure_mode_allow,
            certificate: include_peer_certificate
                .then(|| format::text("%DOWNSTREAM_PEER_CERT%"))
                .transpose()?,
            tls_session: *include_tls_session,
            enabled_metadata: enabled.in_key("filter_enabled_metadata")?,
            labels: authz::labels(context, bootstrap_metadata_labels_key),
            metadata: metadata_context_namespaces.iter().map(|name| name.as_str().into()).collect(),
            stats: TcpAuthzStats::new(&context.metrics, &prefix),
        })
    }

    fn check(&self, stream: &Stream) -> CheckRequest {
        let connection: &Connection = &stream.connection;
        let (mut source, mut destination) =
            (authz::peer(connection, Peer::Client), authz::peer(connection, Peer::Proxy));
        source.certificate = authz::certificate(self.certificate.as_ref(), stream);
        destination.labels = self.labels.clone();
        let tls = connection.tls.as_ref().filter(|_| self.tls_session);
        let sni = tls.map(|tls| tls.server_name.as_deref().unwrap_or_default().to_owned());
        CheckRequest {
            attributes: Some(AttributeContext {
                source: Some(source),
                destination: Some(destination),
                metadata_context: Some(service::told_metadata(stream, &self.metadata)),
                tls_session: sni.map(|sni| TlsSession { sni }),
                ..AttributeContext::default()
            }),
        }
    }

    /// Does what the service says, or lets it be known that it has not.
    fn conclude(&self, answer: Option<CheckResponse>, started: Instant, stream: &mut Stream) -> FilterStep {
        let stats = &self.stats;
        let Some(CheckResponse { status, dynamic_metadata, http_response: _ }) = answer else {
            stats.error().inc();
            if self.allow_on_error {
                stats.failure_mode_allowed().inc();
                return FilterStep::Done;
            }
            return self.close("ext_authz_error", stream);
        };
        let is_ok = status.is_none_or(|status| status.code == 0);
        if let Some(serde_json::Value::Object(mut values)) = dynamic_metadata.map(struct_to_json)
            && !values.is_empty()
        {
            if is_ok {
                let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                values.insert("ext_authz_duration".to_owned(), millis.into());
            }
            let entries = values.into_iter().map(|(key, value)| (self.namespace.clone(), key.into(), value));
            stream.metadata.extend(entries);
        }
        if is_ok {
            stats.ok().inc();
            return FilterStep::Done;
        }
        stats.denied().inc();
        self.close("ext_authz_denied", stream)
    }

    fn close(&self, details: &'static str, stream: &mut Stream) -> FilterStep {
        self.stats.cx_closed().inc();
        stream.flags.insert(Flag::UAEX);
        stream.details = Some(details.into());
        FilterStep::Close(Closing { reason: "ext_authz_close", ..Closing::default() })
    }
}

impl ConnectionFilter for ExtAuthz {
    fn on_data(&self, connection: &mut Stream, _: Slot, _: &mut ClientBytes<'_>) -> FilterStep {
        let settings = self.0.clone();
        if settings.enabled_metadata.as_ref().is_some_and(|test| !test.matches(&connection.metadata)) {
            settings.stats.disabled().inc();
            return FilterStep::Continue;
        }
        settings.stats.total().inc();
        let request = settings.check(connection).encode_to_vec();
        let (client, headers) = (settings.service.client.clone(), settings.service.headers(connection));
        let started = Instant::now();
        FilterStep::wait(async move {
            let answer = {
                let _active: GaugeGuard<'_> = settings.stats.active().raise();
                client.unary(authz::CHECK, headers, &request).await
            };
            let answer = answer.ok().and_then(|message| CheckResponse::decode(&*message).ok());
            Box::new(move |stream: &mut Stream| settings.conclude(answer, started, stream)) as Resume
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::testing::grpc::{GrpcService, Reply};
    use crate::testing::{read, stream};
    use sixfold_core::plugin::Scope;
    use sixfold_xds_api::pb::google::rpc::Status;

    /// What becomes of a connection whose client has sent something.
    async fn asked(filter: &dyn ConnectionFilter, connection: &mut Stream) -> FilterStep {
        let (mut received, mut answer) = (b"hello".to_vec(), Vec::new());
        let mut bytes = ClientBytes { received: &mut received, end: false, answer: &mut answer };
        match filter.on_data(connection, Slot::new(0, Scope::Route), &mut bytes) {
            FilterStep::Wait(waiting) => waiting.await(connection),
            _ => panic!("nobody was asked"),
        }
    }

    fn says(code: i32) -> Reply {
        let status = Some(Status { code, ..Status::default() });
        Reply::Message(CheckResponse { status, ..CheckResponse::default() }.encode_to_vec())
    }

    #[tokio::test]
    async fn connections_that_are_not_let_in_are_closed() {
        let ends = Some("ext_authz_close");
        for (reply, allows, closed, details, count) in [
            ((|| says(0)) as fn() -> Reply, false, None, "", "ok"),
            (|| says(7), false, ends, "ext_authz_denied", "denied"),
            (|| says(7), true, ends, "ext_authz_denied", "denied"),
            (|| Reply::Status(14), false, ends, "ext_authz_error", "error"),
            (|| Reply::Message(b"\xff".to_vec()), false, ends, "ext_authz_error", "error"),
            (|| Reply::Cut, true, None, "", "failure_mode_allowed"),
        ] {
            let service = GrpcService::new(move |_| reply());
            let context = service.context();
            let config = format!(
                "{{stat_prefix: s, failure_mode_allow: {allows}, grpc_service: {{envoy_grpc: {{cluster_name: c}}}}, \
                 transport_api_version: V3}}"
            );
            let filter = factory().build(&read::<ProtoAuthz>(&config).encode_to_vec(), &context).unwrap();
            let mut connection = stream("/", &[]);
            let step = asked(&*filter, &mut connection).await;
            let reason = match &step {
                FilterStep::Close(closing) => Some(closing.reason),
                FilterStep::Done => None,
                _ => panic!("it is asked again"),
            };
            assert_eq!(
                (reason, connection.details.as_deref().unwrap_or_default()),
                (closed, details),
                "{count}"
            );
            assert_eq!(connection.flags.contains(Flag::UAEX), closed.is_some());
            let counted = |name: &str| context.metrics.sum("ext_authz.s.", name);
            assert_eq!((counted("total"), counted(count), counted("active")), (1, 1, 0), "{count}");
            assert_eq!(counted("cx_closed"), u64::from(closed.is_some()));
        }
    }
}
