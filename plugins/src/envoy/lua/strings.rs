//! Lua's functions of patterns within the bounds of a script.

use super::budget::{Budget, SPENT};
use super::pattern::{Captured, Fault, Matcher};
use super::vm::{MEMORY, NO_MEMORY};
use mlua::{Lua, LuaString, MultiValue, Value};
use std::sync::Arc;

/// What makes a text a pattern for `find`.
const SPECIAL: &[u8] = b"^$*+?.([%-";

/// Puts functions that end with the budget in the place of `string.find`, `match`, `gmatch` and `gsub`.
pub(super) fn bound(lua: &Lua, budget: &Arc<Budget>) -> mlua::Result<()> {
    let host = lua.create_table()?;
    let of = budget.clone();
    let find = move |lua: &Lua, (text, pattern, init, plain): (LuaString, LuaString, Option<f64>, bool)| {
        let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
        if plain || !pattern.iter().any(|byte| SPECIAL.contains(byte)) {
            return plainly(&of, &text, &pattern, init).map_or_else(|fault| told(lua, fault), Ok);
        }
        matched(lua, &of, Matcher::new(&text, &pattern, true, of.left()), begin(&text, init), Wanted::Own)
    };
    host.set("find", lua.create_function(find)?)?;
    let of = budget.clone();
    type Scanned = (LuaString, LuaString, Option<f64>, bool, bool);
    let scan = move |lua: &Lua, (text, pattern, init, anchors, first): Scanned| {
        let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
        let wanted = if first { Wanted::First } else { Wanted::OrWhole };
        matched(lua, &of, Matcher::new(&text, &pattern, anchors, of.left()), begin(&text, init), wanted)
    };
    host.set("scan", lua.create_function(scan)?)?;
    let of = budget.clone();
    let replace =
        move |lua: &Lua, (text, pattern, with, most): (LuaString, LuaString, LuaString, Option<f64>)| {
            let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
            let mut matcher = Matcher::new(&text, &pattern, true, of.left());
            let replaced = replace(&mut matcher, text.len(), &with.as_bytes(), most);
            of.leave(matcher.left());
            match replaced {
                Ok((bytes, count)) => Ok(MultiValue::from_iter([
                    Value::Nil,
                    Value::String(lua.create_string(bytes)?),
                    Value::Number(count as f64),
                ])),
                Err(fault) => told(lua, fault),
            }
        };
    host.set("replace", lua.create_function(replace)?)?;
    lua.load(include_str!("patterns.lua")).set_name("=patterns").call(host)
}

/// Where `init` is in a text, from 0; `None` behind its end.
fn begin(text: &[u8], init: Option<f64>) -> Option<usize> {
    let init = init.map_or(1, |init| init as i64);
    let from = if init < 0 { (text.len() as i64).saturating_add(init).max(0) } else { (init - 1).max(0) };
    usize::try_from(from).ok().filter(|from| *from <= text.len())
}

/// A fault, in the place where none is nil.
fn told(lua: &Lua, fault: Fault) -> mlua::Result<MultiValue> {
    let why = match fault {
        Fault::Pattern(why) => why,
        Fault::Spent => SPENT,
    };
    Ok(MultiValue::from_iter([Value::String(lua.create_string(why)?)]))
}

/// Which captures of a match are given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Those of the pattern.
    Own,
    /// The same, or the match itself for a pattern that has none.
    OrWhole,
    /// The first of these.
    First,
}

/// That there is no match: no fault, and one nil where a script looks.
fn nothing(wanted: Wanted) -> MultiValue {
    std::iter::repeat_n(Value::Nil, if wanted == Wanted::Own { 2 } else { 4 }).collect()
}

/// Looks for a text as it is.
fn plainly(budget: &Budget, text: &[u8], wanted: &[u8], init: Option<f64>) -> Result<MultiValue, Fault> {
    let Some(from) = begin(text, init) else { return Ok(nothing(Wanted::Own)) };
    let rest = text.get(from..).unwrap_or_default();
    let found = memchr::memmem::find(rest, wanted);
    let looked_at = found.unwrap_or(rest.len()) + wanted.len();
    let mut steps = Matcher::new(text, b"", false, budget.left());
    let within = steps.spend_bytes(looked_at);
    budget.leave(steps.left());
    within?;
    Ok(found.map_or_else(
        || nothing(Wanted::Own),
        |found| {
            let (first, last) = (from + found + 1, from + found + wanted.len());
            MultiValue::from_iter([Value::Nil, Value::Number(first as f64), Value::Number(last as f64)])
        },
    ))
}

