//! Peers that this thread has heard of lately: what they send of themselves is the same with every request, and is read once.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sixfold_core::fast_hash::FastMap;
use sixfold_core::workload::{Peer, Workload, identity};
use std::cell::RefCell;

/// Peers that a thread remembers, as in Envoy.
const MOST: usize = 500;
/// Bytes of what they have sent.
const MOST_BYTES: usize = 1 << 20;

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
}

#[derive(Default)]
struct Known {
    /// By the name that they give themselves, and how what they sent was read.
    peers: FastMap<u64, Entry>,
    bytes: usize,
}

struct Entry {
    how: u64,
    sent: Box<[u8]>,
    peer: Peer,
}

/// The peer that calls itself `id` and has `sent` this, which `read` makes something of where it is new; `how` tells apart what is
/// read in another way. What can't be read is nobody, and is read again.
///
/// All that was sent must be what is remembered and not the name alone: nobody can be taken for another by his name.
pub(crate) fn remembered(
    how: u64,
    id: &[u8],
    sent: &[u8],
    read: impl FnOnce(&[u8]) -> Option<Workload>,
) -> Option<Peer> {
    let key = identity(&(how, id));
    KNOWN.with_borrow_mut(|known| {
        if let Some(entry) = known.peers.get(&key).filter(|entry| entry.how == how && *entry.sent == *sent) {
            return Some(entry.peer.clone());
        }
        let peer = Peer::new(read(sent)?);
        if known.peers.len() >= MOST || known.bytes + sent.len() > MOST_BYTES {
            *known = Known::default();
        }
        known.bytes += sent.len();
        if let Some(before) = known.peers.insert(key, Entry { how, sent: sent.into(), peer: peer.clone() }) {
            known.bytes -= before.sent.len();
        }
        Some(peer)
    })
}

/// Bytes of a header, whether it is filled up or not.
pub(crate) fn base64(value: &[u8]) -> Option<Vec<u8>> {
    const CONFIG: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const ENGINE: GeneralPurpose = GeneralPurpose::new(&STANDARD, CONFIG);
    ENGINE.decode(value).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn named(name: &str) -> Option<Workload> {
        Some(Workload { workload: name.into(), ..Workload::default() })
    }

    #[test]
    fn what_is_sent_again_is_read_once() {
        let first = remembered(0, b"i", b"a", |_| named("a")).unwrap();
        let again = remembered(0, b"i", b"a", |_| unreachable!()).unwrap();
        assert_eq!((first.number, &*again.workload.workload), (again.number, "a"));
        assert_eq!(&*remembered(1, b"i", b"a", |_| named("b")).unwrap().workload.workload, "b");
        assert!(remembered(0, b"c", b"c", |_| None).is_none());
        let same = remembered(7, b"j", b"z", |_| named("a")).unwrap();
        assert_eq!(same.number, first.number, "who says the same is the same");
    }

    /// Envoy looks at the name alone: a client could speak for another one, or have others taken for itself.
    #[test]
    fn nobody_is_taken_for_another_of_his_name() {
        remembered(0, b"i", b"a", |_| named("a"));
        assert_eq!(&*remembered(0, b"i", b"b", |_| named("b")).unwrap().workload.workload, "b");
        assert_eq!(&*remembered(0, b"i", b"a", |_| named("a")).unwrap().workload.workload, "a");
    }

    #[test]
    fn a_thread_remembers_a_bounded_number_of_peers() {
        for n in 0..2000u32 {
            remembered(0, &n.to_be_bytes(), b"x", |_| named("a"));
        }
        let count = || KNOWN.with_borrow(|known| (known.peers.len(), known.bytes));
        assert!(count().0 <= MOST);
        let long = vec![b'a'; 60 << 10];
        for n in 0..40u64 {
            remembered(n, b"i", &long, |_| named("a"));
        }
        assert!(count().1 <= MOST_BYTES && count().0 > 1);
        KNOWN.with_borrow_mut(|known| *known = Known::default());
        (0..40).for_each(|n| drop(remembered(0, b"i", &[n; 1000], |_| named("a"))));
        assert_eq!(count(), (1, 1000));
    }

    #[test]
    fn padding_may_be_there() {
        assert_eq!(
            (base64(b"YQ==").unwrap(), base64(b"YQ").unwrap(), base64(b"%")),
            (b"a".to_vec(), b"a".to_vec(), None)
        );
    }
}
