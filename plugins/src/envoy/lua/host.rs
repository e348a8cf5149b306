//! What a script may ask of a request, one operation at a time: the other side of `prelude.lua`.

mod call;
mod fields;
mod info;

pub(super) use fields::unwritable;

use super::Script;
use super::vm::Answer;
use bytes::Bytes;
use mlua::{Error, FromLua, Lua, MultiValue, Table, Value};
use sixfold_core::plugin::{CalloutRequest, LocalReply};
use sixfold_core::stream::Stream;
use std::time::{SystemTime, UNIX_EPOCH};

macro_rules! operations {
    ($($name:ident = $text:literal),* $(,)?) => {
        /// An operation that scripts ask for by its number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        #[allow(clippy::upper_case_acronyms)]
        enum Op { $($name),* }

        impl Op {
            const ALL: &'static [(&'static str, Op)] = &[$(($text, Op::$name)),*];
        }
    };
}

operations! {
    HeaderAdd = "HEADER_ADD", HeaderReplace = "HEADER_REPLACE", HeaderRemove = "HEADER_REMOVE",
    HeaderGet = "HEADER_GET", HeaderAt = "HEADER_AT", HeaderCount = "HEADER_COUNT", HeaderAll = "HEADER_ALL",
    Reason = "REASON", Body = "BODY", SetBody = "SET_BODY", HasTrailers = "HAS_TRAILERS",
    Metadata = "METADATA", HostMetadata = "HOST_METADATA", Context = "CONTEXT",
    DynamicGet = "DYNAMIC_GET", DynamicSet = "DYNAMIC_SET", DynamicAll = "DYNAMIC_ALL",
    FilterState = "FILTER_STATE", FilterStateSet = "FILTER_STATE_SET", IsTls = "IS_TLS", Close = "CLOSE",
    ClearRoute = "CLEAR_ROUTE", Call = "CALL", Time = "TIME", TimeText = "TIME_TEXT", Base64 = "BASE64",
    Verify = "VERIFY", Wait = "WAIT",
    WaitBody = "WAIT_BODY", WaitChunk = "WAIT_CHUNK", WaitTrailers = "WAIT_TRAILERS", WaitCall = "WAIT_CALL",
    WaitRespond = "WAIT_RESPOND",
    LogTrace = "LOG_TRACE", LogDebug = "LOG_DEBUG", LogInfo = "LOG_INFO", LogWarn = "LOG_WARN", LogErr = "LOG_ERR",
    Protocol = "protocol", RouteName = "routeName", VirtualClusterName = "virtualClusterName",
    LocalAddress = "downstreamLocalAddress", DirectLocalAddress = "downstreamDirectLocalAddress",
    RemoteAddress = "downstreamRemoteAddress", DirectRemoteAddress = "downstreamDirectRemoteAddress",
    ServerName = "requestedServerName",
    PeerPresented = "peerCertificatePresented", PeerValidated = "peerCertificateValidated",
    SubjectPeer = "subjectPeerCertificate", IssuerPeer = "issuerPeerCertificate",
    SerialPeer = "serialNumberPeerCertificate", DigestPeer = "sha256PeerCertificateDigest",
    SubjectLocal = "subjectLocalCertificate", UriSanPeer = "uriSanPeerCertificate", UriSanLocal = "uriSanLocalCertificate",
    DnsSansPeer = "dnsSansPeerCertificate", DnsSansLocal = "dnsSansLocalCertificate",
    TlsVersion = "tlsVersion", Ciphersuite = "ciphersuiteString",
}

/// What is asked of the connection of a stream, by its method.
const INFO: [Op; 8] = [
    Op::Protocol,
    Op::RouteName,
    Op::VirtualClusterName,
    Op::LocalAddress,
    Op::DirectLocalAddress,
    Op::RemoteAddress,
    Op::DirectRemoteAddress,
    Op::ServerName,
];

