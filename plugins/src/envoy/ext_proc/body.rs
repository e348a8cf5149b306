//! Bodies and trailers on their way past the processor.

use super::mutation::{self, Outcome};
use super::session::{Reply, Session};
use super::{BodyMode, ExtProc, MAX_BODY, Running, Settings};
use bytes::{Bytes, BytesMut};
use sixfold_core::headers::Headers;
use sixfold_core::plugin::{BodyPiece, BodyStep, Direction, Hold, Overflow, Slot, TrailersStep};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::processing_request::Request;
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::processing_response::Response;
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::{HttpBody, HttpTrailers};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

impl ExtProc {
    pub(super) fn request_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        self.piece(Direction::Request, stream, slot, piece)
    }

    pub(super) fn response_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        self.piece(Direction::Response, stream, slot, piece)
    }

    fn piece(
        &self,
        direction: Direction,
        stream: &mut Stream,
        slot: Slot,
        piece: &BodyPiece<'_>,
    ) -> BodyStep {
        let at = direction as usize;
        let Some(running) = stream.state::<Running>(slot) else { return BodyStep::Pass };
        if let Some(instead) = &running.instead[at] {
            return BodyStep::Replace(if piece.last { instead.clone() } else { Bytes::new() });
        }
        if running.session.is_over() || running.ended[at] {
            return BodyStep::Pass;
        }
        let mode = running.mode.body[at];
        match (mode, direction) {
            (BodyMode::None, _) | (BodyMode::Buffered | BodyMode::BufferedPartial, Direction::Request) => {
                return BodyStep::Pass;
            }
            (BodyMode::Buffered, _) if !piece.last => {
                return BodyStep::Hold(Hold { limit: MAX_BODY, on_overflow: Overflow::Refuse });
            }
            (BodyMode::BufferedPartial, _) if !piece.last && piece.data.len() < MAX_BODY => {
                return BodyStep::Hold(Hold { limit: 2 * MAX_BODY, on_overflow: Overflow::Pass });
            }
            _ => {}
        }
        let buffers = matches!(mode, BodyMode::Buffered | BodyMode::BufferedPartial);
        // Where the length is known the last byte is the end.
        let came = piece.data.len() as u64;
        if let Some(left) = &mut running.left[at] {
            *left = left.saturating_sub(came);
        }
        let streams = mode == BodyMode::Streamed && !self.0.observes;
        let end = piece.last || (streams && running.left[at] == Some(0));
        if buffers && piece.last && piece.data.is_empty() {
            running.ended[at] = true;
            return BodyStep::Pass;
        }
        // Of a partial body only the beginning is told.
        running.ended[at] = end || mode == BodyMode::BufferedPartial;
        let announced = running.left[at].filter(|_| mode == BodyMode::Buffered).map(|left| left + came);
        let body = HttpBody { body: piece.data.to_vec(), end_of_stream: end, ..HttpBody::default() };
        let (settings, session) = (self.0.clone(), running.session.clone());
        BodyStep::Wait(Box::pin(async move {
            match settings.body(direction, mode, body, &session).await {
                Ok(Some(body)) => match announced {
                    Some(length) if length != body.len() as u64 => {
                        // The answer in its place is none of the processor's.
                        session.close();
                        settings.wrong_length()
                    }
                    _ => BodyStep::Replace(body),
                },
                Ok(None) => BodyStep::Pass,
                Err(outcome) => match settings.reply(outcome) {
                    Some(reply) => BodyStep::Respond(Box::new(reply)),
                    None => BodyStep::Pass,
                },
            }
        }))
    }

    pub(super) fn request_trailers(&self, stream: &mut Stream, slot: Slot) -> TrailersStep {
        let trailers = stream.request_trailers.clone();
        self.trailers(Direction::Request, trailers, stream, slot)
    }

    pub(super) fn response_trailers(&self, stream: &mut Stream, slot: Slot) -> TrailersStep {
        let trailers = stream.response_trailers.clone();
        self.trailers(Direction::Response, trailers, stream, slot)
    }

    fn trailers(
        &self,
        direction: Direction,
        mut trailers: Headers,
        stream: &mut Stream,
        slot: Slot,
    ) -> TrailersStep {
        let Some(running) = stream.state::<Running>(slot) else { return TrailersStep::Continue };
        if !running.mode.trailers[direction as usize] || running.session.is_over() {
            return TrailersStep::Continue;
        }
        let (settings, session) = (self.0.clone(), running.session.clone());
        TrailersStep::Wait(Box::pin(async move {
            let told = settings.trailers(direction, &trailers, &session).await;
            let changed = told.and_then(|mutation| match mutation {
                Some(mutation) => settings.change_headers(Some(mutation), &mut trailers).map(|()| true),
                None => Ok(false),
            });
            match changed {
                Ok(true) => TrailersStep::Replace(trailers),
                Ok(false) => TrailersStep::Continue,
                Err(outcome) => match settings.reply(outcome) {
                    Some(reply) => TrailersStep::Respond(Box::new(reply)),
                    None => TrailersStep::Continue,
                },
            }
        }))
    }
}

