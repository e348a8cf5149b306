//! What can be told of an expression without compiling it.
//!
//! Most route regexes are literals, segments (`[^/]+`, `\d+`) and a `.*` at the end. Those are matched byte by
//! byte here, exactly; of the others the literal they begin with and one they can't do without are known, so
//! that most texts are turned away before an automaton is built.

use regex_syntax::hir::{Class, Hir, HirKind, Look};

/// Steps an expression may have; longer ones are better left to an automaton.
const MAX_STEPS: usize = 16;

/// A part of an expression that can be matched from left to right without ever going back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Literal(Box<[u8]>),
    /// `min` to `max` bytes of a set, as many as there are.
    Set {
        set: Box<ByteSet>,
        min: u32,
        max: u32,
    },
    /// Any bytes but line feeds, as many as there are.
    Line {
        min: u32,
    },
    /// The end, or these steps up to the end. Always last.
    Tail(Box<[Step]>),
}

/// A set of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ByteSet([u64; 4]);

/// What is known of an expression.
#[derive(Debug, Default)]
pub(super) struct Shape {
    /// The whole expression, anchored at both ends.
    pub(super) steps: Option<Box<[Step]>>,
    /// What every match begins with.
    pub(super) prefix: Box<[u8]>,
    /// What every match holds somewhere.
    pub(super) required: Box<[u8]>,
    /// The whole expression is `.*LITERAL.*`, anchored at both ends; the literal is what is required.
    pub(super) is_within: bool,
}

impl Shape {
    /// `full` expressions are anchored at both ends.
    pub(super) fn of(hir: &Hir, full: bool) -> Shape {
        let mut steps = Vec::new();
        let is_flat = full && flatten(hir, true, true, &mut steps).is_some();
        if let ([Step::Line { min: 0 }, Step::Literal(text), Step::Line { min: 0 }], true) =
            (&*steps, is_flat)
            && !text.contains(&b'\n')
        {
            return Shape { required: text.clone(), is_within: true, ..Shape::default() };
        }
        if is_flat && is_deterministic(&steps) {
            let prefix = match steps.first() {
                Some(Step::Literal(text)) => text.clone(),
                _ => Box::default(),
            };
            return Shape {
                steps: Some(steps.into()),
                prefix,
                required: required(hir).into(),
                is_within: false,
            };
        }
        let mut prefix = Vec::new();
        if full {
            leading(hir, &mut prefix);
        }
        Shape { steps: None, prefix: prefix.into(), required: required(hir).into(), is_within: false }
    }
}

impl ByteSet {
    const NONE: ByteSet = ByteSet([0; 4]);

    fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }

    #[inline]
    fn contains(&self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] & (1 << (byte & 63)) != 0
    }

    fn meets(&self, other: &ByteSet) -> bool {
        self.0.iter().zip(other.0).any(|(a, b)| a & b != 0)
    }

    fn add(&mut self, other: &ByteSet) {
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a |= b);
    }

    fn one(byte: u8) -> ByteSet {
        let mut set = ByteSet::NONE;
        set.insert(byte);
        set
    }

    /// Every byte but the line feed: `.`
    fn line() -> ByteSet {
        let mut set = ByteSet([u64::MAX; 4]);
        set.0[0] &= !(1 << b'\n');
        set
    }
}

/// Whether the text is one match of the steps.
pub(super) fn is_match(steps: &[Step], mut text: &[u8]) -> bool {
    for step in steps {
        let taken = match step {
            Step::Literal(literal) if text.starts_with(literal) => literal.len(),
            Step::Literal(_) => return false,
            Step::Set { set, min, max } => {
                let limit = text.len().min(*max as usize);
                let taken = text.iter().take(limit).take_while(|b| set.contains(**b)).count();
                if taken < *min as usize {
                    return false;
                }
                taken
            }
            Step::Line { min } => {
                let taken = memchr::memchr(b'\n', text).unwrap_or(text.len());
                if taken < *min as usize {
                    return false;
                }
                taken
            }
            Step::Tail(rest) => return text.is_empty() || is_match(rest, text),
        };
        text = text.get(taken..).unwrap_or_default();
    }
    text.is_empty()
}

