//! Records that wait, in a buffer for each worker.

use super::Batch;
use crate::metrics::{shard, shards};
use parking_lot::Mutex;

/// Bytes that the buffer of a worker keeps when it was emptied.
const KEPT: usize = 64 << 10;
/// Bytes of the length before a record.
pub(super) const HEAD: usize = 4;

/// One buffer for each worker behind one for all other threads.
pub(super) struct Shards(Box<[Buffer]>);

/// On a cache line of its own, so that workers do not slow each other down.
#[derive(Default)]
#[repr(align(128))]
struct Buffer(Mutex<Vec<u8>>);

impl Shards {
    pub(super) fn new() -> Shards {
        Shards((0..shards()).map(|_| Buffer::default()).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds a record to this thread's buffer, unless that would then have more than `room` bytes. Answers how many it had
    /// before and has now.
    pub(super) fn add(&self, record: &[u8], room: usize) -> Option<(usize, usize)> {
        let buffer = self.0.get(shard()).or_else(|| self.0.first())?;
        let length = u32::try_from(record.len()).ok()?;
        let mut waiting = buffer.0.lock();
        let before = waiting.len();
        if before + HEAD + record.len() > room {
            return None;
        }
        waiting.extend_from_slice(&length.to_le_bytes());
        waiting.extend_from_slice(record);
        Some((before, waiting.len()))
    }

    /// Takes all that waits, each worker's in the order in which it came.
    pub(super) fn take(&self) -> Batch {
        let mut batch = Vec::new();
        for buffer in &self.0 {
            let mut waiting = buffer.0.lock();
            if batch.is_empty() && waiting.capacity() <= KEPT {
                let empty = Vec::with_capacity(waiting.len());
                batch = std::mem::replace(&mut *waiting, empty);
            } else {
                batch.extend_from_slice(&waiting);
                waiting.clear();
                waiting.shrink_to(KEPT);
            }
        }
        Batch(batch)
    }

    /// Bytes that wait in all of them.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.0.iter().map(|buffer| buffer.0.lock().len()).sum()
    }
}