impl Settings {
    fn wrong_length(&self) -> BodyStep {
        BodyStep::Respond(Box::new(sixfold_core::plugin::LocalReply::new(500, "", mutation::WRONG_LENGTH)))
    }

    /// Tells the processor of a piece; what goes on in its place, if anything does.
    async fn body(
        self: &Arc<Self>,
        direction: Direction,
        mode: BodyMode,
        body: HttpBody,
        session: &Session,
    ) -> Result<Option<Bytes>, Outcome> {
        let end = body.end_of_stream;
        let request = match direction {
            Direction::Request => Request::RequestBody(body),
            Direction::Response => Request::ResponseBody(body),
        };
        let message = self.message(request, session, None, direction);
        if self.observes {
            let _ = tokio::time::timeout(self.times.message, session.show(&message)).await;
            return Ok(None);
        }
        if mode == BodyMode::FullDuplex {
            // It may say as much as it likes.
            session.expect(direction, u32::MAX);
            session.send(&message).await.map_err(Outcome::Failed)?;
            return self.duplex(direction, end, session).await.map(Some);
        }
        let reply = match session.exchange(direction, &message, self.times).await {
            Ok(Reply::Message(reply)) => *reply,
            Ok(Reply::Over) => return Ok(None),
            Err(failure) => return Err(Outcome::Failed(failure)),
        };
        let response = self.body_answer(reply.response, direction, session)?;
        Ok(mutation::body(response.body_mutation))
    }

    fn body_answer(
        &self,
        response: Option<Response>,
        direction: Direction,
        session: &Session,
    ) -> Result<sixfold_xds_api::pb::envoy::service::ext_proc::v3::CommonResponse, Outcome> {
        let answer = match (self.answer(response, session)?, direction) {
            (Response::RequestBody(answer), Direction::Request)
            | (Response::ResponseBody(answer), Direction::Response) => {
                Some(answer.response.unwrap_or_default())
            }
            _ => None,
        };
        session.heed(answer).map_err(Outcome::Failed)
    }

    /// What the processor has said so far of a body that it answers in its own time; at the end all of it, up to its own end.
    async fn duplex(&self, direction: Direction, end: bool, session: &Session) -> Result<Bytes, Outcome> {
        let mut out = BytesMut::new();
        loop {
            let reply = if end {
                match tokio::time::timeout(self.times.message, session.receive(direction)).await {
                    Ok(reply) => reply,
                    Err(_) => Err(super::session::Failure::Timeout),
                }
            } else {
                // Of whoever asks last the waker is kept, and the other direction may wait for the same call: no other one
                // than the task's will do.
                match poll_fn(|cx| Poll::Ready(session.poll_receive(direction, cx))).await {
                    Poll::Ready(reply) => reply,
                    Poll::Pending => return Ok(out.freeze()),
                }
            };
            let reply = match reply {
                Ok(Reply::Message(reply)) => *reply,
                Ok(Reply::Over) => return Ok(out.freeze()),
                Err(failure) => return Err(Outcome::Failed(failure)),
            };
            let response = self.body_answer(reply.response, direction, session)?;
            if let Some(Mutation::StreamedResponse(piece)) =
                response.body_mutation.and_then(|body| body.mutation)
            {
                if out.len() + piece.body.len() > MAX_BODY {
                    return Err(Outcome::Failed(session.spurious()));
                }
                out.extend_from_slice(&piece.body);
                if piece.end_of_stream || piece.end_of_stream_without_message {
                    return Ok(out.freeze());
                }
            }
        }
    }

    async fn trailers(
        &self,
        direction: Direction,
        trailers: &Headers,
        session: &Session,
    ) -> Result<Option<sixfold_xds_api::pb::envoy::service::ext_proc::v3::HeaderMutation>, Outcome> {
        let told = HttpTrailers { trailers: Some(self.told(trailers.iter())) };
        let request = match direction {
            Direction::Request => Request::RequestTrailers(told),
            Direction::Response => Request::ResponseTrailers(told),
        };
        let message = self.message(request, session, None, direction);
        if self.observes {
            let _ = tokio::time::timeout(self.times.message, session.show(&message)).await;
            return Ok(None);
        }
        let reply = match session.exchange(direction, &message, self.times).await {
            Ok(Reply::Message(reply)) => *reply,
            Ok(Reply::Over) => return Ok(None),
            Err(failure) => return Err(Outcome::Failed(failure)),
        };
        let answer = match (self.answer(reply.response, session)?, direction) {
            (Response::RequestTrailers(answer), Direction::Request)
            | (Response::ResponseTrailers(answer), Direction::Response) => Some(answer.header_mutation),
            _ => None,
        };
        session.heed(answer).map_err(Outcome::Failed)
    }
}
