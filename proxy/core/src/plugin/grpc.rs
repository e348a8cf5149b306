//! gRPC over a [`CalloutStream`]: length-prefixed messages out and in, and the status at the end
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>). What a message means is the caller's.

use super::{Callout, CalloutError, CalloutRequest, CalloutStream, OwnHeaders};
use crate::cluster::ClusterCell;
use crate::headers::{Headers, Known};
use bytes::{BufMut, Bytes, BytesMut};
use percent_encoding::percent_decode;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

/// How a call ended that brought no message, or no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("gRPC status {code}: {message}")]
pub struct Status {
    /// The code: 0 is success, 14 a service that can't be reached.
    pub code: u32,
    /// The service's words, or ours.
    pub message: String,
}

impl Status {
    fn new(code: u32, message: impl Into<String>) -> Status {
        Status { code, message: message.into() }
    }
}

impl From<CalloutError> for Status {
    fn from(error: CalloutError) -> Status {
        match error {
            CalloutError::Timeout => Status::new(4, "deadline exceeded"),
            CalloutError::Failed(reason) | CalloutError::Unaskable(reason) => Status::new(14, reason),
            CalloutError::Exhausted(reason) => Status::new(14, reason),
        }
    }
}

/// Where calls go.
#[derive(Clone)]
pub struct Client {
    /// Sends them.
    pub callout: Arc<dyn Callout>,
    /// A cluster that speaks HTTP/2.
    pub cluster: Arc<ClusterCell>,
    /// `:authority`.
    pub authority: String,
    /// Bounds a call.
    pub timeout: Duration,
    /// Bytes of a message that are taken; a longer one ends the call with status 8.
    pub max_message: usize,
    /// What calls say of themselves; with a time that is said in `grpc-timeout` too.
    pub own: OwnHeaders,
}

/// A call under way.
pub struct Call {
    stream: Box<dyn CalloutStream>,
    received: BytesMut,
    max_message: usize,
    head_seen: bool,
}

/// The largest number of eight digits that is not less than the time, in milliseconds or what is coarser
/// (source/common/grpc/common.cc `toGrpcTimeout`).
fn timeout_text(time: Duration) -> String {
    const MOST: u128 = 99_999_999;
    let mut count = time.as_millis();
    for (unit, of_next) in [("m", 1000), ("S", 60), ("M", 60), ("H", 0)] {
        if count <= MOST || of_next == 0 {
            return format!("{}{unit}", count.min(MOST));
        }
        count /= of_next;
    }
    String::new()
}

impl Client {
    /// One message out and one back.
    ///
    /// # Errors
    /// The status, unless it is 0 and a message came.
    pub async fn unary(&self, path: &str, headers: Headers, message: &[u8]) -> Result<Bytes, Status> {
        let mut call = self.call(path, headers).await?;
        call.send(message).await?;
        call.finish();
        let answer = call.receive().await?;
        // The status follows the message.
        if answer.is_some() && call.receive().await?.is_some() {
            return Err(Status::new(13, "more than one message in answer to a unary call"));
        }
        answer.ok_or_else(|| Status::new(13, "no message in answer to a unary call"))
    }

    /// Begins a call of `path` (`/package.Service/Method`) with these headers beside gRPC's own.
    ///
    /// # Errors
    /// Status 14 when no endpoint takes it, 4 when that takes too long.
    pub async fn call(&self, path: &str, mut headers: Headers) -> Result<Call, Status> {
        headers.set(Known::CONTENT_TYPE, b"application/grpc");
        headers.set(Known::TE, b"trailers");
        if let Some(timeout) = self.own.timeout() {
            headers.set(Known::GRPC_TIMEOUT, timeout_text(timeout).as_bytes());
        }
        self.own.tell(&mut headers);
        let request = CalloutRequest {
            uri: format!("http://{}{path}", self.authority),
            target: None,
            cluster: Some(self.cluster.clone()),
            retries: 1,
            method: http::Method::POST,
            headers,
            body: Bytes::new(),
            timeout: self.timeout,
            verify_tls: true,
            max_body: self.max_message,
            keepalive: None,
        };
        let stream = self.callout.open(request).await?;
        Ok(Call { stream, received: BytesMut::new(), max_message: self.max_message, head_seen: false })
    }
}

