//! Heads in the vocabulary of the `http` crate, and what was changed there brought back.
//!
//! Only what differs is brought back: headers that nobody touched keep their place and spelling, and a
//! target that `http::Uri` can't hold stays as it is.

use crate::headers::{Headers, Known};
use crate::message::{RequestHead, ResponseHead, Scheme, Version};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};

/// The head of a request. `Host` is among the headers; a target that no [`Uri`] can hold becomes `/`.
pub fn request_parts(head: &RequestHead) -> http::request::Parts {
    let mut request = http::Request::new(());
    *request.method_mut() = head.method.clone();
    *request.version_mut() = version(head.version);
    *request.uri_mut() = Uri::try_from(head.target.full()).unwrap_or_default();
    let headers = request.headers_mut();
    if let Ok(host) = HeaderValue::from_bytes(&head.authority)
        && !host.is_empty()
    {
        headers.insert(http::header::HOST, host);
    }
    copy(&head.headers, headers);
    request.into_parts().0
}

/// Brings changes between two states of [`request_parts`] back.
pub fn apply_request(head: &mut RequestHead, before: &http::request::Parts, after: &http::request::Parts) {
    if before.method != after.method {
        head.method = after.method.clone();
    }
    if before.uri != after.uri
        && let Some(target) = after.uri.path_and_query()
    {
        head.target.set(target.as_str().as_bytes());
    }
    let host = |parts: &http::request::Parts| parts.headers.get(http::header::HOST).cloned();
    if host(before) != host(after) {
        head.authority = host(after).map(|h| h.as_bytes().to_vec()).unwrap_or_default();
    }
    apply(&mut head.headers, &before.headers, &after.headers);
    head.headers.remove(Known::HOST);
}

/// A request head of our own from one of the `http` crate.
pub fn request_head(parts: &http::request::Parts) -> RequestHead {
    let mut head = RequestHead { method: parts.method.clone(), ..RequestHead::default() };
    head.version = match parts.version {
        http::Version::HTTP_09 | http::Version::HTTP_10 => Version::Http10,
        http::Version::HTTP_2 => Version::Http2,
        http::Version::HTTP_3 => Version::Http3,
        _ => Version::Http11,
    };
    if parts.uri.scheme_str() == Some("https") {
        head.scheme = Scheme::Https;
    }
    head.target.set(parts.uri.path_and_query().map_or("/", |p| p.as_str()).as_bytes());
    let host = parts.headers.get(http::header::HOST).map(HeaderValue::as_bytes);
    let host = host.or(parts.uri.authority().map(|a| a.as_str().as_bytes()));
    head.authority = host.unwrap_or_default().to_vec();
    for (name, value) in parts.headers.iter().filter(|(name, _)| *name != http::header::HOST) {
        head.headers.push(name.as_str().as_bytes(), value.as_bytes());
    }
    head
}

/// The head of a response.
pub fn response_parts(head: &ResponseHead) -> http::response::Parts {
    let mut response = http::Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.version_mut() = version(head.version);
    copy(&head.headers, response.headers_mut());
    response.into_parts().0
}

/// Brings changes between two states of [`response_parts`] back.
pub fn apply_response(
    head: &mut ResponseHead,
    before: &http::response::Parts,
    after: &http::response::Parts,
) {
    if before.status != after.status {
        head.status = after.status.as_u16();
    }
    apply(&mut head.headers, &before.headers, &after.headers);
}

/// A header block of our own.
pub fn headers(map: &HeaderMap) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in map {
        headers.push(name.as_str().as_bytes(), value.as_bytes());
    }
    headers
}

/// A header block in the `http` crate's form.
pub fn header_map(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::new();
    copy(headers, &mut map);
    map
}

fn version(version: Version) -> http::Version {
    match version {
        Version::Http10 => http::Version::HTTP_10,
        Version::Http11 => http::Version::HTTP_11,
        Version::Http2 => http::Version::HTTP_2,
        Version::Http3 => http::Version::HTTP_3,
    }
}

/// Fields whose name or value the `http` crate does not take, and those beyond the 24,576 that its map holds, stay
/// out, and so stay as they are.
fn copy(from: &Headers, to: &mut HeaderMap) {
    for (name, value) in from.iter() {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            let _ = to.try_append(name, value);
        }
    }
}

fn apply(headers: &mut Headers, before: &HeaderMap, after: &HeaderMap) {
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        headers.remove(name.as_str());
    }
    for name in after.keys() {
        if !after.get_all(name).iter().eq(before.get_all(name)) {
            headers.remove(name.as_str());
            for value in after.get_all(name) {
                headers.push(name.as_str().as_bytes(), value.as_bytes());
            }
        }
    }
}