const SSL: [Op; 13] = [
    Op::PeerPresented,
    Op::PeerValidated,
    Op::SubjectPeer,
    Op::IssuerPeer,
    Op::SerialPeer,
    Op::DigestPeer,
    Op::SubjectLocal,
    Op::UriSanPeer,
    Op::UriSanLocal,
    Op::DnsSansPeer,
    Op::DnsSansLocal,
    Op::TlsVersion,
    Op::Ciphersuite,
];

/// The numbers of the operations by their names, for the prelude.
pub(super) fn operations(lua: &Lua) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    let (info, ssl) = (lua.create_table()?, lua.create_table()?);
    for (name, op) in Op::ALL {
        let into = match op {
            op if INFO.contains(op) => &info,
            op if SSL.contains(op) => &ssl,
            _ => &table,
        };
        into.set(*name, *op as u8)?;
    }
    table.set("info", info)?;
    table.set("ssl", ssl)?;
    Ok(table)
}

/// The level of a line that a script writes.
pub(super) fn log(level: u8, text: &str) {
    match Op::ALL.get(usize::from(level)).map(|(_, op)| *op) {
        Some(Op::LogTrace) => tracing::trace!("script log: {text}"),
        Some(Op::LogDebug) => tracing::debug!("script log: {text}"),
        Some(Op::LogWarn) => tracing::warn!("script log: {text}"),
        Some(Op::LogErr) => tracing::error!("script log: {text}"),
        _ => tracing::info!("script log: {text}"),
    }
}

/// What a script waits for when it leaves.
#[derive(Debug)]
pub(super) enum Wait {
    /// The whole body.
    Body,
    /// The next piece of the body.
    Chunk,
    /// The trailers, or that there are none.
    Trailers,
    /// The answer of a service.
    Call(Box<CalloutRequest>),
    /// Nothing: it has answered the request, and does not go on.
    Respond(Box<LocalReply>),
}

/// Which message a script is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Request,
    Response,
}

/// What is known of the body of the message.
#[derive(Clone, Debug, Default)]
pub(super) enum Body {
    /// Nothing yet.
    #[default]
    Unknown,
    /// There is none.
    None,
    /// All of it.
    Whole(Bytes),
}

impl Body {
    /// A body that has been read.
    pub(super) fn of(bytes: &Bytes) -> Body {
        if bytes.is_empty() { Body::None } else { Body::Whole(bytes.clone()) }
    }
}

/// One turn of a script.
pub(super) struct Host<'a> {
    pub(super) script: &'a Script,
    pub(super) stream: &'a mut Stream,
    pub(super) side: Side,
    pub(super) body: Body,
    /// The head of the message has not gone on yet.
    pub(super) head_is_here: bool,
    /// That head tells the length of a body which the script puts in the place of the message's.
    pub(super) sizes_body: bool,
    /// What the script has put in the place of the body, or of the piece that it has.
    pub(super) new_body: Option<Bytes>,
    pub(super) clear_route: bool,
    pub(super) wait: Option<Wait>,
    /// Bytes of dynamic metadata and filter state that it may still set.
    pub(super) may_keep: &'a mut usize,
}

