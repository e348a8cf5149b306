//! Bodies that plugins have read, on their way to the upstream.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::*;
use sixfold_core::headers::Known;
use sixfold_core::plugin::{ChainBuilder, Phases, Plugin, Step};
use sixfold_core::stream::Stream;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use tokio::net::TcpListener;

/// Reads the whole body, as forward-auth does, and copies a length that belongs to another message.
struct Reader;

impl Plugin for Reader {
    fn name(&self) -> &str {
        "reader"
    }

    fn phases(&self) -> Phases {
        Phases::ACCESS
    }

    fn buffers_request(&self) -> Option<usize> {
        Some(1 << 20)
    }

    fn access<'a>(&'a self, stream: &'a mut Stream, _: usize) -> Step<'a> {
        let length = stream.request_body.as_ref().unwrap().len().to_string();
        stream.request.headers.set("x-read", length.as_bytes());
        stream.request.headers.set(Known::CONTENT_LENGTH, b"77");
        Step::Continue
    }
}

async fn serve(up: SocketAddr, change: impl FnOnce(&mut sixfold_core::cluster::ClusterConfig)) -> SocketAddr {
    let mut builder = ChainBuilder::new();
    builder.push(Arc::new(Reader));
    let mut setup = Setup::new();
    setup.chain = Arc::new(builder.build());
    setup.cluster("a", &[up], change);
    setup.route("/", "a", |forward| forward.retry = retry("5xx", 2));
    setup.serve().await.0
}

/// The same body in each way of sending it.
fn posts(body: &str) -> [String; 2] {
    [
        format!("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
        format!(
            "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        ),
    ]
}

/// The upstream got `Content-Length: 0` and no body, whatever the client had sent.
#[tokio::test]
async fn a_body_that_a_plugin_has_read_goes_on_whole_and_on_retries() {
    let up = upstream(|n, request| {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        match n % 2 {
            0 => status(500),
            _ => ok(&format!("{length} {body}")),
        }
    })
    .await;
    let proxy = serve(up.address, |_| {}).await;
    for post in posts("hello, body") {
        let response = ask(proxy, &post).await;
        assert!(response.ends_with("\r\n\r\n11 hello, body"), "{response}");
    }
    assert_eq!(up.requests.load(SeqCst), 4);
}

#[tokio::test]
async fn a_body_that_a_plugin_has_read_goes_on_over_http2_from_both_codecs() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let (head, mut body) = request.into_parts();
                    tokio::spawn(async move {
                        let mut text = format!("{} ", head.headers["content-length"].to_str().unwrap());
                        while let Some(piece) = body.data().await {
                            text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
                        }
                        let response =
                            http::Response::builder().header("content-length", text.len()).body(()).unwrap();
                        respond.send_response(response, false).unwrap().send_data(text.into(), true).unwrap();
                    });
                }
            });
        }
    });
    let proxy =
        serve(address, |config| config.protocol = sixfold_core::cluster::UpstreamProtocol::Http2).await;
    for post in posts("hello, body") {
        let response = ask(proxy, &post).await;
        assert!(response.ends_with("\r\n\r\n11 hello, body"), "{response}");
    }
    let socket = tokio::net::TcpStream::connect(proxy).await.unwrap();
    let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://t/").body(()).unwrap();
    let (response, mut body) = client.send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(b"hello, body"), true).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "11 hello, body");
}
