//! Header rules at the edge of the proxy: what a request tells of the client, what of that is believed, and
//! what leaves with the response (Envoy's common/http/conn_manager_utility.cc `mutateRequestHeaders` and
//! `mutateResponseHeaders`; APISIX's nginx configuration).

mod apisix;
mod date;
mod operation;
mod proxy_status;
mod request_id;
#[cfg(test)]
pub(crate) mod tests;
mod trust;
mod xfcc;

use crate::h1::framing::ContentLength;
use crate::h1::{hop, is_upgrade};
use sixfold_core::hcm::{HttpConnectionManager, Profile, ServerHeader};
use sixfold_core::headers::{Headers, Known, KnownSet};
use sixfold_core::message::Scheme;
use sixfold_core::plugin::LocalReply;
use sixfold_core::router::TableOptions;
use sixfold_core::stream::{ResponseSource, Stream};
use tokio::time::Instant;

pub(crate) use apisix::hide_upstream_headers;
pub(crate) use operation::request as name_operation;

/// Prepares the headers of a request and finds out the client's address. Runs before the route is chosen.
/// An answer ends the request.
pub(crate) fn request(
    hcm: &HttpConnectionManager,
    table: Option<&TableOptions>,
    stream: &mut Stream,
) -> Option<LocalReply> {
    if hcm.profile == Profile::Apisix {
        apisix::request(hcm, stream);
        return None;
    }
    let headers = &mut stream.request.headers;
    // The codec leaves the field only to what it has taken for an upgrade.
    let upgrade = headers.contains(Known::UPGRADE);
    hop::strip_request(headers, upgrade, Profile::Envoy);
    let trust = match trust::decide(&hcm.client_address, &hcm.headers, stream) {
        Ok(trust) => trust,
        Err(status) => {
            hcm.stats.downstream_rq_rejected_via_ip_detection().inc();
            return Some(LocalReply::new(status, "", "rejecting_because_detection_failed"));
        }
    };
    stream.remote = trust.remote;
    stream.internal = trust.internal;
    set_scheme(hcm, stream);
    clean(table, trust, &mut stream.request.headers);
    announce(hcm, trust, stream);
    xfcc::apply(&hcm.headers, stream);
    None
}

/// `:scheme` and `x-forwarded-proto` agree on what the client used, as far as it is known.
fn set_scheme(hcm: &HttpConnectionManager, stream: &mut Stream) {
    let own = if stream.connection.tls.is_some() { Scheme::Https } else { Scheme::Http };
    let head = &mut stream.request;
    let sent = head.headers.get(Known::X_FORWARDED_PROTO).filter(|_| !hcm.client_address.is_first_hop());
    let told = sent.and_then(|v| match v {
        b"http" => Some(Scheme::Http),
        b"https" => Some(Scheme::Https),
        _ => None,
    });
    let proto = hcm.headers.scheme.or(told).unwrap_or(own);
    // What is no scheme that we know (`wss`) tells us nothing, and is left to those who know it.
    if hcm.headers.scheme.is_some() || sent.is_none() {
        head.headers.set(Known::X_FORWARDED_PROTO, proto.as_str().as_bytes());
    }
    // Only an absolute target over HTTP/1 and HTTP/2's pseudo header say it themselves.
    if hcm.headers.scheme.is_some() || (head.version.is_http1() && head.scheme == own) {
        head.scheme = proto;
    }
}

/// What steers the router: for clients inside.
const STEERING: KnownSet = KnownSet::of(&[
    Known::X_ENVOY_RETRY_ON,
    Known::X_ENVOY_RETRY_GRPC_ON,
    Known::X_ENVOY_MAX_RETRIES,
    Known::X_ENVOY_UPSTREAM_ALT_STAT_NAME,
    Known::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS,
    Known::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS,
    Known::X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE,
    Known::X_ENVOY_UPSTREAM_STREAM_DURATION_MS,
    Known::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS,
    Known::X_ENVOY_FORCE_TRACE,
    Known::X_ENVOY_IP_TAGS,
    Known::X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT,
    Known::X_ENVOY_RETRIABLE_STATUS_CODES,
    Known::X_ENVOY_RETRIABLE_HEADER_NAMES,
]);

/// What an Envoy before us tells: not for clients at the edge.
const TELLING: KnownSet = KnownSet::of(&[
    Known::X_ENVOY_DECORATOR_OPERATION,
    Known::X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER,
    Known::X_ENVOY_DOWNSTREAM_SERVICE_NODE,
    Known::X_ENVOY_ORIGINAL_PATH,
    Known::X_ENVOY_ORIGINAL_HOST,
    Known::X_ENVOY_ORIGINAL_URL,
]);

const CLEANED: KnownSet = KnownSet::of(&[Known::X_ENVOY_INTERNAL]).and(&STEERING).and(&TELLING);

