//! Heads between our form and the `http` crate's, which HTTP/2 speaks.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Uri};
use sixfold_core::headers::{Headers, Known};
use sixfold_core::message::{RequestHead, ResponseHead, Scheme, Version};
use std::sync::LazyLock;

/// The well-known names in the library's form.
static NAMES: LazyLock<Vec<HeaderName>> =
    LazyLock::new(|| Known::all().map(|known| HeaderName::from_static(known.as_str())).collect());

/// Why a head can't go over HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    /// The target or the authority holds bytes that the `http` crate refuses.
    #[error("the request target can't be sent over HTTP/2")]
    Target,
    /// No such status.
    #[error("the status can't be sent over HTTP/2")]
    Status,
}

/// Copies fields; several cookie fields become one line, as HTTP/1 upstreams expect.
pub(crate) fn from_map(map: &HeaderMap, out: &mut Headers) {
    for (name, value) in map {
        if *name == http::header::COOKIE {
            out.join(Known::COOKIE, b"; ", value.as_bytes());
        } else {
            out.push(name.as_str().as_bytes(), value.as_bytes());
        }
    }
}

/// Copies fields that HTTP/2 may carry; what it may not (RFC 9113 section 8.2.2) and what is malformed is left out.
pub(crate) fn to_map(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (known, name, value) in headers.iter_shared() {
        if matches!(
            known,
            Some(
                Known::CONNECTION
                    | Known::KEEP_ALIVE
                    | Known::PROXY_CONNECTION
                    | Known::TRANSFER_ENCODING
                    | Known::UPGRADE
                    | Known::HOST
            )
        ) {
            continue;
        }
        let name = match known.and_then(|known| NAMES.get(known.index())) {
            Some(name) => Ok(name.clone()),
            None => HeaderName::from_bytes(name),
        };
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_maybe_shared(value)) {
            map.append(name, value);
        }
    }
    map
}

/// Fills `head` from an HTTP/2 request. The `host` field beside `:authority` is discarded.
pub(crate) fn read_request(parts: &http::request::Parts, head: &mut RequestHead) {
    head.clear();
    head.version = Version::Http2;
    head.method = parts.method.clone();
    head.scheme = parts.uri.scheme_str().and_then(|s| Scheme::parse(s.as_bytes())).unwrap_or(Scheme::Http);
    from_map(&parts.headers, &mut head.headers);
    match parts.uri.authority() {
        Some(authority) => head.authority.extend_from_slice(authority.as_str().as_bytes()),
        None => {
            if let Some(host) = head.headers.get(Known::HOST) {
                head.authority = host.to_vec();
            }
        }
    }
    head.headers.remove(Known::HOST);
    if let Some(path) = parts.uri.path_and_query() {
        head.target.set(path.as_str().as_bytes());
    }
}

/// An HTTP/2 request of our head.
pub(crate) fn write_request(head: &RequestHead, scheme: Scheme) -> Result<Request<()>, HeadError> {
    let connect = head.method == http::Method::CONNECT && head.target.is_empty();
    let mut uri = Uri::builder().authority(&head.authority[..]);
    if !connect {
        uri = uri.scheme(scheme.as_str()).path_and_query(head.target.full());
    }
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri.build().map_err(|_| HeadError::Target)?;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = to_map(&head.headers);
    Ok(request)
}

/// Fills `head` from an HTTP/2 response.
pub(crate) fn read_response(parts: &http::response::Parts, head: &mut ResponseHead) {
    head.clear();
    head.version = Version::Http2;
    head.status = parts.status.as_u16();
    from_map(&parts.headers, &mut head.headers);
}

/// An HTTP/2 response of our head.
pub(crate) fn write_response(head: &ResponseHead) -> Result<Response<()>, HeadError> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).map_err(|_| HeadError::Status)?;
    *response.version_mut() = http::Version::HTTP_2;
    *response.headers_mut() = to_map(&head.headers);
    Ok(response)
}