/// Where a match begins and ends, and its captures.
fn matched(
    lua: &Lua,
    budget: &Budget,
    mut matcher: Matcher<'_>,
    from: Option<usize>,
    wanted: Wanted,
) -> mlua::Result<MultiValue> {
    let Some(from) = from else { return Ok(nothing(wanted)) };
    let found = matcher.find(from);
    let given = match found {
        Ok(Some(at)) => captures(lua, &mut matcher, at, wanted),
        Ok(None) => Ok(Ok(nothing(wanted))),
        Err(fault) => Ok(Err(fault)),
    };
    budget.leave(matcher.left());
    given?.map_or_else(|fault| told(lua, fault), Ok)
}

fn captures(
    lua: &Lua,
    matcher: &mut Matcher<'_>,
    at: (usize, usize),
    wanted: Wanted,
) -> mlua::Result<Result<MultiValue, Fault>> {
    let mut values = vec![Value::Nil, Value::Number((at.0 + 1) as f64), Value::Number(at.1 as f64)];
    let count = match wanted {
        Wanted::Own => matcher.captures(),
        Wanted::OrWhole => matcher.captures().max(1),
        Wanted::First => 1,
    };
    for index in 0..count {
        let capture = matcher.capture(index, at);
        let value = match capture.and_then(|of| matcher.spend_bytes(of.len()).map(|()| of)) {
            Ok(Captured::Text(bytes)) => Value::String(lua.create_string(bytes)?),
            Ok(Captured::Position(position)) => Value::Number(position as f64),
            Err(fault) => return Ok(Err(fault)),
        };
        values.push(value);
    }
    Ok(Ok(MultiValue::from_iter(values)))
}

/// The text with matches replaced, and how many.
fn replace(
    matcher: &mut Matcher<'_>,
    length: usize,
    with: &[u8],
    most: Option<f64>,
) -> Result<(Vec<u8>, u64), Fault> {
    let most = most.unwrap_or(f64::INFINITY);
    let (mut out, mut count, mut at, mut copied) = (Vec::new(), 0_u64, 0, 0);
    while (count as f64) < most && at <= length {
        let Some((start, end)) = matcher.find(at)? else { break };
        count += 1;
        append(matcher, &mut out, matcher.slice(copied, start))?;
        expand(matcher, &mut out, with, (start, end))?;
        copied = end;
        // Behind a match of nothing comes the next byte.
        at = if end > start { end } else { end + 1 };
        if matcher.is_anchored() {
            break;
        }
    }
    append(matcher, &mut out, matcher.slice(copied, length))?;
    Ok((out, count))
}

/// What takes the place of a match: `%0` to `%9` are of it.
fn expand(
    matcher: &mut Matcher<'_>,
    out: &mut Vec<u8>,
    with: &[u8],
    at: (usize, usize),
) -> Result<(), Fault> {
    let mut rest = with;
    while let Some(percent) = memchr::memchr(b'%', rest) {
        let (before, behind) = rest.split_at(percent);
        append(matcher, out, before)?;
        // A text that ends with `%` has the NUL behind it there, as in LuaJIT.
        let letter = behind.get(1).copied().unwrap_or(0);
        match letter {
            b'0' => append(matcher, out, matcher.slice(at.0, at.1))?,
            b'1'..=b'9' => match matcher.capture(usize::from(letter - b'1'), at)? {
                Captured::Text(bytes) => append(matcher, out, bytes)?,
                Captured::Position(position) => append(matcher, out, position.to_string().as_bytes())?,
            },
            other => append(matcher, out, &[other])?,
        }
        rest = behind.get(2..).unwrap_or_default();
    }
    append(matcher, out, rest)
}

/// What a script makes has no more room here than in its machine.
fn append(matcher: &mut Matcher<'_>, out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Fault> {
    matcher.spend_bytes(bytes.len() + super::pattern::AT_ONCE)?;
    if out.len() + bytes.len() > MEMORY {
        return Err(Fault::Pattern(NO_MEMORY));
    }
    out.extend_from_slice(bytes);
    Ok(())
}
