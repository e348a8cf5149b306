//! What both sides of a call call it: the caller tells it in a header of the request, and the called side in one of the
//! response if it was not told (common/http/conn_manager_impl.cc `traceRequest` and `encodeHeaders`).

use sixfold_core::hcm::SpanKind;
use sixfold_core::headers::Known;
use sixfold_core::stream::Stream;
use std::sync::Arc;

const HEADER: Known = Known::X_ENVOY_DECORATOR_OPERATION;

/// Runs once, when the first route has been chosen.
pub(crate) fn request(spans: Option<SpanKind>, stream: &mut Stream) {
    match spans {
        Some(SpanKind::Client) => {
            if let Some(operation) = operation(stream) {
                stream.request.headers.set(HEADER, operation.as_bytes());
            }
        }
        Some(SpanKind::Server) => {
            let headers = &mut stream.request.headers;
            stream.operation_told = headers.get(HEADER).is_some_and(|value| !value.is_empty());
            headers.remove(HEADER);
        }
        None => {}
    }
}

/// Runs when the response goes to the client.
pub(crate) fn response(spans: Option<SpanKind>, stream: &mut Stream) {
    match spans {
        Some(SpanKind::Client) => drop(stream.response.headers.remove(HEADER)),
        Some(SpanKind::Server) if !stream.operation_told => {
            if let Some(operation) = operation(stream) {
                stream.response.headers.set(HEADER, operation.as_bytes());
            }
        }
        _ => {}
    }
}

/// What the route calls it, if the other side is to be told.
fn operation(stream: &Stream) -> Option<Arc<str>> {
    let decorator = stream.route.as_ref()?.decorator()?;
    decorator.propagate.then(|| decorator.operation.clone())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use sixfold_core::connection::Connection;
    use sixfold_core::route::{Action, Decorator, RareOptions, Route};
    use sixfold_core::router::PathMatch;

    /// The header as it goes on with the request, and with the response if an upstream sends `answered`.
    fn passed(
        spans: Option<SpanKind>,
        asked: Option<&str>,
        propagate: bool,
        answered: Option<&str>,
    ) -> [Option<String>; 2] {
        let address = "127.0.0.1:1".parse().unwrap();
        let mut stream = Stream::new(Arc::new(Connection::plain(address, address)));
        let decorator = Some(Decorator { operation: "own".into(), propagate });
        let rare = Some(Box::new(RareOptions { decorator, ..RareOptions::default() }));
        let path = PathMatch::Prefix(b"/"[..].into(), false);
        stream.route = Some(Arc::new(Route { rare, ..Route::new(path, Action::NonForwarding) }));
        if let Some(asked) = asked {
            stream.request.headers.set(HEADER, asked.as_bytes());
        }
        request(spans, &mut stream);
        if let Some(answered) = answered {
            stream.response.headers.set(HEADER, answered.as_bytes());
        }
        response(spans, &mut stream);
        [&stream.request.headers, &stream.response.headers].map(|h| h.get_str(HEADER).map(str::to_owned))
    }

    #[test]
    fn the_caller_tells_the_called_side_which_tells_only_those_who_did_not_know() {
        let told =
            |request: Option<&str>, response: Option<&str>| [request, response].map(|t| t.map(str::to_owned));
        let (client, server) = (Some(SpanKind::Client), Some(SpanKind::Server));
        assert_eq!(passed(client, None, true, Some("theirs")), told(Some("own"), None));
        assert_eq!(passed(client, Some("forged"), true, None), told(Some("own"), None));
        assert_eq!(passed(client, Some("kept"), false, Some("theirs")), told(Some("kept"), None));
        assert_eq!(passed(server, None, true, None), told(None, Some("own")));
        assert_eq!(passed(server, Some("theirs"), true, None), told(None, None));
        assert_eq!(passed(server, Some(""), true, None), told(None, Some("own")));
        assert_eq!(passed(server, None, false, None), told(None, None));
        assert_eq!(passed(None, Some("x"), true, Some("y")), told(Some("x"), Some("y")));
    }
}
