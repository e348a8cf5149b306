//! Filters that want to see the whole body of a request, behind each other.
#![allow(clippy::unwrap_used, clippy::panic)]

#[cfg(feature = "lua")]
use super::lua;
use super::{buffer, ext_authz, ext_proc};
use crate::testing::grpc::{GrpcService, Reply};
use crate::testing::{self, filter_of_in};
use bytes::Bytes;
use prost::Message;
use sixfold_core::plugin::{BuildContext, ChainBuilder, Member, Passed, Position, RequestPhases};
use sixfold_core::route::{Action, PathMatch, Route};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::filters::http::buffer::v3::{Buffer, BufferPerRoute};
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_authz::v3::{ExtAuthz, ExtAuthzPerRoute};
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_proc::v3::{
    ExtProcPerRoute, ExternalProcessor,
};
#[cfg(feature = "lua")]
use sixfold_xds_api::pb::envoy::extensions::filters::http::lua::v3::{Lua, LuaPerRoute};
use sixfold_xds_api::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::processing_request::Request;
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::processing_response::Response;
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::{
    BodyResponse, HeadersResponse, ProcessingRequest, ProcessingResponse,
};
use sixfold_xds_api::pb::google::rpc::Status;
use std::sync::Arc;

#[cfg(feature = "lua")]
const SCRIPT: &str = r#"{default_source_code: {inline_string: "
function envoy_on_request(handle)
  local body = handle:body()
  handle:headers():add('x-seen', body and body:getBytes(0, body:length()) or 'nothing')
end"}}"#;

/// The readers by name, each in a chain of its own.
fn reader(name: &str, context: &BuildContext) -> testing::Alone {
    let grpc = "grpc_service: {envoy_grpc: {cluster_name: c}}";
    match name {
        "buffer" => filter_of_in::<Buffer, BufferPerRoute>(
            &buffer::factory(),
            "{max_request_bytes: 100}",
            &[],
            context,
        ),
        #[cfg(feature = "lua")]
        "lua" => filter_of_in::<Lua, LuaPerRoute>(&lua::factory(), SCRIPT, &[], context),
        "ext_authz" => {
            let body = "with_request_body: {max_request_bytes: 100, pack_as_bytes: true}";
            let config = format!("{{{grpc}, {body}, transport_api_version: V3}}");
            filter_of_in::<ExtAuthz, ExtAuthzPerRoute>(&ext_authz::factory(), &config, &[], context)
        }
        mode => {
            let config = format!(
                "{{{grpc}, processing_mode: {{response_header_mode: SKIP, request_body_mode: {mode}}}}}"
            );
            filter_of_in::<ExternalProcessor, ExtProcPerRoute>(&ext_proc::factory(), &config, &[], context)
        }
    }
    .unwrap()
}

/// A service that lets all pass, whoever asks.
fn service() -> Arc<GrpcService> {
    GrpcService::new(|message| {
        let response = match ProcessingRequest::decode(message).ok().and_then(|asked| asked.request) {
            Some(Request::RequestHeaders(_)) => Response::RequestHeaders(HeadersResponse::default()),
            Some(Request::RequestBody(_)) => Response::RequestBody(BodyResponse::default()),
            _ => {
                let ok = CheckResponse { status: Some(Status::default()), ..CheckResponse::default() };
                return Reply::Message(ok.encode_to_vec());
            }
        };
        let reply = ProcessingResponse { response: Some(response), ..ProcessingResponse::default() };
        Reply::Message(reply.encode_to_vec())
    })
}

/// What the last one has been shown of the body.
fn seen(name: &str, stream: &Stream, service: &GrpcService) -> Option<Bytes> {
    let last = || service.calls.lock().pop().unwrap().messages;
    match name {
        "buffer" => stream.request_body.clone(),
        "lua" => {
            let seen = stream.request.headers.get_all("x-seen").last();
            seen.filter(|seen| *seen != b"nothing").map(Bytes::copy_from_slice)
        }
        "ext_authz" => {
            let asked = CheckRequest::decode(&*last()[0]).unwrap().attributes.unwrap().request.unwrap();
            Some(asked.http.unwrap().raw_body.into()).filter(|body: &Bytes| !body.is_empty())
        }
        _ => last().iter().find_map(|message| match ProcessingRequest::decode(&**message).unwrap().request {
            Some(Request::RequestBody(body)) => Some(body.body.into()),
            _ => None,
        }),
    }
}

/// What `second` behind `first` sees of a request with this body.
async fn shown(first: &str, second: &str, body: Option<&'static [u8]>) -> Option<Bytes> {
    let service = service();
    let context = service.context();
    let mut builder = ChainBuilder::new();
    let (one, two) = (reader(first, &context), reader(second, &context));
    for (reader, index) in [one, two].iter().zip(0..) {
        let member = reader.chain.members().last().unwrap().clone();
        builder.push(Member { position: Position::of_filter(index), ..member });
    }
    let (mut chain, mut s) = (Arc::new(builder.build()), testing::stream("/", &[]));
    s.route = Some(Arc::new(Route::new(PathMatch::Prefix(b"/"[..].into(), false), Action::NonForwarding)));
    s.timing.request_complete = body.is_none().then_some(s.timing.start);
    let mut phases = RequestPhases::default();
    loop {
        match phases.run(&mut chain, &mut s).await {
            Passed::Done => break,
            Passed::ReadBody(_) if s.request_body.is_none() && body.is_some() => {
                // It is there, and so the request is complete.
                s.request_body = body.map(Bytes::from_static);
                s.timing.request_complete = Some(s.timing.start);
            }
            Passed::ReadBody(_) | Passed::ClearRoute => {}
            _ => panic!("{first} {second}"),
        }
    }
    seen(second, &s, &service)
}

/// That a body had been read already was taken for there being none.
#[tokio::test]
async fn a_body_that_was_read_for_one_filter_is_shown_to_the_next() {
    let readers = [
        "buffer",
        #[cfg(feature = "lua")]
        "lua",
        "ext_authz",
        "BUFFERED",
        "BUFFERED_PARTIAL",
    ];
    for first in readers {
        for second in readers {
            assert_eq!(
                shown(first, second, Some(b"hello")).await.as_deref(),
                Some(&b"hello"[..]),
                "{first} {second}"
            );
            assert_eq!(shown(first, second, None).await, None, "{first} {second}");
        }
    }
}
