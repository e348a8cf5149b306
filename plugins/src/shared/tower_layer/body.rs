//! Response bodies on their way through a layer.

use super::BoxError;
use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// The body of the response as a layer gets it. A layer that leaves it alone costs nothing: the body then
/// never passes the layer.
pub struct GateBody {
    feed: Feed,
}

/// The other end of a [`GateBody`].
#[derive(Clone, Default)]
pub(super) struct Feed(Arc<Mutex<(VecDeque<Bytes>, bool)>>);

impl GateBody {
    pub(super) fn new() -> (GateBody, Feed) {
        let feed = Feed::default();
        (GateBody { feed: feed.clone() }, feed)
    }
}

impl Body for GateBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut feed = self.feed.0.lock();
        match feed.0.pop_front() {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None if feed.1 => Poll::Ready(None),
            // The next piece comes with the next poll.
            None => Poll::Pending,
        }
    }
}

/// The body of a layered response.
pub(super) enum Layered {
    /// The response's own, untouched.
    Gate,
    /// The layer's, around the response's own or in its place.
    Other(UnsyncBoxBody<Bytes, BoxError>),
}

impl Layered {
    pub(super) fn new<B>(body: B) -> Layered
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if (&body as &dyn Any).is::<GateBody>() {
            return Layered::Gate;
        }
        Layered::Other(body.map_err(Into::into).boxed_unsync())
    }
}

/// Passes a body through a layer, piece by piece.
pub(super) struct Transform {
    body: UnsyncBoxBody<Bytes, BoxError>,
    feed: Feed,
    ended: bool,
}

impl Transform {
    pub(super) fn new(body: UnsyncBoxBody<Bytes, BoxError>, feed: Feed) -> Transform {
        Transform { body, feed, ended: false }
    }

    /// What the layer makes of a piece; it may keep some of it back until later.
    pub(super) fn pass(&mut self, data: &[u8], last: bool) -> Result<Vec<u8>, BoxError> {
        {
            let mut feed = self.feed.0.lock();
            if !data.is_empty() {
                feed.0.push_back(Bytes::copy_from_slice(data));
            }
            feed.1 |= last;
        }
        let mut out = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        while !self.ended {
            match Pin::new(&mut self.body).poll_frame(&mut cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        out.extend_from_slice(&data);
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    self.ended = true;
                    return Err(error);
                }
                Poll::Ready(None) => self.ended = true,
                Poll::Pending if last => {
                    self.ended = true;
                    return Err("the layer's body waits for something else than the response".into());
                }
                Poll::Pending => break,
            }
        }
        Ok(out)
    }
}
