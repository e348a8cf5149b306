//! What a client sees of a response that ends before its end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

/// An upstream that promises 50 bytes, sends three and leaves.
async fn cutting_upstream() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                read_message(&mut socket).await;
                socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nabc").await.unwrap();
            });
        }
    });
    address
}

/// The reset overtook the frames before it: of every third response the client saw nothing but the reset.
#[tokio::test]
async fn over_http2_the_reset_follows_what_had_come() {
    let mut setup = Setup::new();
    setup.cluster("a", &[cutting_upstream().await], |_| {});
    setup.route("/", "a", |_| {});
    let (proxy, _) = setup.serve().await;
    let socket = TcpStream::connect(proxy).await.unwrap();
    let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    for n in 0..30 {
        let request = http::Request::get("http://t/").body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        let response = response.await.unwrap_or_else(|e| panic!("request {n}: {e}"));
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "abc", "request {n}");
        let end = body.data().await.unwrap().unwrap_err();
        assert_eq!(end.reason(), Some(h2::Reason::INTERNAL_ERROR));
    }
}
