//! Bodies of responses whose encoding is undone for their entry, beside the worker.

use crate::shared::encoding::Encoding;
use crate::shared::offload::{self, Lane};
use bytes::Bytes;
use sixfold_core::format::quote;
use sixfold_core::headers::Known;
use sixfold_core::stream::Stream;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes that a decoded body may have. A longer one is logged as it was sent.
const MOST_DECODED: usize = 8 << 20;
/// Bytes of entries and bodies that may wait for it, in the whole process; what comes beyond is logged as it was sent.
const MOST_WAITING: usize = 16 << 20;

static WAITING: AtomicUsize = AtomicUsize::new(0);

/// A body that is not decoded yet.
pub(super) struct Encoded {
    encoding: Encoding,
    body: Bytes,
    /// What stands in its place in the entry: nobody knows it before.
    word: String,
    place: Place,
}

/// A part of [`MOST_WAITING`].
struct Place(usize);

impl Drop for Place {
    fn drop(&mut self) {
        WAITING.fetch_sub(self.0, Relaxed);
    }
}

impl Encoded {
    /// The body, if it has an encoding that can be undone and there is room for it; else as it is.
    pub(super) fn of(stream: &Stream, body: Bytes) -> Result<Encoded, Bytes> {
        let named = stream.response.headers.get(Known::CONTENT_ENCODING).and_then(Encoding::named);
        let Some(encoding) = named.filter(|_| !body.is_empty()) else { return Err(body) };
        let waiting = WAITING.fetch_add(body.len(), Relaxed) + body.len();
        let place = Place(body.len());
        if waiting > MOST_WAITING {
            return Err(body);
        }
        let word = format!("body {:032x}", fastrand::u128(..));
        Ok(Encoded { encoding, body, word, place })
    }

    pub(super) fn word(&self) -> Vec<u8> {
        self.word.clone().into_bytes()
    }

    /// The entry with the body in it.
    pub(super) async fn put_into(self, entry: Vec<u8>) -> Vec<u8> {
        let Encoded { encoding, body, word, place: _place } = self;
        let encoded = body.clone();
        let decoded = offload::run(Lane::of(body.len()), move || encoding.decode(&encoded, MOST_DECODED));
        let text = match decoded.await {
            Some(Ok(decoded)) => decoded,
            Some(Err(error)) => {
                tracing::warn!(%error, "a response is logged with its encoding");
                body.to_vec()
            }
            None => body.to_vec(),
        };
        replaced(&entry, &word, &text)
    }
}

/// The entry with a string in the place of each that is `word`.
fn replaced(entry: &[u8], word: &str, text: &[u8]) -> Vec<u8> {
    let quoted = format!("\"{word}\"");
    let mut out = Vec::with_capacity(entry.len() + text.len());
    let mut rest = entry;
    while let Some(at) = memchr::memmem::find(rest, quoted.as_bytes()) {
        let (before, behind) = rest.split_at(at);
        out.extend_from_slice(before);
        quote(&mut out, text);
        rest = behind.get(quoted.len()..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    out
}
