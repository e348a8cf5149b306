//! Heads between our form and the `http` crate's, which HTTP/2 speaks.

use crate::h1::{Profile, check_authority};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Uri};
use sixfold_core::headers::{HeaderFault, HeaderRules, Headers, Known, check_unique};
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
    /// More fields than the `http` crate's map takes: 24,576.
    #[error("too many fields for HTTP/2")]
    TooMany,
}

/// Why a request that came over HTTP/2 is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Its fields break the rules.
    Fields(HeaderFault),
    /// Its authority is missing, there several times, or none.
    Authority,
}

impl From<HeaderFault> for Refused {
    fn from(fault: HeaderFault) -> Refused {
        Refused::Fields(fault)
    }
}

/// Copies fields; several cookie fields become one line, as HTTP/1 upstreams expect. The map hands out all lines of a
/// name together, so that each is copied once. `pseudo` fields count with those of the map.
///
/// Blanks around a value are malformed (RFC 9113 section 8.2.1), and no part of it for whoever reads it off HTTP/1
/// (RFC 9110 section 5.5). They are left out, so that what matches here is what the upstream will read.
fn copy(map: &HeaderMap, pseudo: usize, rules: &HeaderRules, out: &mut Headers) -> Result<(), HeaderFault> {
    rules.check_count(map.len() + pseudo)?;
    for (name, value) in map {
        let (name, value) = (name.as_str().as_bytes(), value.as_bytes().trim_ascii());
        match Known::find_lower(name) {
            Some(Known::COOKIE) => out.join(Known::COOKIE, b"; ", value),
            // The one byte that the library takes for a part of a name and RFC 9110 does not.
            None if memchr::memchr(b'"', name).is_some() => return Err(HeaderFault::Name),
            known => out.push_checked(known, name, value),
        }
    }
    Ok(())
}

/// Bytes of a request's head before it is compressed, pseudo fields included.
pub(crate) fn request_len(head: &RequestHead) -> u64 {
    let pseudo = [
        (":method", head.method.as_str().len()),
        (":scheme", head.scheme.as_str().len()),
        (":authority", head.authority.len()),
        (":path", head.target.full().len()),
    ];
    let pseudo: usize = pseudo.iter().map(|(name, value)| name.len() + value).sum();
    (head.headers.wire_len() + pseudo) as u64
}

/// Replaces `trailers` by those that came.
///
/// # Errors
/// What [`HeaderRules`] refuse.
pub(crate) fn read_trailers(
    map: &HeaderMap,
    rules: &HeaderRules,
    trailers: &mut Headers,
) -> Result<(), HeaderFault> {
    trailers.clear();
    copy(map, 0, rules, trailers)?;
    rules.apply_to_trailers(trailers)
}

/// Copies fields that HTTP/2 may carry; what it may not (RFC 9113 section 8.2.2) and what is malformed is left out.
///
/// # Errors
/// [`HeadError::TooMany`].
pub(crate) fn to_map(headers: &Headers) -> Result<HeaderMap, HeadError> {
    let mut map = HeaderMap::try_with_capacity(headers.len()).map_err(|_| HeadError::TooMany)?;
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
            map.try_append(name, value).map_err(|_| HeadError::TooMany)?;
        }
    }
    Ok(map)
}

/// Fills `head` from an HTTP/2 request. The `host` field beside `:authority` is discarded. Who ended the client's TLS tells
/// of it by `:scheme`; one that we do not know says nothing, nor does any to APISIX, and `own` is the connection's.
///
/// # Errors
/// [`Refused`]; what was copied so far is in `head`.
pub(crate) fn read_request(
    parts: &http::request::Parts,
    rules: &HeaderRules,
    profile: Profile,
    own: Scheme,
    head: &mut RequestHead,
) -> Result<(), Refused> {
    head.clear();
    head.version = Version::Http2;
    head.method = parts.method.clone();
    let said = parts.uri.scheme_str().filter(|_| profile == Profile::Envoy);
    head.scheme = said.and_then(|scheme| Scheme::parse(scheme.as_bytes())).unwrap_or(own);
    if let Some(path) = parts.uri.path_and_query() {
        head.target.set(path.as_str().as_bytes());
    }
    let (authority, path) = (parts.uri.authority(), parts.uri.path_and_query());
    // The library drops `:scheme` where there is no authority; it was there all the same.
    let pseudo = 1 + usize::from(authority.is_some()) + 2 * usize::from(path.is_some());
    copy(&parts.headers, pseudo, rules, &mut head.headers)?;
    let mut hosts = parts.headers.get_all(http::header::HOST).iter();
    let told = match (authority, hosts.next(), hosts.next()) {
        (Some(authority), ..) => Some(authority.as_str().as_bytes()),
        (None, Some(_), Some(_)) => return Err(Refused::Authority),
        (None, host, _) => host.map(HeaderValue::as_bytes),
    };
    head.headers.remove(Known::HOST);
    rules.apply(&mut head.headers)?;
    if profile == Profile::Apisix {
        check_unique(&head.headers)?;
    }
    match told {
        Some(told) => {
            head.authority.extend_from_slice(told);
            check_authority(told, profile).map_err(|_| Refused::Authority)
        }
        // Envoy's answer has details of its own, given later.
        None if profile == Profile::Envoy => Ok(()),
        None => Err(Refused::Authority),
    }
}

/// An HTTP/2 request of our head. An upgrade becomes extended CONNECT (RFC 8441 section 5).
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
    *request.headers_mut() = to_map(&head.headers)?;
    if let Some(protocol) = head.headers.get_str(Known::UPGRADE) {
        *request.method_mut() = http::Method::CONNECT;
        request.extensions_mut().insert(h2::ext::Protocol::from(protocol));
    }
    Ok(request)
}

/// Fills `head` from an HTTP/2 response.
///
/// # Errors
/// What [`HeaderRules`] refuse.
pub(crate) fn read_response(
    parts: &http::response::Parts,
    rules: &HeaderRules,
    head: &mut ResponseHead,
) -> Result<(), HeaderFault> {
    head.clear();
    head.version = Version::Http2;
    head.status = parts.status.as_u16();
    copy(&parts.headers, 1, rules, &mut head.headers)?;
    rules.apply(&mut head.headers)
}

/// An HTTP/2 response of our head.
pub(crate) fn write_response(head: &ResponseHead) -> Result<Response<()>, HeadError> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).map_err(|_| HeadError::Status)?;
    *response.version_mut() = http::Version::HTTP_2;
    *response.headers_mut() = to_map(&head.headers)?;
    if head.status == 204 {
        // Clients take it for a broken message (RFC 9110 section 8.6).
        response.headers_mut().remove(http::header::CONTENT_LENGTH);
    }
    Ok(response)
}

#[cfg(test)]
mod tests;
