//! Header field lines: names, values, limits, and what framing needs to know of them.

use sixfold_core::headers::{Headers, Known, KnownSet, Lines, PlainLine, is_clean};

use super::chars;
use super::error::H1Error;
use super::framing::{FRAMING, FramingFields};
use super::options::{H1Options, Profile};

/// Takes field lines into a header block.
#[derive(Debug, Default)]
pub(super) struct FieldSink {
    /// Fields so far, dropped ones and Host counted.
    count: usize,
    /// Bytes of their names and values.
    len: usize,
    /// Host fields so far.
    pub(super) hosts: usize,
    pub(super) framing: FramingFields,
}

impl FieldSink {
    /// Bytes of names and values, and three for each field: so Envoy counts them, which ends one field at least
    /// (source/common/http/http1/codec_impl.cc `completeCurrentHeader`).
    pub(super) fn bytes(&self) -> u64 {
        (self.len + 3 * self.count.max(1)) as u64
    }

    /// Takes one line, already unfolded and without its end. With `authority` the message is a request and
    /// Host goes there instead of into the block.
    pub(super) fn take(
        &mut self,
        line: &[u8],
        headers: &mut Headers,
        authority: Option<&mut Vec<u8>>,
        opts: &H1Options,
    ) -> Result<(), H1Error> {
        self.count += 1;
        opts.rules.check_count(self.count)?;
        // nginx takes a line without a colon for a name with an empty value; no client means that.
        let colon = memchr::memchr(b':', line).ok_or(H1Error::Malformed("header line without a colon"))?;
        let (name, value) = line.split_at_checked(colon).unwrap_or_default();
        let value = trim(value.get(1..).unwrap_or_default(), opts.profile);
        self.len += name.len() + value.len();
        let mut room = [0; chars::SHORT];
        let lower = chars::lower_token(name, &mut room);
        if !check_name(name, lower.is_some(), opts)? {
            return Ok(());
        }
        check_value(value, opts)?;
        let known = lower.map_or_else(|| Known::find(name), Known::find_lower);
        if self.note(known, name, value, headers, authority, opts)? {
            match known {
                _ if opts.keeps_spelling() => headers.push_checked(known, name, value),
                _ => match lower {
                    Some(lower) => headers.push_checked(known, lower, value),
                    None => headers.push_checked_lower(known, name, value),
                },
            }
        }
        Ok(())
    }

    /// Takes the lines at the start of `ahead` that are whole and as nearly all are ([`PlainLine`]); answers their length.
    /// What follows is for [`FieldSink::take`].
    #[inline]
    pub(super) fn take_plain(
        &mut self,
        ahead: &[u8],
        headers: &mut Headers,
        mut authority: Option<&mut Vec<u8>>,
        opts: &H1Options,
    ) -> Result<usize, H1Error> {
        let mut run = Run { at: 0, kept: 0, longest: opts.max_line_bytes.unwrap_or(usize::MAX) };
        loop {
            let from = run.at;
            let mut lines = headers.begin_lines();
            let more = self.take_run(ahead, &mut run, &mut lines, authority.as_deref_mut(), opts);
            lines.finish(ahead.get(from..run.kept).unwrap_or_default(), !opts.keeps_spelling());
            match more? {
                Some((known, name)) => self.remember(known, name, headers, opts),
                None => return Ok(run.at),
            }
        }
    }

