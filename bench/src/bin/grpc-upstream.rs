//! The upstream of the gRPC case: answers every unary call with one message and `grpc-status: 0` in the trailers, after
//! it has read the call's own message.
//!
//! `grpc-upstream LISTEN`, as `ADDRESS:PORT`; HTTP/2 without TLS.

use std::convert::Infallible;
use std::env;
use std::io::{self, Error, ErrorKind};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// Not compressed, seven bytes long: field 1 is the string "hello".
const MESSAGE: &[u8] = b"\0\0\0\0\x07\x0a\x05hello";

fn main() -> io::Result<()> {
    let Some(listen) = env::args().nth(1) else {
        return Err(Error::new(ErrorKind::InvalidInput, "usage: grpc-upstream LISTEN"));
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(&listen))
}

async fn serve(listen: &str) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (connection, _) = listener.accept().await?;
        connection.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            http.max_concurrent_streams(1024);
            if let Err(error) = http.serve_connection(TokioIo::new(connection), service_fn(answer)).await {
                eprintln!("a connection ended: {error}");
            }
        });
    }
}

async fn answer(
    mut call: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, hyper::Error> {
    while let Some(frame) = call.body_mut().frame().await {
        frame?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(Bytes::from_static(MESSAGE))), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(stream::iter(frames)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}
