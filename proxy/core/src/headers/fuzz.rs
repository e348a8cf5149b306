//! The fuzz target of the arena: the same steps on a block and on a plain list of fields.

use super::{Headers, Known, PlainLine};

/// Names that steps take: well known, joined, of several lines, and unknown ones in two spellings.
const NAMES: [&str; 8] = ["accept", "cookie", "Via", "host", "x-own", "X-OWN", "x-other", "set-cookie"];
/// A block stays below twice what it holds, and this much.
const SLACK: usize = super::FIRST;

/// Name as spelled, and value.
type Model = Vec<(Vec<u8>, Vec<u8>)>;

/// Takes `data` for steps of two bytes and a value, and compares after each.
pub fn arena(mut data: &[u8]) {
    let (mut headers, mut model) = (Headers::new(), Model::new());
    let mut most = 0;
    while let [step, len, rest @ ..] = data {
        let name = NAMES[usize::from(step >> 3) % NAMES.len()];
        // Lengths that make small values common and arenas that grow possible.
        let len = (usize::from(*len) * (1 + usize::from(step >> 6) * 8)).min(rest.len());
        let (value, rest) = rest.split_at(len);
        take_step(*step, name, value, &mut headers, &mut model);
        data = rest;
        compare(&headers, &model);
        most = most.max(headers.live());
        let held = headers.buf.capacity();
        assert!(held <= 2 * (most + len) + SLACK, "{held} bytes for at most {most}");
    }
}

fn take_step(step: u8, name: &str, value: &[u8], headers: &mut Headers, model: &mut Model) {
    let key = &*name.to_ascii_lowercase();
    let is = |field: &(Vec<u8>, Vec<u8>)| field.0.eq_ignore_ascii_case(name.as_bytes());
    match step & 7 {
        0 | 1 => {
            headers.push(name.as_bytes(), value);
            model.push((name.into(), value.into()));
        }
        2 => {
            headers.set(key, value);
            match model.iter().position(is) {
                None => model.push((key.into(), value.into())),
                Some(first) => {
                    model[first].1 = value.into();
                    let mut at = 0;
                    model.retain(|field| {
                        at += 1;
                        at <= first + 1 || !is(field)
                    });
                }
            }
        }
        3 => {
            headers.join(key, b",", value);
            match model.iter_mut().find(|field| is(field)) {
                None => model.push((key.into(), value.into())),
                Some((_, old)) if old.is_empty() => *old = value.into(),
                Some((_, old)) if !value.is_empty() => *old = [old, value].join(&b','),
                Some(_) => {}
            }
        }
        4 => {
            let there = model.iter().any(is);
            assert_eq!(headers.remove(key), there);
            model.retain(|field| !is(field));
        }
        5 => {
            headers.join_repeated(Known::is_inline);
            join_repeated(model);
        }
        6 => {
            let short = |value: &[u8]| value.len() < 8;
            headers.retain(|_, _, value| short(value));
            model.retain(|(_, value)| short(value));
        }
        _ if value.first() == Some(&0) => {
            headers.clear();
            model.clear();
        }
        _ => {
            let known = Known::find(name.as_bytes());
            if !super::is_clean(value) {
                headers.append(key, value);
                model.push((key.into(), value.into()));
                return;
            }
            let line = [name.as_bytes(), b": ", value, b"\r\n", b"the next one: of no interest"].concat();
            match PlainLine::find(&line).filter(|_| step & 8 != 0) {
                None => headers.push_checked_lower(known, name.as_bytes(), value),
                Some(plain) => {
                    let mut lines = headers.begin_lines();
                    lines.add(&plain, 0);
                    lines.finish(&line[..plain.len()], true);
                }
            }
            model.push((key.into(), value.into()));
        }
    }
}

fn join_repeated(model: &mut Model) {
    let mut joined: Model = Vec::new();
    for (name, value) in model.drain(..) {
        let inline = Known::find(&name).is_some_and(Known::is_inline);
        match joined.iter_mut().find(|(known, _)| inline && known.eq_ignore_ascii_case(&name)) {
            None => joined.push((name, value)),
            Some((_, first)) if first.is_empty() => *first = value,
            Some((_, first)) if !value.is_empty() => *first = [&first[..], &value[..]].join(&b','),
            Some(_) => {}
        }
    }
    *model = joined;
}

fn compare(headers: &Headers, model: &Model) {
    let fields = model.iter().map(|(name, value)| (&name[..], &value[..]));
    assert!(headers.iter().eq(fields.clone()), "{headers:?} is not {model:?}");
    assert!(headers.iter_known().all(|(known, name, _)| known == Known::find(name)));
    for known in Known::all() {
        let there = headers.iter_known().any(|(name, _, _)| name == Some(known));
        assert_eq!(headers.contains(known), there, "{known:?}");
    }
    let shared: Vec<_> = headers.iter_shared().map(|(_, _, value)| value).collect();
    assert!(shared.iter().map(|value| &value[..]).eq(fields.clone().map(|(_, value)| value)));
    let wire = fields.clone().map(|(name, value)| [name, b": ", value, b"\r\n"].concat());
    assert!(headers.lines().map(|line| &headers.wire()[line.at]).eq(wire.clone()));
    assert!(
        headers
            .lines()
            .map(|line| line.upper)
            .eq(fields.clone().map(|(name, _)| super::scan::has_upper(name)))
    );
    assert!(headers.lines().map(|line| line.sound).eq(fields.map(|(_, value)| super::is_clean(value))));
    assert_eq!(headers.wire_len(), wire.map(|line| line.len()).sum::<usize>());
}