impl Call {
    /// Sends a message once the service has room for it.
    ///
    /// # Errors
    /// The status that ended the call.
    pub async fn send(&mut self, message: &[u8]) -> Result<(), Status> {
        poll_fn(|cx| self.poll_send(message, cx)).await
    }

    /// [`Call::send`] for whoever receives at the same time: the message is sent when this is ready.
    pub fn poll_send(&mut self, message: &[u8], cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        ready!(self.stream.poll_ready(cx))?;
        let Ok(length) = u32::try_from(message.len()) else {
            return Poll::Ready(Err(Status::new(8, "message too long")));
        };
        let mut piece = BytesMut::with_capacity(5 + message.len());
        piece.put_u8(0);
        piece.put_u32(length);
        piece.put_slice(message);
        self.stream.send(piece.freeze());
        Poll::Ready(Ok(()))
    }

    /// Passes on what was sent, for whoever neither sends nor receives for a while: a message goes out when the call is polled
    /// again.
    ///
    /// # Errors
    /// The status that ended the call.
    pub async fn flush(&mut self) -> Result<(), Status> {
        Ok(poll_fn(|cx| self.stream.poll_flush(cx)).await?)
    }

    /// Whether the service has not ended the call yet, as far as has been heard: for calls of which no answer is expected.
    pub fn is_open(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        self.poll_receive(&mut context).is_pending()
    }

    /// No more messages are sent.
    pub fn finish(&mut self) {
        self.stream.finish();
    }

    /// The next message; `None` when the call has ended with status 0.
    ///
    /// # Errors
    /// Another status.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, Status> {
        poll_fn(|cx| self.poll_receive(cx)).await
    }

    /// [`Call::receive`] for whoever sends at the same time.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        if !self.head_seen {
            ready!(self.stream.poll_head(cx))?;
            self.head_seen = true;
            if self.stream.status() != 200 {
                return Poll::Ready(Err(of_http(self.stream.status())));
            }
            let kind = self.stream.headers().get(Known::CONTENT_TYPE).unwrap_or_default();
            if !kind.starts_with(b"application/grpc") {
                let kind = String::from_utf8_lossy(kind);
                return Poll::Ready(Err(Status::new(
                    2,
                    format!("an answer of type \"{kind}\", which is not gRPC"),
                )));
            }
        }
        loop {
            if let Some(message) = self.message()? {
                return Poll::Ready(Ok(Some(message)));
            }
            match ready!(self.stream.poll_data(cx))? {
                Some(piece) => self.received.extend_from_slice(&piece),
                None => return Poll::Ready(self.ended().map(|()| None)),
            }
        }
    }

    /// A whole message of what has come.
    fn message(&mut self) -> Result<Option<Bytes>, Status> {
        let Some((head, rest)) = self.received.split_first_chunk::<5>() else { return Ok(None) };
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if head[0] != 0 {
            return Err(Status::new(12, "a compressed message that was not asked for"));
        }
        if length > self.max_message {
            return Err(Status::new(8, format!("a message of {length} bytes")));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let _ = self.received.split_to(5);
        Ok(Some(self.received.split_to(length).freeze()))
    }

    fn ended(&self) -> Result<(), Status> {
        if !self.received.is_empty() {
            return Err(Status::new(13, "the last message is cut"));
        }
        let trailers = self.stream.trailers();
        // A response that is nothing but an end has its status in the head.
        let from = if trailers.contains(Known::GRPC_STATUS) { trailers } else { self.stream.headers() };
        let code = from.get_str(Known::GRPC_STATUS).and_then(|code| code.parse().ok());
        match code {
            Some(0) => Ok(()),
            Some(code) => {
                let message = percent_decode(from.get(Known::GRPC_MESSAGE).unwrap_or_default());
                Err(Status::new(code, message.decode_utf8_lossy()))
            }
            None => Err(Status::new(2, "the call ended without a status")),
        }
    }
}

/// What a status of HTTP means to a call.
fn of_http(status: u16) -> Status {
    Status::new(crate::grpc_status::of_http(status), format!("HTTP status {status}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_eight_digits_at_most() {
        for (time, text) in [
            (Duration::from_millis(200), "200m"),
            (Duration::from_secs(99_999), "99999000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(100_000_000), "1666666M"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(timeout_text(time), text);
        }
    }
}