/// Takes off what clients outside may not send.
fn clean(table: Option<&TableOptions>, trust: trust::Trust, headers: &mut Headers) {
    if headers.may_have(&CLEANED) {
        headers.remove_known(|known| match known {
            Known::X_ENVOY_INTERNAL => true,
            known if STEERING.contains(known) => !trust.internal,
            known => TELLING.contains(known) && trust.edge,
        });
    }
    if !trust.internal {
        for name in table.map_or(&[][..], |t| &t.internal_only_headers) {
            headers.remove(name);
        }
    }
}

/// Adds what the proxy itself tells the upstream.
fn announce(hcm: &HttpConnectionManager, trust: trust::Trust, stream: &mut Stream) {
    let local_port = stream.connection.local.port();
    let headers = &mut stream.request.headers;
    if trust.internal {
        headers.append(Known::X_ENVOY_INTERNAL, b"true");
    }
    if trust.edge {
        headers.set(Known::X_ENVOY_EXTERNAL_ADDRESS, trust.remote.ip().to_string().as_bytes());
    }
    if hcm.headers.append_forwarded_port && !headers.contains(Known::X_FORWARDED_PORT) {
        headers.append(Known::X_FORWARDED_PORT, itoa::Buffer::new().format(local_port).as_bytes());
    }
    if let Some((cluster, node)) = &hcm.headers.add_user_agent {
        headers.set(Known::X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER, cluster.as_bytes());
        if is_empty(headers, Known::USER_AGENT) {
            headers.set(Known::USER_AGENT, cluster.as_bytes());
        }
        if !node.is_empty() {
            headers.set(Known::X_ENVOY_DOWNSTREAM_SERVICE_NODE, node.as_bytes());
        }
    }
    if !hcm.headers.via.is_empty() {
        headers.join(Known::VIA, b", ", hcm.headers.via.as_bytes());
    }
    let options = &hcm.headers;
    let replace = trust.edge && !options.preserve_request_id;
    if options.generate_request_id && (replace || is_empty(headers, Known::X_REQUEST_ID)) {
        headers.set(Known::X_REQUEST_ID, &request_id::uuid_v4());
    }
}

/// Whether a field says nothing: it is not there, or has no value.
fn is_empty(headers: &Headers, name: Known) -> bool {
    headers.get(name).is_none_or(<[u8]>::is_empty)
}

/// Puts the gateway's own fields into a response where plugins may still change them: APISIX sets them at the start of
/// its `header_filter` phase. Runs once for each response, be it an upstream's or an answer of our own.
pub(crate) fn name_gateway(hcm: &HttpConnectionManager, stream: &mut Stream) {
    if hcm.profile == Profile::Apisix {
        apisix::name_gateway(hcm, stream);
    }
}

/// Prepares the headers of a response for the client. Runs after all filters. `now` is the moment of the last
/// event.
pub(crate) fn response(hcm: &HttpConnectionManager, now: Instant, stream: &mut Stream) {
    // No upstream says that, for its codec has looked: it is a filter's word, and no reason to lose a good response.
    if ContentLength::of(&stream.response.headers) == ContentLength::Invalid {
        stream.response.headers.remove(Known::CONTENT_LENGTH);
    }
    // APISIX passes on what an upstream says of the time, and says nothing for one that does not.
    if hcm.profile != Profile::Apisix || stream.source != ResponseSource::Upstream {
        date::with_date(now, |date| stream.response.headers.set_if_absent(Known::DATE, date));
    }
    if hcm.profile == Profile::Apisix {
        apisix::response(hcm, stream);
        return;
    }
    let upgraded = stream.response.status == 101 && is_upgrade(&stream.response.headers);
    hop::strip_response(&mut stream.response.headers, upgraded, Profile::Envoy);
    stream.response.headers.join_repeated(Known::is_inline);
    let request = &stream.request.headers;
    if (hcm.headers.request_id_in_response || request.contains(Known::X_ENVOY_FORCE_TRACE))
        && let Some(id) = request.get(Known::X_REQUEST_ID)
    {
        stream.response.headers.set(Known::X_REQUEST_ID, id);
    }
    if !hcm.headers.via.is_empty() {
        stream.response.headers.join(Known::VIA, b", ", hcm.headers.via.as_bytes());
    }
    server_header(hcm, &mut stream.response.headers);
    operation::response(hcm.spans(), stream);
    if let Some(config) = &hcm.headers.proxy_status {
        proxy_status::apply(config, stream);
    }
}

fn server_header(hcm: &HttpConnectionManager, headers: &mut Headers) {
    let name = hcm.headers.server_name.as_bytes();
    match hcm.headers.server {
        ServerHeader::Overwrite => headers.set(Known::SERVER, name),
        ServerHeader::AppendIfAbsent => headers.set_if_absent(Known::SERVER, name),
        ServerHeader::PassThrough => {}
    }
}
