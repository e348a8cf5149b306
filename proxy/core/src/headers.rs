//! Header fields of a message in one arena.
//!
//! A message's fields live in one byte buffer as the lines of HTTP/1, and a field is a few numbers into it. Parsing
//! a head therefore allocates nothing once a connection has served its first request, lines that nobody touched
//! are written out as they lie, well-known names are compared by one byte, and the original spelling of a name
//! stays available to the profiles that keep it (nginx does, Envoy lower-cases).
//!
//! Bytes that no field needs any more are counted and squeezed out before the arena grows: it is never larger
//! than twice what its fields hold (plus [`FIRST`] bytes), whatever is done to them and how often.

mod field;
pub mod fuzz;
mod join;
mod known;
mod name;
mod plain;
mod rules;
mod scan;
#[cfg(test)]
mod tests;

pub use field::Line;
pub use known::{Known, KnownSet};
pub use name::{HeaderName, InvalidHeaderName, Key, is_token};
pub use plain::{Lines, PlainLine};
pub use rules::{HeaderFault, HeaderRules, Underscores, check_unique};
pub use scan::{
    control, find, find_either, has_blank, is_clean, is_plain_authority, is_plain_name, is_visible,
};

use bytes::Bytes;
use field::{COLON, END, Field, SOUND, UPPER, flags};
use std::fmt;

/// Bytes that a block allocates with its first field.
pub const FIRST: usize = 512;
/// Bytes of names and values that a cleared block keeps for the next message. A request's context has four
/// blocks, and stays below 64 KiB while its connection is idle.
pub const KEPT_BYTES: usize = 8 * 1024;
/// Fields that a cleared block keeps room for.
pub const KEPT_FIELDS: usize = 256;

/// The header fields of one message, in order. Names compare without regard to case.
#[derive(Clone, Default)]
pub struct Headers {
    buf: Vec<u8>,
    fields: Vec<Field>,
    /// Bytes of `buf` that no field points to.
    dead: u32,
    /// One well-known name may be there twice.
    repeated: bool,
    /// A bit for each well-known name that is there or was, a few share one: most names that are asked for never were.
    seen: u64,
    /// Names go out as they are spelled, whatever the side is configured to that they go out of.
    spelled: bool,
    /// Names that codecs take out and write themselves, as the peer spelled them; for Envoy's `preserve_case`.
    spellings: Option<Box<Spellings>>,
}

type Spellings = Vec<(Known, Box<[u8]>)>;

impl Headers {
    /// An empty block; allocates with the first field.
    pub const fn new() -> Headers {
        Headers {
            buf: Vec::new(),
            fields: Vec::new(),
            dead: 0,
            repeated: false,
            seen: 0,
            spelled: false,
            spellings: None,
        }
    }

    /// Removes every field and keeps the memory for the next message, up to [`KEPT_BYTES`] and
    /// [`KEPT_FIELDS`].
    pub fn clear(&mut self) {
        // Nothing was ever put in, or it was cleared already.
        if self.buf.is_empty() && self.fields.is_empty() && !self.spelled && self.spellings.is_none() {
            return;
        }
        self.buf.clear();
        self.fields.clear();
        self.dead = 0;
        self.repeated = false;
        self.seen = 0;
        self.spelled = false;
        self.spellings = None;
        if self.buf.capacity() > KEPT_BYTES {
            self.buf.shrink_to(KEPT_BYTES);
        }
        if self.fields.capacity() > KEPT_FIELDS {
            self.fields.shrink_to(KEPT_FIELDS);
        }
    }

    /// The number of fields, a repeated name counted every time.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The bytes of all names and values, with Envoy's four more a field for `: ` and the line end.
    pub fn wire_len(&self) -> usize {
        self.live()
    }

    /// Bytes of memory that the block holds, used or not.
    pub fn memory(&self) -> usize {
        self.buf.capacity() + self.fields.capacity() * size_of::<Field>()
    }

    /// Bytes that fields point to.
    #[inline]
    fn live(&self) -> usize {
        self.buf.len() - self.dead as usize
    }

    /// Whether one of these well-known names may be there: false is certain.
    #[inline]
    pub fn may_have(&self, names: &KnownSet) -> bool {
        self.seen & names.folded() != 0
    }

