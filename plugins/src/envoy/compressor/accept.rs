//! Which of a chain's compressors a client wants (compressor_filter.cc `chooseEncoding`).

use super::direction::Types;
use crate::shared::coding::parts;
use sixfold_core::headers::Known;
use sixfold_core::plugin::{Scope, Slot};
use sixfold_core::stream::Stream;
use std::sync::Arc;

/// What is kept of a request for all compressors of its chain: no filter's own slot.
const TOGETHER: Slot = Slot::new(u16::MAX, Scope::Global);

/// A compressor that may be chosen.
pub(super) struct Candidate {
    /// As Accept-Encoding spells it.
    pub(super) coding: &'static str,
    /// Responses of other types are none of its.
    pub(super) types: Types,
    /// It is preferred among equals.
    pub(super) choose_first: bool,
}

/// The compressors of a chain, in order, and what was decided.
#[derive(Default)]
pub(super) struct Registered {
    candidates: Vec<Arc<Candidate>>,
    decision: Option<Decision>,
}

/// What the client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) accepted: Accepted,
    /// The coding; empty for none.
    pub(super) coding: &'static str,
}

/// What led to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepted {
    /// It names the coding.
    Coding,
    /// It wants the body as it is.
    Identity,
    /// It takes any.
    Wildcard,
    /// It takes none of those that there are.
    Nothing,
}

const NOTHING: Decision = Decision { accepted: Accepted::Nothing, coding: "" };

/// Makes a compressor known to those that decide later: nobody does where no client has asked for a coding.
pub(super) fn register(stream: &mut Stream, candidate: &Arc<Candidate>, is_asked: bool) {
    match stream.state::<Registered>(TOGETHER) {
        Some(registered) => registered.candidates.push(candidate.clone()),
        None if !is_asked => {}
        None => {
            let candidates = vec![candidate.clone()];
            stream.set_state(TOGETHER, Registered { candidates, decision: None });
        }
    }
}

/// What the client wants: decided once, by the first that asks.
pub(super) fn decide(stream: &mut Stream, accept: &[u8]) -> Decision {
    let kind = stream.response.headers.get(Known::CONTENT_TYPE).map(<[u8]>::to_vec);
    let Some(registered) = stream.state::<Registered>(TOGETHER) else { return NOTHING };
    let Registered { candidates, decision } = registered;
    *decision.get_or_insert_with(|| choose(candidates, kind.as_deref(), accept))
}

fn choose(candidates: &[Arc<Candidate>], kind: Option<&[u8]>, accept: &[u8]) -> Decision {
    // Of two with one coding the first counts.
    let mut allowed: Vec<&Candidate> = Vec::new();
    for candidate in candidates {
        let takes = kind.filter(|kind| !kind.is_empty()).is_none_or(|kind| candidate.types.has(kind));
        if takes && allowed.iter().all(|other| other.coding != candidate.coding) {
            allowed.push(candidate);
        }
    }
    let mut asked: Vec<(&[u8], f32)> = Vec::new();
    for token in parts(accept).filter(|token| !token.is_empty()) {
        let (name, parameters) = match token.iter().position(|b| *b == b';') {
            Some(at) => (token.get(..at).unwrap_or_default().trim_ascii(), token.get(at + 1..)),
            None => (token, None),
        };
        let Some(quality) = parameters.map_or(Some(1.0), quality) else { continue };
        asked.push((name, quality));
        if quality == 0.0 {
            allowed.retain(|candidate| candidate.coding.as_bytes() != name);
        }
    }
    if asked.is_empty() || allowed.is_empty() {
        return NOTHING;
    }
    let mut choice: (&[u8], f32) = (b"identity", 0.0);
    for (name, quality) in &asked {
        let candidate = allowed.iter().find(|candidate| candidate.coding.as_bytes() == *name);
        if candidate.is_none() && *name != b"identity" && *name != b"*" {
            continue;
        }
        let is_first = candidate.is_some_and(|candidate| candidate.choose_first);
        if *quality > choice.1 || (*quality == choice.1 && is_first) {
            choice = (name, *quality);
        }
    }
    match choice {
        (_, 0.0) => NOTHING,
        (b"identity", _) => Decision { accepted: Accepted::Identity, coding: "" },
        (b"*", _) => {
            let coding = allowed.first().map_or("", |candidate| candidate.coding);
            Decision { accepted: Accepted::Wildcard, coding }
        }
        (name, _) => {
            let chosen = allowed.iter().find(|candidate| candidate.coding.as_bytes() == name);
            chosen.map_or(NOTHING, |chosen| Decision { accepted: Accepted::Coding, coding: chosen.coding })
        }
    }
}

