//! What every request needs before its route is chosen.

use super::edge;
use sixfold_core::hcm::{HttpConnectionManager, Profile};
use sixfold_core::headers::Known;
use sixfold_core::path::{self, Prepared};
use sixfold_core::plugin::LocalReply;
use sixfold_core::router::TableOptions;
use sixfold_core::stream::Stream;

/// What is known of a request beside its context.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    /// It says what host it is for.
    pub(crate) has_host: bool,
    /// It is no client's but ours, in the place of one that was redirected.
    pub(crate) followed: bool,
}

/// Checks and prepares Host, path, client address, headers at the edge. An answer ends the request.
pub(crate) fn admit(
    hcm: &HttpConnectionManager,
    table: Option<&TableOptions>,
    head: Head,
    stream: &mut Stream,
) -> Option<LocalReply> {
    if hcm.profile == Profile::Envoy && !head.has_host {
        return Some(LocalReply::new(400, "", "missing_host_header"));
    }
    match path::prepare(&hcm.path, stream) {
        Prepared::Ready => {}
        Prepared::Reject(status, details) => {
            match details {
                "absolute_path_rejected" => hcm.stats.downstream_rq_non_relative_path().inc(),
                "missing_path_rejected" => {}
                _ => hcm.stats.downstream_rq_failed_path_normalization().inc(),
            }
            return Some(LocalReply::new(status, "", details));
        }
        Prepared::Redirect(_) if stream.request.is_grpc() => {
            return Some(LocalReply::new(400, "", "path_normalization_failed"));
        }
        Prepared::Redirect(to) => {
            hcm.stats.downstream_rq_redirected_with_normalized_path().inc();
            let mut reply = LocalReply::new(307, "", "path_normalization_failed");
            reply.headers.append(Known::LOCATION, &to);
            return Some(reply);
        }
    }
    if head.followed { None } else { edge::request(hcm, table, stream) }
}
