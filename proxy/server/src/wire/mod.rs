//! What both sides of a proxied request speak: bodies, heads and flow control as the codecs have them, whether the peer
//! is a client ([`crate::http`]) or an upstream ([`crate::upstream`]).

mod batched;
pub(crate) mod body;
pub(crate) mod codecs;
pub(crate) mod h1_body;
pub(crate) mod h2_guard;
pub(crate) mod h2_headers;
pub(crate) mod h2_keepalive;
pub(crate) mod h2_recv;
pub(crate) mod h2_send;

/// The first bytes of HTTP/2 with prior knowledge (RFC 9113 section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
