//! Answers to heads over HTTP/2 that do not come to their end in time.
//!
//! The library knows of a stream once its head is complete. So the answer to such a head goes past it: one HEADERS frame that
//! ends the stream, which takes nothing of any window, and whose fields change nothing of what the library remembers
//! for its compression (RFC 7541 section 6.2.2).

use super::clock::{Clock, Expired, time_of_day};
use super::downstream::{Downstream, DownstreamError};
use super::{Env, respond};
use crate::deadline::Timed;
use crate::wire::body::{BodyEvent, Piece};
use crate::wire::h2_headers;
use crate::wire::h2_send::FRAME_HEAD;
use sixfold_core::connection::Connection;
use sixfold_core::headers::Headers;
use sixfold_core::message::{ResponseHead, Version};
use sixfold_core::stream::Stream;
use sixfold_core::traffic::Traffic;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// The largest frame that every client takes (RFC 9113 section 4.2).
const MAX_FRAME: usize = 16_384;
/// END_STREAM and END_HEADERS of a HEADERS frame.
const HEADERS: [u8; 2] = [0x1, 0x5];

/// Counts, answers and logs the request whose head has not come within `limit`; answers the frame to be sent, which
/// is empty where there can be none.
pub(super) async fn answer(
    connection: Arc<Connection>,
    number: u32,
    env: &Env,
    which: Expired,
    limit: Duration,
) -> Vec<u8> {
    env.hcm.stats.downstream_rq_http2_total().inc();
    let mut clock = Clock::new();
    let now = clock.restart();
    let mut stream = Box::new(Stream::new(connection));
    stream.reset(now.checked_sub(limit).unwrap_or(now).into_std());
    let day = time_of_day(now);
    stream.start_time = day.checked_sub(limit).unwrap_or(day);
    stream.request.version = Version::Http2;
    stream.request.ordinal = number.div_ceil(2);
    let mut client = LateClient { number, frame: Vec::new(), traffic: Traffic::default() };
    respond::late(&mut client, &mut stream, &mut clock, env, which).await;
    client.frame
}

/// The client's side of a stream of which there is nothing but the answer.
struct LateClient {
    number: u32,
    frame: Vec<u8>,
    traffic: Traffic,
}

/// The answer's head as one frame; `None` if it is too long for that.
fn frame(number: u32, response: &http::Response<()>) -> Option<Vec<u8>> {
    let mut block = Vec::new();
    literal(&mut block, b":status", response.status().as_str().as_bytes());
    for (name, value) in response.headers() {
        // Its body is not sent.
        if name != http::header::CONTENT_LENGTH {
            literal(&mut block, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    let length = u32::try_from(block.len()).ok().filter(|_| block.len() <= MAX_FRAME)?;
    let [_, length @ ..] = length.to_be_bytes();
    Some([&length[..], &HEADERS, &number.to_be_bytes(), &block].concat())
}

/// A field that is not indexed, with a name of its own.
fn literal(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.push(0);
    for text in [name, value] {
        length(out, text.len());
        out.extend_from_slice(text);
    }
}

/// The length of a text that is not compressed (RFC 7541 sections 5.1 and 5.2).
fn length(out: &mut Vec<u8>, n: usize) {
    let Some(mut rest) = n.checked_sub(0x7f) else { return out.push(n as u8) };
    out.push(0x7f);
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

impl Downstream for LateClient {
    fn poll_body(
        &mut self,
        _: &mut Timed<'_>,
        _: &mut Headers,
    ) -> Poll<Result<BodyEvent<'_>, DownstreamError>> {
        Poll::Ready(Ok(BodyEvent::End))
    }

    fn request_ended(&self) -> bool {
        false
    }

    fn write_continue(&mut self) {}

    fn write_head(&mut self, head: &ResponseHead, _: bool, _: bool) -> Result<u8, DownstreamError> {
        let response = h2_headers::write_response(head).map_err(|_| DownstreamError::Malformed)?;
        self.frame = frame(self.number, &response).unwrap_or_default();
        self.traffic.head_sent = head.headers.wire_len() as u64;
        self.traffic.sent = self.traffic.head_sent + FRAME_HEAD;
        Ok(0)
    }

    fn is_chunked(&self) -> bool {
        false
    }

    fn write_data(&mut self, _: &mut Timed<'_>, _: Piece<'_>) -> Result<(), DownstreamError> {
        Ok(())
    }

    fn finish(&mut self, _: &Headers) -> Result<(), DownstreamError> {
        Ok(())
    }

    fn poll_writable(&mut self, _: &mut Timed<'_>) -> Poll<Result<(), DownstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, _: &mut Timed<'_>) -> Poll<Result<(), DownstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn backlog(&self) -> Option<u64> {
        None
    }

    fn poll_closed(&mut self, _: &mut Timed<'_>) -> Poll<DownstreamError> {
        Poll::Pending
    }

    fn reset(&mut self) {}

    fn become_tunnel(&mut self) {}

    fn upgrade(&self) -> Option<&str> {
        None
    }

    fn has_body_before_tunnel(&self) -> bool {
        false
    }

    fn decline_upgrade(&mut self) {}

    fn wants_head_alone(&self) -> bool {
        true
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }

    fn keeps_alive(&self) -> bool {
        true
    }

    fn is_http2(&self) -> bool {
        true
    }

    fn has_host(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn lengths_beyond_the_prefix_go_on_in_sevens() {
        let coded = |n| {
            let mut out = Vec::new();
            length(&mut out, n);
            out
        };
        assert_eq!((coded(0), coded(126), coded(127)), (vec![0], vec![126], vec![127, 0]));
        // As in RFC 7541 section C.1.2, with a longer prefix.
        assert_eq!((coded(1337), coded(127 + 128)), (vec![127, 0xba, 0x09], vec![127, 0x80, 1]));
    }

    /// A client's library reads it, and goes on with its own table.
    #[tokio::test]
    async fn a_client_reads_the_frame() {
        let mut response = http::Response::new(());
        *response.status_mut() = http::StatusCode::REQUEST_TIMEOUT;
        let long = "x".repeat(1000);
        response.headers_mut().insert("content-length", 14.into());
        response.headers_mut().insert("x-long", long.parse().unwrap());
        let sent = frame(1, &response).unwrap();
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let served = tokio::spawn(async move {
            far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            // A stream is answered once it is there.
            let (mut said, opened) = (Vec::new(), [1, 4, 0, 0, 0, 1]);
            while !said.windows(opened.len()).any(|w| w == opened) {
                assert!(far.read_buf(&mut said).await.unwrap() > 0);
            }
            far.write_all(&sent).await.unwrap();
            far
        });
        let (mut client, connection) = h2::client::handshake(near).await.unwrap();
        let driven = tokio::spawn(connection);
        let (answer, _body) = client.send_request(http::Request::new(()), false).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers().len()), (408, 1));
        assert_eq!(answer.headers()["x-long"], long);
        assert!(answer.body().is_end_stream());
        drop((served.await.unwrap(), driven));
        response = http::Response::new(());
        response.headers_mut().insert("x-long", "x".repeat(MAX_FRAME).parse().unwrap());
        assert_eq!(frame(1, &response), None);
    }
}