    /// Takes lines up to one that does not go into the block, or that has its spelling remembered: then it is told.
    #[inline(always)]
    fn take_run<'a>(
        &mut self,
        ahead: &'a [u8],
        run: &mut Run,
        lines: &mut Lines<'_>,
        mut authority: Option<&mut Vec<u8>>,
        opts: &H1Options,
    ) -> Result<Option<(Known, &'a [u8])>, H1Error> {
        let from = run.at;
        let mut ahead = ahead.get(from..).unwrap_or_default();
        loop {
            run.kept = run.at;
            let rest = ahead;
            // What comes behind most lines is another one, and behind the last the end.
            if rest.first() == Some(&b'\r') {
                return Ok(None);
            }
            let Some(line) = PlainLine::find(rest) else { return Ok(None) };
            let len = line.len();
            if len > run.longest {
                return Ok(None);
            }
            self.count += 1;
            opts.rules.check_count(self.count)?;
            self.len += line.name_len + line.value_len;
            run.at += len;
            ahead = rest.get(len..).unwrap_or_default();
            let noted = line.known.filter(|known| NOTED.contains(*known));
            if let Some(known) = noted {
                let kept = self.note_known(known, line.value(rest), authority.as_deref_mut(), opts)?;
                if kept {
                    lines.add(&line, run.kept - from);
                    run.kept = run.at;
                }
                if !kept || opts.remembers_spelling() {
                    return Ok(Some((known, line.name(rest))));
                }
            } else {
                lines.add(&line, run.kept - from);
            }
        }
    }

    /// Notes what a field that is let pass says of the message; false when it does not go into the block.
    fn note(
        &mut self,
        known: Option<Known>,
        name: &[u8],
        value: &[u8],
        headers: &mut Headers,
        authority: Option<&mut Vec<u8>>,
        opts: &H1Options,
    ) -> Result<bool, H1Error> {
        match known {
            Some(known) if NOTED.contains(known) => {
                self.remember(known, name, headers, opts);
                self.note_known(known, value, authority, opts)
            }
            _ => Ok(true),
        }
    }

    /// Remembers how a name is spelled that the codec writes by itself.
    #[inline]
    fn remember(&self, known: Known, name: &[u8], headers: &mut Headers, opts: &H1Options) {
        if opts.remembers_spelling() && is_remade(known) {
            headers.remember_spelling(known, name);
        }
    }

    fn note_known(
        &mut self,
        known: Known,
        value: &[u8],
        authority: Option<&mut Vec<u8>>,
        opts: &H1Options,
    ) -> Result<bool, H1Error> {
        if let (Known::HOST, Some(authority)) = (known, authority) {
            self.take_host(value, authority, opts)?;
            return Ok(false);
        }
        self.framing.note(known, value);
        Ok(true)
    }

    /// Envoy joins several Host fields as it does every well-known one; nginx refuses the second.
    fn take_host(&mut self, value: &[u8], authority: &mut Vec<u8>, opts: &H1Options) -> Result<(), H1Error> {
        if self.hosts > 0 {
            if opts.strict || opts.profile == Profile::Apisix {
                return Err(H1Error::Malformed("several Host fields"));
            }
            authority.push(b',');
        }
        self.hosts += 1;
        authority.extend_from_slice(value);
        Ok(())
    }
}

/// How far lines have been taken that lie side by side.
struct Run {
    /// Where the next one begins.
    at: usize,
    /// Where those end that go into the block together.
    kept: usize,
    /// Bytes that a line may have.
    longest: usize,
}

/// Fields that say something of the message.
const NOTED: KnownSet = FRAMING.and(&KnownSet::of(&[Known::HOST]));

/// A field that the codec takes out of a message and writes by itself.
fn is_remade(known: Known) -> bool {
    matches!(known, Known::HOST | Known::CONNECTION | Known::CONTENT_LENGTH | Known::TRANSFER_ENCODING)
}

/// Blanks around a value: SP and HTAB for Envoy, SP alone for nginx.
fn trim(value: &[u8], profile: Profile) -> &[u8] {
    let tab = profile == Profile::Envoy;
    let blank = |b: &&u8| **b == b' ' || (tab && **b == b'\t');
    let start = value.iter().take_while(blank).count();
    let value = value.get(start..).unwrap_or_default();
    let end = value.len() - value.iter().rev().take_while(blank).count();
    value.get(..end).unwrap_or_default()
}

/// Whether the field is kept; an error refuses the message. `token` tells that the name is known to be one.
fn check_name(name: &[u8], token: bool, opts: &H1Options) -> Result<bool, H1Error> {
    const BAD: H1Error = H1Error::Malformed("bad header name");
    if name.is_empty() || name.len() > usize::from(u16::MAX) {
        return Err(BAD);
    }
    match opts.profile {
        Profile::Envoy if !token && !chars::token(name) => return Err(BAD),
        // nginx leaves out what it does not take for a name (ignore_invalid_headers).
        Profile::Apisix if !chars::nginx_name(name) => {
            let refused = opts.strict || name.iter().any(|b| chars::blank_or_control(*b));
            return if refused { Err(BAD) } else { Ok(false) };
        }
        _ => {}
    }
    Ok(true)
}

fn check_value(value: &[u8], opts: &H1Options) -> Result<(), H1Error> {
    let ok = match opts.profile {
        Profile::Envoy => chars::envoy_value(value),
        Profile::Apisix => is_clean(value),
    };
    if ok { Ok(()) } else { Err(H1Error::InvalidCharacters) }
}

/// Puts a folded line into one: each line end with the blanks around it becomes one space.
pub(super) fn unfold(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for part in text.split(|b| *b == b'\n') {
        let part = part.strip_suffix(b"\r").unwrap_or(part);
        if !out.is_empty() {
            out.push(b' ');
        }
        out.extend_from_slice(trim(part, Profile::Envoy));
    }
    out
}
