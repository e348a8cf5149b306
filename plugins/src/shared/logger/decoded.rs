//! Bodies of responses whose encoding is undone for their entry, beside the worker.

use crate::shared::encoding::Encoding;
use bytes::Bytes;
use sixfold_core::format::quote;
use sixfold_core::headers::Known;
use sixfold_core::offload::{self, Lane};
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
}

/// An entry that waits for its body.
pub(super) struct Waiting {
    encoded: Encoded,
    entry: Box<[u8]>,
    place: Place,
}

/// A part of [`MOST_WAITING`].
struct Place(usize);

impl Place {
    fn new(bytes: usize) -> Option<Place> {
        let take = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= MOST_WAITING);
        WAITING.fetch_update(Relaxed, Relaxed, take).ok().map(|_| Place(bytes))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        WAITING.fetch_sub(self.0, Relaxed);
    }
}

impl Encoded {
    /// The body, if it has an encoding that can be undone; else as it is.
    pub(super) fn of(stream: &Stream, body: Bytes) -> Result<Encoded, Bytes> {
        let named = stream.response.headers.get(Known::CONTENT_ENCODING).and_then(Encoding::named);
        let Some(encoding) = named.filter(|_| !body.is_empty()) else { return Err(body) };
        Ok(Encoded { encoding, body, word: format!("body {:032x}", fastrand::u128(..)) })
    }

    pub(super) fn word(&self) -> Vec<u8> {
        self.word.clone().into_bytes()
    }

    /// Has a finished entry wait for the body. Where there is no room for both, the entry with the body as it was sent.
    pub(super) fn wait_in(self, entry: &[u8]) -> Result<Waiting, Vec<u8>> {
        match Place::new(entry.len() + self.body.len()) {
            Some(place) => Ok(Waiting { encoded: self, entry: entry.into(), place }),
            None => Err(replaced(entry, &self.word, &self.body)),
        }
    }
}

impl Waiting {
    /// The entry with the decoded body in it.
    pub(super) async fn decoded(self) -> Vec<u8> {
        let Waiting { encoded: Encoded { encoding, body, word }, entry, place: _place } = self;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Bodies alone were counted: entries hold the request's too.
    #[test]
    fn entries_that_wait_are_bounded_by_all_that_they_hold() {
        let encoded =
            || Encoded { encoding: Encoding::Gzip, body: Bytes::from_static(b"b"), word: "w".to_owned() };
        let waiting = encoded().wait_in(b"{\"a\":\"w\"}").ok();
        assert_eq!(waiting.map(|waiting| waiting.place.0), Some(10));
        let mut entry = b"\"w\"".to_vec();
        entry.resize(MOST_WAITING, b' ');
        let refused = encoded().wait_in(&entry).err().unwrap_or_default();
        assert_eq!((refused.len(), refused.get(..3)), (MOST_WAITING, Some(&b"\"b\""[..])));
    }
}