    /// The place of the first field of that name.
    #[inline]
    fn position(&self, key: impl Key) -> Option<usize> {
        match key.known() {
            Some(known) if self.seen & known.folded() == 0 => None,
            Some(known) => self.fields.iter().position(|f| f.known == known.0),
            None => self.fields.iter().position(|f| f.is(key, &self.buf)),
        }
    }

    /// The first value of `key`.
    #[inline]
    pub fn get(&self, key: impl Key) -> Option<&[u8]> {
        self.position(key).map(|at| self.fields[at].value(&self.buf))
    }

    /// The first value of `key`, if it is UTF-8.
    pub fn get_str(&self, key: impl Key) -> Option<&str> {
        self.get(key).and_then(|v| std::str::from_utf8(v).ok())
    }

    /// Whether `key` is there, with any value.
    #[inline]
    pub fn contains(&self, key: impl Key) -> bool {
        self.position(key).is_some()
    }

    /// Every value of `key`, in order.
    pub fn get_all<'a>(&'a self, key: impl Key + 'a) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.fields.iter().filter(move |f| f.is(key, &self.buf)).map(|f| f.value(&self.buf))
    }

    /// Every field in order: the name as it is spelled, and the value.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|f| (f.name(&self.buf), f.value(&self.buf)))
    }

    /// Every field in order with the id of a well-known name.
    pub fn iter_known(&self) -> impl Iterator<Item = (Option<Known>, &[u8], &[u8])> {
        self.fields.iter().map(|f| (f.known(), f.name(&self.buf), f.value(&self.buf)))
    }

    /// [`Headers::iter_known`], each value a part of one shared copy of all bytes: for libraries that keep values.
    pub fn iter_shared(&self) -> impl Iterator<Item = (Option<Known>, &[u8], Bytes)> {
        let shared = Bytes::copy_from_slice(&self.buf);
        self.fields.iter().map(move |f| {
            let value = shared.slice(f.value_at()..f.value_at() + f.value_len as usize);
            (f.known(), f.name(&self.buf), value)
        })
    }

    /// Every field in order as a line of HTTP/1; [`Headers::wire`] has the bytes. Lines that lie side by side can
    /// be copied together.
    pub fn lines(&self) -> impl Iterator<Item = Line> {
        self.fields.iter().map(|f| Line {
            known: f.known(),
            name_len: f.name_len as usize,
            at: f.place(),
            upper: f.flags & UPPER != 0,
            sound: f.flags & SOUND != 0,
        })
    }

    /// Whether each field can be written: codecs leave out what can't.
    pub fn is_sound(&self) -> bool {
        self.fields.iter().all(|field| field.flags & SOUND != 0)
    }

    /// The bytes that [`Line::at`] is about; there may be others among them.
    pub fn wire(&self) -> &[u8] {
        &self.buf
    }

    /// Adds a field as it came off the wire, its name in any case and kept as spelled.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let known = Known::find(name);
        self.push_unchecked(known.map_or(0, |k| k.0), name, scan::has_upper(name), value);
    }

    /// [`Headers::push`] for a codec, which has looked `known` up and checked the field already: `known` must be what
    /// [`Known::find`] says of `name`, the name a token, and the value without CR, LF and NUL.
    #[inline]
    pub fn push_checked(&mut self, known: Option<Known>, name: &[u8], value: &[u8]) {
        self.push_field(known.map_or(0, |k| k.0), name, value, flags(true, scan::has_upper(name)));
    }

    /// [`Headers::push_checked`], with the name stored in lower case.
    #[inline]
    pub fn push_checked_lower(&mut self, known: Option<Known>, name: &[u8], value: &[u8]) {
        let before = self.fields.len();
        self.push_checked(known, name, value);
        if let Some(field) = self.fields.get(before) {
            let at = field.at as usize;
            self.buf[at..at + name.len()].make_ascii_lowercase();
            self.fields[before].flags &= !UPPER;
        }
    }

    /// Says that names go out as they are spelled: Envoy's `preserve_case`, which belongs to the message that was read
    /// with it and not to the side that writes it (`HeaderMap::setFormatter`).
    pub fn keep_spelling(&mut self) {
        self.spelled = true;
    }

    /// Whether names go out as they are spelled.
    #[inline]
    pub fn keeps_spelling(&self) -> bool {
        self.spelled
    }

    /// Remembers how the peer spelled a name whose field does not stay, the first time.
    pub fn remember_spelling(&mut self, known: Known, name: &[u8]) {
        let spellings = self.spellings.get_or_insert_default();
        if spellings.iter().all(|(other, _)| *other != known) {
            spellings.push((known, name.into()));
        }
    }

    /// How the peer spelled a name that was remembered.
    pub fn spelling(&self, known: Known) -> Option<&[u8]> {
        self.spellings.as_ref()?.iter().find(|(other, _)| *other == known).map(|(_, name)| &**name)
    }

    /// Adds a field after those that are there; an equal name stays a line of its own.
    pub fn append(&mut self, key: impl Key, value: &[u8]) {
        let upper = key.is_upper();
        match key.known() {
            Some(known) if !upper => self.append_known(known, value),
            known => {
                let sound = is_clean(value) && (known.is_some() || key.is_token());
                self.push_field(known.map_or(0, |k| k.0), key.spelled(), value, flags(sound, upper));
            }
        }
    }

    /// The same for a well-known name in lower case, whose line's beginning is there already.
    #[inline]
    fn append_known(&mut self, known: Known, value: &[u8]) {
        let start = known.start();
        self.reserve(start.len() + value.len() + END.len());
        let at = self.buf.len() as u32;
        put(&mut self.buf, start);
        put(&mut self.buf, value);
        put(&mut self.buf, END);
        self.note(known.0);
        let name_len = (start.len() - COLON.len()) as u16;
        let flags = flags(is_clean(value), false);
        self.fields.push(Field { at, value_len: value.len() as u32, name_len, known: known.0, flags });
    }

    fn push_unchecked(&mut self, known: u8, name: &[u8], upper: bool, value: &[u8]) {
        let sound = is_clean(value) && (known != 0 || is_token(name));
        self.push_field(known, name, value, flags(sound, upper));
    }

    /// A name beyond 64 KiB is left out: no codec reads one and no configuration has one.
    #[inline]
    fn push_field(&mut self, known: u8, name: &[u8], value: &[u8], flags: u8) {
        let Ok(name_len) = u16::try_from(name.len()) else { return };
        let field = Field { at: 0, value_len: value.len() as u32, name_len, known, flags };
        self.reserve(field.len());
        let field = Field { at: self.buf.len() as u32, ..field };
        put(&mut self.buf, name);
        put(&mut self.buf, COLON);
        put(&mut self.buf, value);
        put(&mut self.buf, END);
        self.note(known);
        self.fields.push(field);
    }

    /// Takes note of the name of a field that is added.
    #[inline]
    fn note(&mut self, known: u8) {
        if known != 0 {
            let bit = Known(known).folded();
            self.repeated |= self.seen & bit != 0;
            self.seen |= bit;
        }
    }

    /// Makes `value` the only value of `key`, in the place of the first one.
    pub fn set(&mut self, key: impl Key, value: &[u8]) {
        let Some(first) = self.position(key) else {
            return self.append(key, value);
        };
        self.remove_after(first, key);
        self.write_value(first, value);
    }

    /// Removes the fields of that name behind the one at `first`.
    fn remove_after(&mut self, first: usize, key: impl Key) {
        if !self.repeated && key.known().is_some() {
            return;
        }
        let Headers { buf, fields, dead, .. } = self;
        let mut at = 0;
        fields.retain(|f| {
            at += 1;
            let keep = at <= first + 1 || !f.is(key, buf);
            *dead += if keep { 0 } else { f.len() as u32 };
            keep
        });
    }

    /// Gives the field at `at` another value: in the old one's place if it fits, else the whole line behind everything.
    fn write_value(&mut self, at: usize, value: &[u8]) {
        let old = self.fields[at].value_len as usize;
        if value.len() > old {
            self.move_line(at, value.len());
            put(&mut self.buf, value);
            put(&mut self.buf, END);
        } else {
            let from = self.fields[at].value_at();
            let place = &mut self.buf[from..from + value.len() + END.len()];
            let (place, end) = place.split_at_mut(value.len());
            place.copy_from_slice(value);
            end.copy_from_slice(END);
            self.dead += (old - value.len()) as u32;
        }
        let field = &mut self.fields[at];
        field.value_len = value.len() as u32;
        let sound = is_clean(value) && (field.known != 0 || is_token(field.name(&self.buf)));
        field.flags = if sound { field.flags | SOUND } else { field.flags & !SOUND };
    }

    /// Begins the line at `at` anew behind everything, with room for a value of so many bytes, which the caller writes
    /// with its line end.
    fn move_line(&mut self, at: usize, value_len: usize) {
        // Its old value is dead when room is made.
        self.dead += self.fields[at].value_len;
        self.fields[at].value_len = 0;
        self.reserve(self.fields[at].len() + value_len);
        let from = self.fields[at].at as usize;
        let head = from..self.fields[at].value_at();
        self.dead += (head.len() + END.len()) as u32;
        self.fields[at].at = self.buf.len() as u32;
        #[cfg(test)]
        tests::COPIED.set(tests::COPIED.get() + head.len());
        self.buf.extend_from_within(head);
    }

    /// Adds `key` unless it is there already.
    pub fn set_if_absent(&mut self, key: impl Key, value: &[u8]) {
        if !self.contains(key) {
            self.append(key, value);
        }
    }

    /// Removes every field of that name; tells whether there was one.
    pub fn remove(&mut self, key: impl Key) -> bool {
        let Some(first) = self.position(key) else { return false };
        self.remove_after(first, key);
        self.dead += self.fields.remove(first).len() as u32;
        true
    }

    /// Keeps the fields for which `keep(id, name, value)` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(Option<Known>, &[u8], &[u8]) -> bool) {
        let Headers { buf, fields, dead, .. } = self;
        fields.retain(|f| {
            let keep = keep(f.known(), f.name(buf), f.value(buf));
            *dead += if keep { 0 } else { f.len() as u32 };
            keep
        });
    }

    /// Removes the fields that have a well-known name for which `drop` holds.
    pub fn remove_known(&mut self, drop: impl Fn(Known) -> bool) {
        let dropped = |field: &Field| field.known().is_some_and(&drop);
        let Some(first) = self.fields.iter().position(dropped) else { return };
        if !self.fields.get(first + 1..).is_some_and(|rest| rest.iter().any(dropped)) {
            self.dead += self.fields.remove(first).len() as u32;
            return;
        }
        let Headers { fields, dead, .. } = self;
        fields.retain(|f| {
            let keep = !f.known().is_some_and(&drop);
            *dead += if keep { 0 } else { f.len() as u32 };
            keep
        });
    }

    /// Makes room for `more` bytes. Places of fields are not what they were before.
    #[inline]
    fn reserve(&mut self, more: usize) {
        if self.buf.capacity() - self.buf.len() < more {
            self.make_room(more, self.fields.len());
        }
    }

    /// Squeezes dead bytes out if they are worth the copy, else grows by half: what is dead was written once
    /// and is at least a quarter of what is copied, so that all copies together cost a constant a byte. Fields behind the
    /// first `there` have no bytes yet.
    #[cold]
    fn make_room(&mut self, more: usize, there: usize) {
        if self.dead as usize <= self.live() / 4 {
            return grow(&mut self.buf, self.dead, more);
        }
        let mut fresh = Vec::with_capacity(capacity(self.live() + more));
        for field in self.fields.iter_mut().take(there) {
            let at = fresh.len();
            put(&mut fresh, &self.buf[field.at as usize..field.value_at()]);
            put(&mut fresh, field.value(&self.buf));
            put(&mut fresh, END);
            field.at = at as u32;
        }
        self.buf = fresh;
        self.dead = 0;
    }
}

/// Room in an arena for so many bytes.
fn capacity(wanted: usize) -> usize {
    (wanted + wanted / 2).max(FIRST)
}

/// Makes room for `more` bytes behind those that are there, of which some are dead.
fn grow(buf: &mut Vec<u8>, dead: u32, more: usize) {
    let live = buf.len() - dead as usize;
    buf.reserve_exact(capacity(live + more).saturating_sub(live));
}

/// Appends to an arena. Tests count what is written.
#[inline]
fn put(buf: &mut Vec<u8>, bytes: &[u8]) {
    #[cfg(test)]
    tests::COPIED.set(tests::COPIED.get() + bytes.len());
    buf.extend_from_slice(bytes);
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.iter().map(|(n, v)| (String::from_utf8_lossy(n), String::from_utf8_lossy(v))))
            .finish()
    }
}
