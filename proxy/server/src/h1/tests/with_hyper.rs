//! hyper's server on the same bytes: where it accepts a request that we accept, the bodies agree.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// The bodies of the requests that hyper finds in `bytes`, as far as it gets; `None` for a broken one.
async fn hyper_bodies(bytes: &[u8]) -> Vec<Option<Vec<u8>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let record = seen.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let record = record.clone();
        async move {
            #[allow(clippy::disallowed_methods)] // it is capped
            let body = Limited::new(request.into_body(), 1 << 20)
                .collect()
                .await
                .ok()
                .map(|b| b.to_bytes().to_vec());
            record.lock().push(body);
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    client.write_all(bytes).await.unwrap();
    client.shutdown().await.unwrap();
    let mut sink = Vec::new();
    let connection = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(server), service);
    let (_, _) = tokio::join!(connection, client.read_to_end(&mut sink));
    Arc::try_unwrap(seen).unwrap().into_inner()
}

/// The same with our codec.
fn our_bodies(mut bytes: &[u8], opts: &H1Options) -> Result<Vec<Option<Vec<u8>>>, H1Error> {
    let mut bodies = Vec::new();
    let mut parser = HeadParser::new();
    loop {
        let mut head = RequestHead::default();
        let Some(parsed) = parser.request(bytes, &mut head, opts)? else { return Ok(bodies) };
        let body = decode_all(parsed.body, &bytes[parsed.consumed..], opts).0?;
        bodies.push(body.as_ref().map(|(data, _)| data.clone()));
        let Some((_, len)) = body else { return Ok(bodies) };
        bytes = &bytes[parsed.consumed + len..];
        if !parsed.keep_alive {
            return Ok(bodies);
        }
    }
}

#[test]
fn hyper_agrees_or_we_refuse() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let bodies: &[&str] =
        &["", "abc", "3\r\nabc\r\n0\r\n\r\n", "0\r\n\r\n", "3;x\r\nabc\r\n0\r\nt: 1\r\n\r\n", "3\r\nab"];
    let fields: &[&str] = &[
        "",
        "Content-Length: 0",
        "Content-Length: 3",
        "Content-Length: 003",
        "Content-Length: +3",
        "Content-Length: 3, 3",
        "Content-Length: 3\r\nContent-Length: 3",
        "Content-Length: 3\r\nContent-Length: 0",
        "Content-Length:",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: CHUNKED",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding:\tchunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Connection: close\r\nContent-Length: 3",
    ];
    let mut agreed = 0;
    for version in ["1.1", "1.0"] {
        for method in ["GET", "POST"] {
            for field in fields {
                for body in bodies {
                    let end = if field.is_empty() { "" } else { "\r\n" };
                    let bytes = format!(
                        "{method} /1 HTTP/{version}\r\nHost: h\r\n{field}{end}\r\n{body}GET /2 HTTP/1.1\r\nHost: h\r\n\r\n"
                    );
                    for opts in [H1Options { accept_http_10: true, ..envoy() }, apisix()] {
                        let Ok(ours) = our_bodies(bytes.as_bytes(), &opts) else { continue };
                        let theirs = runtime.block_on(hyper_bodies(bytes.as_bytes()));
                        // hyper may stop early (it closes where it is unsure); what it saw must be the same.
                        let common = theirs.len().min(ours.len());
                        assert_eq!(ours[..common], theirs[..common], "{bytes:?}");
                        assert!(
                            theirs.len() <= ours.len(),
                            "hyper found a request that we did not: {bytes:?}"
                        );
                        agreed += common;
                    }
                }
            }
        }
    }
    assert!(agreed > 150, "only {agreed} bodies were compared");
}