impl Host<'_> {
    /// Does what a script asks for.
    pub(super) fn call(&mut self, lua: &Lua, op: u8, args: MultiValue) -> mlua::Result<MultiValue> {
        let Some((_, op)) = Op::ALL.get(usize::from(op)) else {
            return Err(Error::runtime("unknown operation"));
        };
        let mut args = Args { lua, values: args };
        let value = match op {
            Op::HeaderAdd
            | Op::HeaderReplace
            | Op::HeaderRemove
            | Op::HeaderGet
            | Op::HeaderAt
            | Op::HeaderCount
            | Op::HeaderAll => return self.header(*op, &mut args),
            Op::Reason => {
                let phrase: mlua::LuaString = args.next()?;
                let status = self.stream.response.status;
                self.stream.response.reason.set(status, &phrase.as_bytes());
                Value::Nil
            }
            Op::Body => match &self.body {
                Body::Unknown => Value::Nil,
                Body::None => Value::Boolean(false),
                Body::Whole(bytes) => Value::String(lua.create_string(bytes)?),
            },
            Op::SetBody => {
                let bytes: mlua::LuaString = args.next()?;
                self.set_body(Bytes::copy_from_slice(&bytes.as_bytes()), args.next()?);
                Value::Nil
            }
            Op::HasTrailers => Value::Boolean(match self.side {
                Side::Request => !self.stream.request_trailers.is_empty(),
                Side::Response => !self.stream.response_trailers.is_empty(),
            }),
            Op::Call => {
                let request = self.request(&mut args)?;
                self.script.send_and_forget(request);
                Value::Nil
            }
            Op::Wait => {
                self.wait = Some(self.waiting(&mut args)?);
                Value::Nil
            }
            Op::ClearRoute => {
                self.clear_route |= self.side == Side::Request;
                Value::Nil
            }
            Op::Time | Op::TimeText => {
                let micros: Option<i64> = args.next()?;
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let time = if micros == Some(1) { since.as_micros() } else { since.as_millis() };
                match op {
                    Op::TimeText => Value::String(lua.create_string(time.to_string())?),
                    _ => Value::Number(time as f64),
                }
            }
            Op::Base64 => {
                let bytes: mlua::LuaString = args.next()?;
                let text =
                    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &*bytes.as_bytes());
                Value::String(lua.create_string(text)?)
            }
            Op::Verify => return call::verify(&mut args),
            other => self.info(*other, &mut args)?,
        };
        Ok(MultiValue::from_iter([value]))
    }

    fn waiting(&mut self, args: &mut Args<'_>) -> mlua::Result<Wait> {
        let kind: u8 = args.next()?;
        Ok(match Op::ALL.get(usize::from(kind)).map(|(_, op)| *op) {
            Some(Op::WaitBody) => Wait::Body,
            Some(Op::WaitTrailers) => Wait::Trailers,
            Some(Op::WaitCall) => Wait::Call(Box::new(self.request(args)?)),
            Some(Op::WaitRespond) => Wait::Respond(Box::new(self.answer(args)?)),
            _ => Wait::Chunk,
        })
    }

    /// The message then has that body; its length is said anew while that is the script's to say.
    fn set_body(&mut self, bytes: Bytes, whole: bool) {
        if whole && self.sizes_body {
            let headers = match self.side {
                Side::Request => &mut self.stream.request.headers,
                Side::Response => &mut self.stream.response.headers,
            };
            headers.set(sixfold_core::headers::Known::CONTENT_LENGTH, bytes.len().to_string().as_bytes());
        }
        if whole {
            self.body = Body::Whole(bytes.clone());
        }
        self.new_body = Some(bytes);
    }
}

/// Arguments of an operation, one after the other.
struct Args<'l> {
    lua: &'l Lua,
    values: MultiValue,
}

impl Args<'_> {
    fn next<T: FromLua>(&mut self) -> mlua::Result<T> {
        T::from_lua(self.values.pop_front().unwrap_or(Value::Nil), self.lua)
    }
}

/// The answer of a service as a script gets it: names and values in turn, and the body.
pub(super) fn answer_values(lua: &Lua, answer: &Answer) -> mlua::Result<MultiValue> {
    let list = lua.create_table()?;
    list.push(":status")?;
    list.push(answer.status.to_string())?;
    for (name, value) in answer.headers.iter() {
        list.push(lua.create_string(name)?)?;
        list.push(lua.create_string(value)?)?;
    }
    let body =
        if answer.body.is_empty() { Value::Nil } else { Value::String(lua.create_string(&answer.body)?) };
    Ok(MultiValue::from_iter([Value::Table(list), body]))
}
