//! How the two sidecars of a connection tell each other which workloads they serve: a frame each before all else that it sends,
//! where their handshake has agreed on that (contrib/istio/filters/network/metadata_exchange).

use crate::metrics::Registry;
use crate::workload::Peer;

/// What a frame begins with, behind which the length of its message follows.
const MAGIC: [u8; 4] = 0x3d23_0467_u32.to_be_bytes();
/// Bytes before the message of a frame.
const HEAD: usize = 8;
/// Bytes of a message that is read; a workload takes some hundred. Envoy has no bound.
pub const MAX_MESSAGE: usize = 32 << 10;

crate::stat_block! {
    /// Statistics under `metadata_exchange.`.
    pub struct ExchangeStats {
        counters: [
            alpn_protocol_not_found, alpn_protocol_found, initial_header_not_found, header_not_found, metadata_added,
        ],
        gauges: [],
        histograms: [],
    }
}

/// Reads the message that a peer has sent of itself; `None` where it can't be read.
type Read = Box<dyn Fn(&[u8]) -> Option<Peer> + Send + Sync>;

/// An exchange as it is configured.
pub struct PeerExchange {
    protocol: Box<[u8]>,
    frame: Box<[u8]>,
    read: Read,
    stats: ExchangeStats,
}

/// How far an exchange has come on one connection.
#[derive(Debug, Default)]
pub struct Progress {
    /// What there is to say has been said.
    said: bool,
    /// Bytes of the peer's frame that are still to come, and nobody wants.
    skipped: u64,
}

/// What has become known of the peer.
#[derive(Debug)]
pub enum Heard {
    /// Nothing yet: more of it has to come.
    Part,
    /// All that there will be: who it is, if it has told.
    All(Option<Peer>),
}

/// What bytes of a peer begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// The beginning of one.
    Part,
    /// One with a message of so many bytes.
    Whole(usize),
    /// One whose message has so many bytes, which are too many.
    Long(u64),
    /// Something else.
    Other,
}

impl Frame {
    fn of(bytes: &[u8]) -> Frame {
        let magic = bytes.get(..MAGIC.len()).unwrap_or(bytes);
        if !MAGIC.starts_with(magic) {
            return Frame::Other;
        }
        let Some(length) = bytes.get(MAGIC.len()..HEAD).and_then(|length| length.try_into().ok()) else {
            return Frame::Part;
        };
        match u32::from_be_bytes(length) as usize {
            long if long > MAX_MESSAGE => Frame::Long(long as u64),
            length if HEAD + length > bytes.len() => Frame::Part,
            length => Frame::Whole(length),
        }
    }
}

impl PeerExchange {
    /// An exchange on connections of this protocol (ALPN), on which we say `own`. `read` reads what a peer says.
    pub fn new(
        protocol: &str,
        own: &[u8],
        read: impl Fn(&[u8]) -> Option<Peer> + Send + Sync + 'static,
        registry: &Registry,
    ) -> PeerExchange {
        let length = u32::try_from(own.len()).unwrap_or(u32::MAX).to_be_bytes();
        PeerExchange {
            protocol: protocol.as_bytes().into(),
            frame: [&MAGIC[..], &length, own].concat().into(),
            read: Box::new(read),
            stats: ExchangeStats::new(registry, "metadata_exchange."),
        }
    }

    /// Whether the two ends of a connection with this protocol have agreed on it.
    pub fn is_agreed(&self, alpn: Option<&[u8]>) -> bool {
        alpn == Some(&*self.protocol)
    }

    /// The same, of a connection that was just established: it is counted.
    pub fn meets(&self, alpn: Option<&[u8]>) -> bool {
        let agreed = self.is_agreed(alpn);
        match agreed {
            true => self.stats.alpn_protocol_found().inc(),
            false => self.stats.alpn_protocol_not_found().inc(),
        }
        agreed
    }

    /// Says what there is to say, unless it has been said: before the first bytes that the peer gets, or in return for its own.
    pub fn say(&self, progress: &mut Progress, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut progress.said, true) {
            self.stats.metadata_added().inc();
            out.extend_from_slice(&self.frame);
        }
    }

    /// Takes the peer's frame off what it has sent, `end` being that it sends nothing more. Of a peer that sends something else
    /// all of it stays; a frame that can't be read, is too long or is cut off is taken off too.
    pub fn hear(&self, progress: &mut Progress, received: &mut Vec<u8>, end: bool) -> Heard {
        if progress.skipped == 0 {
            match Frame::of(received) {
                Frame::Other => {
                    self.stats.initial_header_not_found().inc();
                    return Heard::All(None);
                }
                Frame::Part => {
                    let head_is_there = received.len() >= HEAD;
                    if !head_is_there {
                        self.stats.initial_header_not_found().inc();
                    } else if end {
                        received.clear();
                    }
                    return if end { Heard::All(None) } else { Heard::Part };
                }
                Frame::Whole(length) => {
                    let peer = received.get(HEAD..HEAD + length).and_then(&self.read);
                    received.drain(..HEAD + length);
                    if peer.is_none() {
                        self.stats.header_not_found().inc();
                    }
                    return Heard::All(peer);
                }
                Frame::Long(length) => {
                    self.stats.header_not_found().inc();
                    progress.skipped = HEAD as u64 + length;
                }
            }
        }
        let skipped = received.len().min(usize::try_from(progress.skipped).unwrap_or(usize::MAX));
        received.drain(..skipped);
        progress.skipped -= skipped as u64;
        if progress.skipped == 0 || end { Heard::All(None) } else { Heard::Part }
    }
}

