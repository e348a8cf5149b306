//! Values of one name that become one value.

use super::field::{END, Field, SOUND};
use super::{Headers, Key, Known, KnownSet, is_clean, put};

impl Headers {
    /// Adds `value` to the first value of `key` with `separator` between, or adds the field. As in Envoy
    /// (`HeaderMapImpl::appendToHeader`) nothing is added to an empty value but the other, and no empty one.
    ///
    /// The last value of the arena grows in place, any other is copied: for the lines of a peer, which may be
    /// many, there is [`Headers::join_repeated`].
    pub fn join(&mut self, key: impl Key, separator: &[u8], value: &[u8]) {
        let Some(at) = self.position(key) else {
            return self.append(key, value);
        };
        let old = self.fields[at].value_len as usize;
        if old == 0 {
            return self.write_value(at, value);
        }
        if value.is_empty() {
            return;
        }
        let added = separator.len() + value.len();
        self.reserve(added);
        if self.fields[at].place().end == self.buf.len() {
            self.buf.truncate(self.buf.len() - END.len());
        } else {
            let moved = self.fields[at].value(&self.buf).to_vec();
            self.move_line(at, old + added);
            put(&mut self.buf, &moved);
        }
        put(&mut self.buf, separator);
        put(&mut self.buf, value);
        put(&mut self.buf, END);
        let field = &mut self.fields[at];
        field.value_len = (old + added) as u32;
        if !is_clean(separator) || !is_clean(value) {
            field.flags &= !SOUND;
        }
    }

    /// Joins the lines of every repeated well-known name into the first one, where `inline` says so: with
    /// commas, cookies with semicolons. Empty lines count for nothing. Each value is copied once, however many
    /// lines there are.
    pub fn join_repeated(&mut self, inline: impl Fn(Known) -> bool) {
        if !self.repeated {
            return;
        }
        let (mut seen, mut repeated) = (KnownSet::EMPTY, KnownSet::EMPTY);
        for field in &self.fields {
            if field.known != 0 && !seen.add(field.known) && inline(Known(field.known)) {
                repeated.add(field.known);
            }
        }
        if !repeated.is_empty() {
            self.join_all(&repeated);
        }
    }

    /// Writes the whole block anew, so that what was joined leaves nothing behind.
    #[cold]
    fn join_all(&mut self, names: &KnownSet) {
        let Headers { buf, fields, dead, .. } = self;
        let mut lines: Vec<Field> = fields.iter().filter(|f| names.has(f.known)).copied().collect();
        lines.sort_by_key(|f| f.known);
        let mut fresh = Vec::with_capacity(buf.len() - *dead as usize + 2 * lines.len());
        let mut done = KnownSet::EMPTY;
        fields.retain_mut(|f| {
            let place = f.place();
            let at = fresh.len();
            if !names.has(f.known) {
                put(&mut fresh, &buf[place]);
            } else if done.add(f.known) {
                put(&mut fresh, &buf[place.start..f.value_at()]);
                let value = fresh.len();
                let from = lines.partition_point(|line| line.known < f.known);
                let of_name = lines.iter().skip(from).take_while(|line| line.known == f.known);
                let separator: &[u8] = if f.known == Known::COOKIE.0 { b"; " } else { b"," };
                for line in of_name.filter(|line| line.value_len > 0) {
                    if fresh.len() > value {
                        put(&mut fresh, separator);
                    }
                    put(&mut fresh, line.value(buf));
                    f.flags &= line.flags | !SOUND;
                }
                f.value_len = (fresh.len() - value) as u32;
                put(&mut fresh, END);
            } else {
                return false;
            }
            f.at = at as u32;
            true
        });
        *buf = fresh;
        *dead = 0;
    }
}
