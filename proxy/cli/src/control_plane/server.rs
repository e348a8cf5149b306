//! gRPC for control planes: streams of length-prefixed messages over HTTP/2, by the `h2` crate.

use super::Order;
use super::folder::Resources;
use super::session::Session;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use parking_lot::Mutex;
use sixfold_xds::ads::Flavor;
use std::future::{pending, poll_fn};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{broadcast, watch};

/// No request of a client is longer, in bytes.
const MAX_REQUEST: usize = 16 << 20;
/// Before a socket is taken again that could not be.
const PAUSE: Duration = Duration::from_millis(100);

/// What all streams share.
pub(super) struct Shared {
    pub(super) resources: Mutex<Arc<Resources>>,
    pub(super) changes: watch::Receiver<()>,
    pub(super) orders: broadcast::Sender<Order>,
    pub(super) faults: Mutex<Faults>,
}

/// Faults that last.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    hang: bool,
    refuse: bool,
    delay: Duration,
}

impl Faults {
    pub(super) fn take(&mut self, order: &Order) {
        match order {
            Order::Hang(hang) => self.hang = *hang,
            Order::Refuse(refuse) => self.refuse = *refuse,
            Order::Delay(delay) => self.delay = *delay,
            Order::Cut | Order::Garbage | Order::Flood(_) => {}
        }
    }
}

/// Where clients come from.
pub(super) enum Listen {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listen {
    /// Listens at `ADDRESS:PORT` or `unix:PATH`; answers also where that is.
    pub(super) async fn bind(place: &str) -> io::Result<(Listen, String)> {
        if let Some(path) = place.strip_prefix("unix:") {
            // One that is left of a process that has ended is in nobody's use.
            if std::os::unix::net::UnixStream::connect(path).is_err() && std::fs::exists(path)? {
                std::fs::remove_file(path)?;
            }
            return Ok((Listen::Unix(UnixListener::bind(path)?), place.to_owned()));
        }
        let listener = TcpListener::bind(place).await?;
        let address = listener.local_addr()?.to_string();
        Ok((Listen::Tcp(listener), address))
    }
}

/// Serves for ever.
pub(super) async fn serve(listener: Listen, shared: Arc<Shared>) {
    loop {
        let accepted = match &listener {
            Listen::Tcp(listener) => listener.accept().await.map(|(socket, _)| {
                tokio::spawn(connection(socket, shared.clone()));
            }),
            Listen::Unix(listener) => listener.accept().await.map(|(socket, _)| {
                tokio::spawn(connection(socket, shared.clone()));
            }),
        };
        if let Err(error) = accepted {
            tracing::error!(%error, "no connection can be taken");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn connection(socket: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            let path = request.uri().path().to_owned();
            match stream(request, respond, &shared).await {
                Ok(()) => tracing::info!(path, "a stream has ended"),
                Err(error) => tracing::info!(path, %error, "a stream has broken"),
            }
        });
    }
}

/// One stream; ends with the client's side of it, or by an order.
async fn stream(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    shared: &Shared,
) -> Result<(), h2::Error> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default();
    let flavor = match method {
        _ if shared.faults.lock().refuse => return end(&mut respond, 14),
        _ if method.starts_with("Delta") => Flavor::Delta,
        _ if method.starts_with("Stream") => Flavor::State,
        _ => return end(&mut respond, 12),
    };
    let (mut orders, mut changes) = (shared.orders.subscribe(), shared.changes.clone());
    changes.mark_unchanged();
    let mut head = Response::new(());
    head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let mut out = respond.send_response(head, false)?;
    let (mut incoming, mut session) = (Incoming::new(request.into_body()), Session::new(flavor));
    // What this stream tells of. Another world is told as a whole and in its order: were a request for routes answered
    // out of one whose clusters were not pushed yet, they would lead nowhere.
    let mut resources = shared.resources.lock().clone();
    loop {
        let hangs = shared.faults.lock().hang;
        tokio::select! {
            message = incoming.next(), if !hangs => {
                let Some(message) = message? else { return out.send_trailers(status(0)) };
                match session.hear(&message, &resources) {
                    Ok(heard) => {
                        if let Some((type_url, reason)) = heard.refused {
                            tracing::warn!(node = session.node, type_url, reason, "refused");
                        }
                        send(&mut out, heard.response, shared).await?;
                    }
                    Err(_) => return out.send_trailers(status(13)),
                }
            }
            _ = changes.changed(), if !hangs => {
                resources = shared.resources.lock().clone();
                send(&mut out, session.push(&resources), shared).await?;
            }
            order = orders.recv() => match order {
                Ok(Order::Cut) => return out.send_trailers(status(14)),
                Ok(Order::Garbage) => send(&mut out, [vec![0xff; 100]], shared).await?,
                Ok(Order::Flood(times)) => {
                    for _ in 0..times {
                        send(&mut out, session.repeat(&resources), shared).await?;
                    }
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => pending().await,
            },
        }
    }
}

fn end(respond: &mut SendResponse<Bytes>, code: u32) -> Result<(), h2::Error> {
    let mut head = Response::new(());
    *head.headers_mut() = status(code);
    head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    respond.send_response(head, true).map(drop)
}

fn status(code: u32) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from(code))])
}

/// Sends messages as the client takes them.
async fn send(
    out: &mut SendStream<Bytes>,
    messages: impl IntoIterator<Item = Vec<u8>>,
    shared: &Shared,
) -> Result<(), h2::Error> {
    for message in messages {
        let delay = shared.faults.lock().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut framed = BytesMut::with_capacity(5 + message.len());
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
        framed.put_slice(&message);
        let mut rest = framed.freeze();
        while !rest.is_empty() {
            out.reserve_capacity(rest.len());
            let room = match poll_fn(|cx| out.poll_capacity(cx)).await {
                Some(room) => room?,
                None => return Err(h2::Reason::CANCEL.into()),
            };
            out.send_data(rest.split_to(room.min(rest.len())), false)?;
        }
    }
    Ok(())
}

/// Messages of a client.
struct Incoming {
    body: RecvStream,
    received: BytesMut,
}

impl Incoming {
    fn new(body: RecvStream) -> Incoming {
        Incoming { body, received: BytesMut::new() }
    }

    /// The next message; may be dropped at any time.
    async fn next(&mut self) -> Result<Option<BytesMut>, h2::Error> {
        loop {
            if let Some(length) = self.received.get(1..5).map(|mut length| length.get_u32() as usize) {
                if length > MAX_REQUEST {
                    return Err(h2::Reason::ENHANCE_YOUR_CALM.into());
                }
                if self.received.len() >= 5 + length {
                    return Ok(Some(self.received.split_to(5 + length).split_off(5)));
                }
            }
            let Some(data) = self.body.data().await else { return Ok(None) };
            let data = data?;
            self.body.flow_control().release_capacity(data.len())?;
            self.received.extend_from_slice(&data);
        }
    }
}
