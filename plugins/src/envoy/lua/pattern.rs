//! Lua's patterns within bounds: what LuaJIT matches in C, where no hook ends what goes on for ever.
//!
//! A pattern is read while it is matched, as by LuaJIT: what is wrong with it is an error where matching comes to it, and
//! it takes no memory beside its own.

/// Captures that a pattern may have (`LUA_MAXCAPTURES`).
const MOST_CAPTURES: usize = 32;

/// Items that may wait for those behind them (`LJ_MAX_XLEVEL`).
const DEEPEST: u32 = 200;

/// Bytes that are compared or copied at once for about the time of one step.
pub(super) const AT_ONCE: usize = 16;

/// Why matching ends without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The pattern is none.
    Pattern(&'static str),
    /// The steps are spent.
    Spent,
}

/// What a capture has, of positions in the text.
#[derive(Clone, Copy)]
enum Capture {
    /// It has begun there.
    Open(usize),
    Closed(usize, usize),
    /// `()`: the position itself.
    Position(usize),
}

/// What a capture is to a script.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Captured<'t> {
    Text(&'t [u8]),
    /// From 1.
    Position(usize),
}

impl Captured<'_> {
    /// Bytes that it has.
    pub(super) fn len(&self) -> usize {
        match self {
            Captured::Text(bytes) => bytes.len(),
            Captured::Position(_) => 0,
        }
    }
}

/// What comes after an item.
enum Next {
    /// Another one, at a position of the text and of the pattern.
    Item(usize, usize),
    /// The end of the match, or that there is none.
    End(Option<usize>),
}

/// A pattern that is matched against a text.
pub(super) struct Matcher<'t> {
    text: &'t [u8],
    pattern: &'t [u8],
    anchored: bool,
    captures: [Capture; MOST_CAPTURES],
    /// How many of them there are.
    level: usize,
    depth: u32,
    /// Steps that are left.
    left: u64,
}

