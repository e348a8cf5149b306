//! Bodies on their way through: pieces borrowed from a connection's buffer or shared with a codec.

use bytes::Bytes;

/// A piece of a body.
#[derive(Debug)]
pub(crate) enum Piece<'a> {
    /// In the buffer of an HTTP/1 connection.
    Borrowed(&'a [u8]),
    /// Owned by nobody in particular, as HTTP/2 delivers it.
    Shared(Bytes),
}

impl Piece<'_> {
    /// The bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Piece::Borrowed(bytes) => bytes,
            Piece::Shared(bytes) => bytes,
        }
    }

    /// The bytes to keep; copies a borrowed piece.
    pub(crate) fn into_bytes(self) -> Bytes {
        match self {
            Piece::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Piece::Shared(bytes) => bytes,
        }
    }
}

/// What reading a body gives next.
#[derive(Debug)]
pub(crate) enum BodyEvent<'a> {
    /// Some bytes.
    Data(Piece<'a>),
    /// The end. Trailers, if any, have been put where the caller said.
    End,
}