/// Writes the expression as steps; `None` when it has a part that is none. `first` and `last` tell whether
/// the expression stands at the beginning and at the end of the whole.
fn flatten(hir: &Hir, first: bool, last: bool, out: &mut Vec<Step>) -> Option<()> {
    match hir.kind() {
        HirKind::Empty => {}
        HirKind::Literal(literal) => push_literal(&literal.0, out),
        HirKind::Class(class) => {
            let set = byte_set(class)?;
            push_set(set, 1, 1, out);
        }
        HirKind::Look(Look::Start) if first && out.is_empty() => {}
        HirKind::Look(Look::End) if last => {}
        HirKind::Look(_) | HirKind::Alternation(_) => return None,
        HirKind::Capture(group) => flatten(&group.sub, first, last, out)?,
        HirKind::Concat(parts) => {
            for (i, part) in parts.iter().enumerate() {
                // A look at the end may follow what is last.
                let end = parts.iter().skip(i + 1).all(|p| matches!(p.kind(), HirKind::Look(Look::End)));
                flatten(part, first && i == 0, last && end, out)?;
            }
        }
        HirKind::Repetition(repetition) => {
            let max = repetition.max.unwrap_or(u32::MAX);
            match single(&repetition.sub) {
                Some(set) => push_set(set, repetition.min, max, out),
                None if last && repetition.min == 0 && max == 1 => {
                    let mut rest = Vec::new();
                    flatten(&repetition.sub, false, true, &mut rest)?;
                    // An empty rest could be the end too, and then the end would not decide.
                    if !matches!(rest.first(), Some(Step::Literal(_))) {
                        return None;
                    }
                    out.push(Step::Tail(rest.into()));
                }
                None => return None,
            }
        }
    }
    (out.len() <= MAX_STEPS).then_some(())
}

/// The bytes that an expression of exactly one byte stands for.
fn single(hir: &Hir) -> Option<ByteSet> {
    match hir.kind() {
        HirKind::Literal(literal) => match &literal.0[..] {
            [byte] => Some(ByteSet::one(*byte)),
            _ => None,
        },
        HirKind::Class(class) => byte_set(class),
        HirKind::Capture(group) => single(&group.sub),
        _ => None,
    }
}

fn byte_set(class: &Class) -> Option<ByteSet> {
    let Class::Bytes(class) = class else { return None };
    let mut set = ByteSet::NONE;
    for range in class.iter() {
        (range.start()..=range.end()).for_each(|byte| set.insert(byte));
    }
    Some(set)
}

fn push_literal(text: &[u8], out: &mut Vec<Step>) {
    match out.last_mut() {
        Some(Step::Literal(before)) => *before = [before, text].concat().into(),
        _ => out.push(Step::Literal(text.into())),
    }
}

fn push_set(set: ByteSet, min: u32, max: u32, out: &mut Vec<Step>) {
    if set == ByteSet::line() && max == u32::MAX {
        out.push(Step::Line { min });
    } else {
        out.push(Step::Set { set: Box::new(set), min, max });
    }
}

/// Whether taking as much as there is never takes what a later step needs: what may follow a step of
/// variable length must begin with other bytes.
fn is_deterministic(steps: &[Step]) -> bool {
    steps.iter().enumerate().all(|(i, step)| {
        let set = match step {
            Step::Set { set, min, max } if min != max => **set,
            Step::Line { .. } => ByteSet::line(),
            Step::Tail(rest) => return is_deterministic(rest),
            _ => return true,
        };
        !first_bytes(steps.get(i + 1..).unwrap_or_default()).meets(&set)
    })
}

/// The bytes that the steps may begin with.
fn first_bytes(steps: &[Step]) -> ByteSet {
    let mut first = ByteSet::NONE;
    for step in steps {
        match step {
            Step::Literal(text) => {
                first.add(&text.first().map_or(ByteSet::NONE, |b| ByteSet::one(*b)));
                return first;
            }
            Step::Set { set, min, .. } => {
                first.add(set);
                if *min > 0 {
                    return first;
                }
            }
            Step::Line { min } => {
                first.add(&ByteSet::line());
                if *min > 0 {
                    return first;
                }
            }
            Step::Tail(rest) => first.add(&first_bytes(rest)),
        }
    }
    first
}

/// Appends the literal that every match begins with; tells whether that was the whole expression.
fn leading(hir: &Hir, out: &mut Vec<u8>) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(Look::Start) => true,
        HirKind::Literal(literal) => {
            out.extend_from_slice(&literal.0);
            true
        }
        HirKind::Capture(group) => leading(&group.sub, out),
        HirKind::Concat(parts) => parts.iter().all(|part| leading(part, out)),
        HirKind::Repetition(repetition) if repetition.min > 0 => {
            leading(&repetition.sub, out);
            false
        }
        HirKind::Alternation(parts) => {
            let mut common: Option<Vec<u8>> = None;
            for part in parts {
                let mut own = Vec::new();
                leading(part, &mut own);
                common = Some(match common {
                    None => own,
                    Some(before) => {
                        before.iter().zip(&own).take_while(|(a, b)| a == b).map(|(a, _)| *a).collect()
                    }
                });
            }
            out.extend(common.unwrap_or_default());
            false
        }
        _ => false,
    }
}

/// The longest literal that every match holds.
fn required(hir: &Hir) -> &[u8] {
    match hir.kind() {
        HirKind::Literal(literal) => &literal.0,
        HirKind::Capture(group) => required(&group.sub),
        HirKind::Repetition(repetition) if repetition.min > 0 => required(&repetition.sub),
        HirKind::Concat(parts) => parts.iter().map(required).max_by_key(|l| l.len()).unwrap_or_default(),
        _ => &[],
    }
}