impl<'t> Matcher<'t> {
    /// `^` at the beginning of the pattern has a meaning where it is `anchorable`.
    pub(super) fn new(text: &'t [u8], pattern: &'t [u8], anchorable: bool, left: u64) -> Matcher<'t> {
        // A pattern ends with its first NUL: `%z` stands for one.
        let pattern = pattern.split(|byte| *byte == 0).next().unwrap_or_default();
        let anchor = pattern.strip_prefix(b"^").filter(|_| anchorable);
        Matcher {
            text,
            pattern: anchor.unwrap_or(pattern),
            anchored: anchor.is_some(),
            captures: [Capture::Open(0); MOST_CAPTURES],
            level: 0,
            depth: 0,
            left,
        }
    }

    /// Steps that are left; none after [`Fault::Spent`].
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Whether the pattern is for the beginning of the text alone.
    pub(super) fn is_anchored(&self) -> bool {
        self.anchored
    }

    /// Counts bytes that are compared or copied at once.
    pub(super) fn spend_bytes(&mut self, bytes: usize) -> Result<(), Fault> {
        self.spend(bytes / AT_ONCE)
    }

    fn spend(&mut self, steps: usize) -> Result<(), Fault> {
        self.left = self.left.saturating_sub(steps as u64);
        if self.left == 0 { Err(Fault::Spent) } else { Ok(()) }
    }

    /// The first match that begins there or later: where it begins, and where it ends.
    pub(super) fn find(&mut self, from: usize) -> Result<Option<(usize, usize)>, Fault> {
        for start in from..=self.text.len() {
            (self.level, self.depth) = (0, 0);
            if let Some(end) = self.matches(start, 0)? {
                return Ok(Some((start, end)));
            }
            if self.anchored {
                break;
            }
        }
        Ok(None)
    }

    /// How many captures the last match has.
    pub(super) fn captures(&self) -> usize {
        self.level
    }

    /// A capture of the last match, from 0; the first one of a pattern that has none is the match.
    pub(super) fn capture(&self, index: usize, whole: (usize, usize)) -> Result<Captured<'t>, Fault> {
        let found = self.captures.get(index).filter(|_| index < self.level);
        let (start, end) = match found {
            Some(Capture::Closed(start, end)) => (*start, *end),
            Some(Capture::Position(at)) => return Ok(Captured::Position(at + 1)),
            Some(Capture::Open(_)) => return Err(Fault::Pattern("unfinished capture")),
            None if index == 0 => whole,
            None => return Err(Fault::Pattern("invalid capture index")),
        };
        Ok(Captured::Text(self.slice(start, end)))
    }

    pub(super) fn slice(&self, start: usize, end: usize) -> &'t [u8] {
        self.text.get(start..end).unwrap_or_default()
    }

    /// Where a match of the pattern from an item on ends that begins at a position.
    fn matches(&mut self, mut at: usize, mut item: usize) -> Result<Option<usize>, Fault> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(Fault::Pattern("pattern too complex"));
        }
        let end = loop {
            self.spend(1)?;
            match self.item(at, item)? {
                Next::Item(next_at, next) => (at, item) = (next_at, next),
                Next::End(end) => break end,
            }
        };
        self.depth -= 1;
        Ok(end)
    }

    fn item(&mut self, at: usize, item: usize) -> Result<Next, Fault> {
        let pattern = self.pattern;
        Ok(match pattern.get(item..).unwrap_or_default() {
            [] => Next::End(Some(at)),
            [b'(', b')', ..] => Next::End(self.begin(Capture::Position(at), at, item + 2)?),
            [b'(', ..] => Next::End(self.begin(Capture::Open(at), at, item + 1)?),
            [b')', ..] => Next::End(self.close(at, item + 1)?),
            [b'$'] => Next::End((at == self.text.len()).then_some(at)),
            [b'%', b'b', open, close, ..] => match self.balanced(at, *open, *close)? {
                Some(end) => Next::Item(end, item + 4),
                None => Next::End(None),
            },
            [b'%', b'b', ..] => return Err(Fault::Pattern("unbalanced pattern")),
            [b'%', b'f', b'[', ..] => {
                let end = self.end_of(item + 2)?;
                let set = pattern.get(item + 2..end).unwrap_or_default();
                let before = at.checked_sub(1).and_then(|before| self.text.get(before)).copied();
                let here = self.text.get(at).copied();
                match !accepts(set, before.unwrap_or(0)) && accepts(set, here.unwrap_or(0)) {
                    true => Next::Item(at, end),
                    false => Next::End(None),
                }
            }
            [b'%', b'f', ..] => return Err(Fault::Pattern("missing '[' after '%f' in pattern")),
            [b'%', digit @ b'0'..=b'9', ..] => match self.again(at, *digit)? {
                Some(end) => Next::Item(end, item + 2),
                None => Next::End(None),
            },
            _ => self.repeated(at, item)?,
        })
    }

    /// One character class, and how often it may come.
    fn repeated(&mut self, at: usize, item: usize) -> Result<Next, Fault> {
        let end = self.end_of(item)?;
        let class = self.pattern.get(item..end).unwrap_or_default();
        let is_one = self.is_one(at, class)?;
        Ok(match self.pattern.get(end) {
            Some(b'?') => match if is_one { self.matches(at + 1, end + 1)? } else { None } {
                Some(found) => Next::End(Some(found)),
                None => Next::Item(at, end + 1),
            },
            Some(b'*') => Next::End(self.longest(at, class, end + 1)?),
            Some(b'+') if is_one => Next::End(self.longest(at + 1, class, end + 1)?),
            Some(b'+') => Next::End(None),
            Some(b'-') => Next::End(self.shortest(at, class, end + 1)?),
            _ if is_one => Next::Item(at + 1, end),
            _ => Next::End(None),
        })
    }

    /// As many of a class as there are, or as few less as the items behind it need.
    fn longest(&mut self, at: usize, class: &[u8], behind: usize) -> Result<Option<usize>, Fault> {
        let mut end = at;
        while self.is_one(end, class)? {
            end += 1;
        }
        for end in (at..=end).rev() {
            if let Some(found) = self.matches(end, behind)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// As few of a class as the items behind it allow.
    fn shortest(&mut self, mut at: usize, class: &[u8], behind: usize) -> Result<Option<usize>, Fault> {
        loop {
            if let Some(found) = self.matches(at, behind)? {
                return Ok(Some(found));
            }
            if !self.is_one(at, class)? {
                return Ok(None);
            }
            at += 1;
        }
    }

    fn is_one(&mut self, at: usize, class: &[u8]) -> Result<bool, Fault> {
        self.spend(1 + class.len() / 4)?;
        Ok(self.text.get(at).is_some_and(|byte| accepts(class, *byte)))
    }

    fn begin(&mut self, capture: Capture, at: usize, item: usize) -> Result<Option<usize>, Fault> {
        let Some(place) = self.captures.get_mut(self.level) else {
            return Err(Fault::Pattern("too many captures"));
        };
        *place = capture;
        self.level += 1;
        let end = self.matches(at, item)?;
        if end.is_none() {
            self.level -= 1;
        }
        Ok(end)
    }

    fn close(&mut self, at: usize, item: usize) -> Result<Option<usize>, Fault> {
        let open = self.captures.iter().take(self.level).rposition(|one| matches!(one, Capture::Open(_)));
        let found = open.and_then(|index| Some((index, *self.captures.get(index)?)));
        let Some((index, before @ Capture::Open(start))) = found else {
            return Err(Fault::Pattern("invalid pattern capture"));
        };
        self.set(index, Capture::Closed(start, at));
        let end = self.matches(at, item)?;
        if end.is_none() {
            self.set(index, before);
        }
        Ok(end)
    }

    fn set(&mut self, index: usize, capture: Capture) {
        if let Some(place) = self.captures.get_mut(index) {
            *place = capture;
        }
    }

    /// `%1`: what a capture has, once more.
    fn again(&mut self, at: usize, digit: u8) -> Result<Option<usize>, Fault> {
        let index = usize::from(digit).checked_sub(usize::from(b'1'));
        let found = index.filter(|index| *index < self.level).and_then(|index| self.captures.get(index));
        let (start, end) = match found {
            Some(Capture::Closed(start, end)) => (*start, *end),
            // A position has no text.
            Some(Capture::Position(_)) => return Ok(None),
            Some(Capture::Open(_)) | None => return Err(Fault::Pattern("invalid capture index")),
        };
        self.spend_bytes(end - start)?;
        let here = self.text.get(at..at + (end - start));
        Ok((here == Some(self.slice(start, end))).then_some(at + (end - start)))
    }

    /// `%bxy`: from an opening byte to the closing one of it.
    fn balanced(&mut self, at: usize, open: u8, close: u8) -> Result<Option<usize>, Fault> {
        let text = self.text.get(at..).unwrap_or_default();
        if text.first() != Some(&open) {
            return Ok(None);
        }
        let mut deep = 1_usize;
        for (index, byte) in text.iter().enumerate().skip(1) {
            self.spend(1)?;
            if *byte == close {
                deep -= 1;
                if deep == 0 {
                    return Ok(Some(at + index + 1));
                }
            } else if *byte == open {
                deep += 1;
            }
        }
        Ok(None)
    }

    /// Where the class that begins there ends.
    fn end_of(&self, item: usize) -> Result<usize, Fault> {
        let byte = |at: usize| self.pattern.get(at).copied();
        match byte(item) {
            Some(b'%') if byte(item + 1).is_none() => {
                Err(Fault::Pattern("malformed pattern (ends with '%')"))
            }
            Some(b'%') => Ok(item + 2),
            Some(b'[') => {
                let mut at = if byte(item + 1) == Some(b'^') { item + 2 } else { item + 1 };
                // The first member may be a bracket.
                loop {
                    match byte(at) {
                        None => return Err(Fault::Pattern("malformed pattern (missing ']')")),
                        Some(b'%') if byte(at + 1).is_some() => at += 2,
                        Some(_) => at += 1,
                    }
                    if byte(at) == Some(b']') {
                        return Ok(at + 1);
                    }
                }
            }
            _ => Ok(item + 1),
        }
    }
}

/// Whether a class has a byte.
fn accepts(class: &[u8], byte: u8) -> bool {
    match class {
        [b'.'] => true,
        [b'%', letter] => is_of(byte, *letter),
        [b'[', b'^', set @ .., b']'] => !is_in(byte, set),
        [b'[', set @ .., b']'] => is_in(byte, set),
        one => one == [byte],
    }
}

fn is_in(byte: u8, mut set: &[u8]) -> bool {
    loop {
        let (found, rest) = match set {
            [] => return false,
            [b'%', letter, rest @ ..] => (is_of(byte, *letter), rest),
            [low, b'-', high, rest @ ..] => ((*low..=*high).contains(&byte), rest),
            [one, rest @ ..] => (*one == byte, rest),
        };
        if found {
            return true;
        }
        set = rest;
    }
}

/// `%a` and its likes; a capital letter is for all others.
fn is_of(byte: u8, letter: u8) -> bool {
    let found = match letter.to_ascii_lowercase() {
        b'a' => byte.is_ascii_alphabetic(),
        b'c' => byte.is_ascii_control(),
        b'd' => byte.is_ascii_digit(),
        b'g' => byte.is_ascii_graphic(),
        b'l' => byte.is_ascii_lowercase(),
        b'p' => byte.is_ascii_punctuation(),
        b's' => matches!(byte, b'\t'..=b'\r' | b' '),
        b'u' => byte.is_ascii_uppercase(),
        b'w' => byte.is_ascii_alphanumeric(),
        b'x' => byte.is_ascii_hexdigit(),
        b'z' => byte == 0,
        _ => return byte == letter,
    };
    found == letter.is_ascii_lowercase()
}