/// The weight of a coding; 1 for parameters that are no weight, `None` for a weight that is no number.
fn quality(parameters: &[u8]) -> Option<f32> {
    let Some(at) = parameters.iter().position(|b| *b == b'=') else { return Some(1.0) };
    let (name, value) = (parameters.get(..at)?.trim_ascii(), parameters.get(at + 1..)?.trim_ascii());
    if !name.eq_ignore_ascii_case(b"q") {
        return Some(1.0);
    }
    let value: f32 = std::str::from_utf8(value).ok()?.parse().ok()?;
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(accept: &str, candidates: &[(&'static str, bool)]) -> (Accepted, &'static str) {
        let candidate = |(coding, choose_first): &(&'static str, bool)| {
            let types = Types::Listed(Arc::new([]));
            Arc::new(Candidate { coding, types, choose_first: *choose_first })
        };
        let candidates: Vec<_> = candidates.iter().map(candidate).collect();
        let Decision { accepted, coding } = choose(&candidates, None, accept.as_bytes());
        (accepted, coding)
    }

    /// What an earlier one has taken from the request may still be decided between it and a later one.
    #[test]
    fn compressors_are_known_where_a_client_has_asked() {
        let candidate =
            Arc::new(Candidate { coding: "gzip", types: Types::Listed(Arc::new([])), choose_first: false });
        for (asked, known) in [([false, false], 0), ([true, false], 2), ([true, true], 2)] {
            let mut stream = crate::testing::stream("/", &[]);
            asked.into_iter().for_each(|asked| register(&mut stream, &candidate, asked));
            let registered = stream.state::<Registered>(TOGETHER);
            assert_eq!(registered.map_or(0, |registered| registered.candidates.len()), known, "{asked:?}");
        }
    }

    #[test]
    fn the_coding_of_the_highest_weight_is_chosen() {
        use Accepted::*;
        let (gzip, both) = (&[("gzip", false)][..], &[("br", false), ("gzip", false)][..]);
        for (accept, candidates, wanted) in [
            ("gzip", gzip, (Coding, "gzip")),
            ("deflate, gzip;q=0.5", gzip, (Coding, "gzip")),
            ("deflate", gzip, (Nothing, "")),
            ("", gzip, (Nothing, "")),
            ("*", gzip, (Wildcard, "gzip")),
            ("*;q=0, gzip", gzip, (Coding, "gzip")),
            ("gzip;q=0, *", gzip, (Nothing, "")),
            ("gzip;q=x, *;q=0.1", gzip, (Wildcard, "gzip")),
            ("identity", gzip, (Identity, "")),
            ("identity;q=0.5, gzip", gzip, (Coding, "gzip")),
            ("identity, gzip;q=0.5", gzip, (Identity, "")),
            ("gzip;q=0", gzip, (Nothing, "")),
            ("gzip, br", both, (Coding, "gzip")),
            ("gzip;q=0.5, br", both, (Coding, "br")),
            ("*", both, (Wildcard, "br")),
            ("br;q=0, *", both, (Wildcard, "gzip")),
            ("gzip, br", &[("gzip", false), ("br", true)], (Coding, "br")),
            ("GZIP", gzip, (Nothing, "")),
        ] {
            assert_eq!(chosen(accept, candidates), wanted, "{accept}");
        }
    }
}