impl std::fmt::Debug for PeerExchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exchange of peers by {}", String::from_utf8_lossy(&self.protocol))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::workload::Workload;

    const COUNTERS: [&str; 5] = [
        "alpn_protocol_not_found",
        "alpn_protocol_found",
        "initial_header_not_found",
        "header_not_found",
        "metadata_added",
    ];

    /// Peers say the names of their workloads; `?` can't be read.
    fn exchange(registry: &Registry) -> PeerExchange {
        let read = |bytes: &[u8]| {
            let workload = String::from_utf8(bytes.to_vec()).ok().filter(|name| name != "?")?;
            Some(Peer::new(Workload { workload: workload.into(), ..Workload::default() }))
        };
        PeerExchange::new("istio-peer-exchange", b"web", read, registry)
    }

    fn frame(message: &[u8]) -> Vec<u8> {
        let length = (message.len() as u32).to_be_bytes();
        [&[0x3d, 0x23, 0x04, 0x67], &length[..], message].concat()
    }

    /// Who has sent these bytes, and what is left of them; `None` where more has to come.
    fn heard(bytes: &[u8], end: bool) -> Option<(String, Vec<u8>)> {
        let (exchange, mut received) = (exchange(&Registry::new()), bytes.to_vec());
        match exchange.hear(&mut Progress::default(), &mut received, end) {
            Heard::Part => None,
            Heard::All(peer) => {
                Some((peer.map_or("nobody".into(), |peer| peer.workload.workload.to_string()), received))
            }
        }
    }

    #[test]
    fn a_frame_is_said_once_and_taken_off_what_the_peer_sends() {
        let (exchange, mut said, mut progress) =
            (exchange(&Registry::new()), Vec::new(), Progress::default());
        exchange.say(&mut progress, &mut said);
        exchange.say(&mut progress, &mut said);
        assert_eq!(said, frame(b"web"));
        let bytes = [frame(b"db"), b"payload".to_vec()].concat();
        for cut in 0..10 {
            assert!(heard(&bytes[..cut], false).is_none(), "{cut}");
        }
        assert_eq!(heard(&bytes, false), Some(("db".into(), b"payload".to_vec())));
        assert_eq!(heard(&frame(b"db"), false), Some(("db".into(), Vec::new())));
    }

    #[test]
    fn what_is_no_frame_stays() {
        for other in [&b"G"[..], b"=x", b"=#\x04xmore than a head"] {
            assert_eq!(heard(other, false), Some(("nobody".into(), other.to_vec())));
        }
        // Of one who says nothing more it is no frame either.
        assert_eq!(heard(b"=#", true), Some(("nobody".into(), b"=#".to_vec())));
    }

    #[test]
    fn a_frame_that_is_of_no_use_reaches_nobody() {
        assert_eq!(
            heard(&[frame(b"?"), b"rest".to_vec()].concat(), false),
            Some(("nobody".into(), b"rest".to_vec()))
        );
        assert_eq!(heard(&frame(b"cut")[..9], true), Some(("nobody".into(), Vec::new())));
        let exchange = exchange(&Registry::new());
        let (mut progress, long) = (Progress::default(), frame(&vec![b'x'; MAX_MESSAGE + 1]));
        let mut left = long.len();
        for piece in long.chunks(10_000) {
            let mut received = [piece, if left == piece.len() { b"rest" } else { b"" }].concat();
            left -= piece.len();
            let heard = exchange.hear(&mut progress, &mut received, false);
            assert!(matches!((heard, left), (Heard::All(None), 0) | (Heard::Part, 1..)));
            assert_eq!(received, if left == 0 { b"rest".to_vec() } else { Vec::new() });
        }
    }

    #[test]
    fn it_takes_place_where_the_handshake_has_agreed_on_it_and_is_counted() {
        let registry = Registry::new();
        let exchange = exchange(&registry);
        assert!(exchange.meets(Some(b"istio-peer-exchange")));
        assert!(!exchange.meets(Some(b"istio")) && !exchange.meets(None));
        exchange.say(&mut Progress::default(), &mut Vec::new());
        for bytes in [b"GET /".to_vec(), frame(b"?"), frame(b"db")] {
            exchange.hear(&mut Progress::default(), &mut bytes.clone(), false);
        }
        let counted = COUNTERS.map(|name| registry.sum("metadata_exchange.", name));
        assert_eq!(counted, [2, 1, 1, 1, 1]);
    }
}
