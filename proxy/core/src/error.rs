//! Errors of configuration: where, which resource, which field, and why.

use std::fmt;

/// Longest reason, field or name of a resource in an error, in bytes. Configuration may hold values of megabytes,
/// and errors go into logs.
pub const MAX_SHOWN: usize = 1024;

/// How many faults an error may hold; what is found beyond them is not kept.
pub const MAX_FAULTS: usize = 100;

/// A place in a configuration text. Both numbers begin with 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Place {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl Place {
    /// A place from its 1-based line and column.
    pub fn new(line: u32, column: u32) -> Self {
        Place { line, column }
    }

    /// The place behind `before`, which is what a text begins with.
    pub fn behind(before: &str) -> Self {
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.chars().rev().take_while(|char| *char != '\n').count() + 1;
        let number = |count| u32::try_from(count).unwrap_or(u32::MAX);
        Place::new(number(line), number(column))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// What sort of fault it is, for who does more than tell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FaultKind {
    /// What is written is not right.
    #[default]
    Wrong,
    /// It names a plugin that there is none of.
    UnknownPlugin,
    /// It needs a variable of the environment that is not set.
    UnsetVariable,
}

/// A piece of configuration that is refused.
///
/// Shown as `file:line:column: resource: field: reason`; parts that are not known are left out. The
/// parts are filled on the way up: the one who finds the fault knows the reason, its callers know the
/// field's path, then the resource, then the file.
///
/// It may hold further faults that were found with it ([`collect`], [`ConfigError::and`]); the parts are filled for all
/// of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigError {
    /// Name of the file or source, as the user wrote it.
    pub file: Option<String>,
    /// Where in that text the faulty value or key stands.
    pub place: Option<Place>,
    /// The resource as its users name it: `listener "ingress"`, `route "r1"`.
    pub resource: Option<String>,
    /// Path of the field inside the resource or document: `static_resources.listeners[0].name`.
    pub field: Option<String>,
    /// What is wrong, as a phrase without a full stop.
    pub reason: String,
    /// What sort of fault it is.
    pub kind: FaultKind,
    /// The next of the faults that were found together.
    pub also: Option<Box<ConfigError>>,
}

impl ConfigError {
    /// An error of which only the reason is known yet.
    pub fn new(reason: impl Into<String>) -> Self {
        ConfigError { reason: cut(reason.into()), ..ConfigError::default() }
    }

    /// The text that a file holds: UTF-8, or UTF-16 that begins with a byte order mark, as yaml-cpp (Envoy) and libyaml
    /// (APISIX) read it and as editors and shells of Windows write it.
    ///
    /// # Errors
    /// Where it is no UTF-8, or that it is no UTF-16.
    pub fn utf8(bytes: Vec<u8>) -> Result<String, Self> {
        let unit: fn([u8; 2]) -> u16 = match bytes.get(..2) {
            Some([0xff, 0xfe]) => u16::from_le_bytes,
            Some([0xfe, 0xff]) => u16::from_be_bytes,
            _ => return Self::only_utf8(bytes),
        };
        let (pairs, odd) = bytes.as_chunks::<2>();
        let text = String::from_utf16(&pairs.iter().map(|pair| unit(*pair)).collect::<Vec<_>>());
        let text = text.map(|text| text.trim_start_matches('\u{feff}').to_owned());
        text.ok()
            .filter(|_| odd.is_empty())
            .ok_or_else(|| ConfigError::new("not UTF-16, as its byte order mark says"))
    }

    fn only_utf8(bytes: Vec<u8>) -> Result<String, Self> {
        String::from_utf8(bytes).map_err(|error| {
            let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
            ConfigError::new("not UTF-8 from here").at(Place::behind(&String::from_utf8_lossy(valid)))
        })
    }

    /// The same fault as one of this sort.
    #[must_use]
    pub fn of_kind(self, kind: FaultKind) -> Self {
        ConfigError { kind, ..self }
    }

    /// The error of one field: [`ConfigError::new`] and [`ConfigError::in_key`] in one.
    pub fn field(field: &str, reason: impl Into<String>) -> Self {
        ConfigError::new(reason).in_key(field)
    }

    /// Puts a key before the path of the field: `b.c` in key `a` is `a.b.c`.
    #[must_use]
    pub fn in_key(self, key: &str) -> Self {
        self.each(|fault| {
            fault.field = Some(cut(match fault.field.take() {
                None => key.to_owned(),
                Some(path) if path.starts_with('[') => format!("{key}{path}"),
                Some(path) => format!("{key}.{path}"),
            }));
        })
    }

    /// Puts a list position before the path of the field: `b` at index 2 is `[2].b`.
    #[must_use]
    pub fn in_index(self, index: usize) -> Self {
        self.in_key(&format!("[{index}]"))
    }

    /// Sets the place unless a deeper one is known already.
    #[must_use]
    pub fn at(self, place: Place) -> Self {
        self.each(|fault| {
            fault.place.get_or_insert(place);
        })
    }

    /// Sets the place of each fault that has none, by the path of its field; an empty one is the whole.
    #[must_use]
    pub fn placed(self, place: impl Fn(&str) -> Place) -> Self {
        self.each(|fault| {
            let at = || place(fault.field.as_deref().unwrap_or_default());
            fault.place = fault.place.or_else(|| Some(at()));
        })
    }

    /// Sets the resource unless a deeper one is known already.
    #[must_use]
    pub fn in_resource(self, resource: impl Into<String>) -> Self {
        let resource = cut(resource.into());
        self.each(|fault| {
            fault.resource.get_or_insert_with(|| resource.clone());
        })
    }

    /// Sets the file unless it is known already.
    #[must_use]
    pub fn in_file(self, file: impl Into<String>) -> Self {
        let file = file.into();
        self.each(|fault| {
            fault.file.get_or_insert_with(|| file.clone());
        })
    }

    /// Adds a fault that was found beside this one, unless there are [`MAX_FAULTS`] already.
    #[must_use]
    pub fn and(mut self, other: ConfigError) -> Self {
        let (mut slot, mut count) = (&mut self.also, 1);
        while let Some(next) = slot {
            slot = &mut next.also;
            count += 1;
        }
        if count < MAX_FAULTS {
            *slot = Some(Box::new(other));
        }
        self
    }

    /// All faults, each alone.
    pub fn into_all(self) -> Vec<ConfigError> {
        let mut next = Some(Box::new(self));
        let mut all = Vec::new();
        while let Some(mut fault) = next {
            next = fault.also.take();
            all.push(*fault);
        }
        all.truncate(MAX_FAULTS);
        all
    }

    /// Renames fields: who compiles a part for several users has names of its own, and each user writes others.
    #[must_use]
    pub fn renamed(self, rename: impl Fn(&str) -> String) -> Self {
        self.each(|fault| fault.field = fault.field.take().map(|field| cut(rename(&field))))
    }

    /// Rewrites the reason of each fault: who speaks for another program has that one's words.
    #[must_use]
    pub fn reworded(self, words: impl Fn(&str) -> String) -> Self {
        self.each(|fault| fault.reason = cut(words(&fault.reason)))
    }

    fn each(mut self, change: impl Fn(&mut ConfigError)) -> Self {
        let mut next = Some(&mut self);
        while let Some(fault) = next {
            change(fault);
            next = fault.also.as_deref_mut();
        }
        self
    }

    /// The error of a key that its message or object does not have, naming the nearest that it has.
    pub fn unknown_key<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        match nearest(key, known) {
            Some(near) => ConfigError::new(format!("unknown field; did you mean \"{near}\"?")),
            None => ConfigError::new("unknown field"),
        }
    }
}

/// All values, or every fault that is among them.
///
/// # Errors
/// The faults of all items, as one error.
pub fn collect<T>(results: impl IntoIterator<Item = Result<T, ConfigError>>) -> Result<Vec<T>, ConfigError> {
    let mut faults = Faults::default();
    let values = results.into_iter().filter_map(|result| faults.keep(result)).collect();
    faults.end(values)
}

/// Notes the faults of one part of a configuration, so that one does not hide the others.
#[derive(Debug, Default)]
pub struct Faults(Option<ConfigError>);

impl Faults {
    /// The value. Where there is a fault it is noted, and a default stands for the value until [`Faults::end`].
    pub fn take<T: Default>(&mut self, result: Result<T, ConfigError>) -> T {
        self.keep(result).unwrap_or_default()
    }

    /// The value if there is one; a fault is noted.
    pub fn keep<T>(&mut self, result: Result<T, ConfigError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(fault) => {
                self.0 = Some(match self.0.take() {
                    Some(found) => found.and(fault),
                    None => fault,
                });
                None
            }
        }
    }

    /// A value that [`Faults::keep`] gave.
    ///
    /// # Errors
    /// All faults, of which one is why there is none.
    pub fn kept<T>(&mut self, value: Option<T>) -> Result<T, ConfigError> {
        value.ok_or_else(|| self.0.take().unwrap_or_default())
    }

    /// What was made of the values, unless a fault was noted.
    ///
    /// # Errors
    /// All of them.
    pub fn end<T>(self, made: T) -> Result<T, ConfigError> {
        self.0.map_or(Ok(made), Err)
    }
}

/// Cuts what is longer than [`MAX_SHOWN`], and says how long it was.
fn cut(text: String) -> String {
    if text.len() <= MAX_SHOWN {
        return text;
    }
    let end = text.floor_char_boundary(MAX_SHOWN);
    format!("{}... ({} bytes)", text.get(..end).unwrap_or_default(), text.len())
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.place) {
            (Some(file), Some(place)) => write!(f, "{file}:{place}: ")?,
            (Some(file), None) => write!(f, "{file}: ")?,
            (None, Some(place)) => write!(f, "{place}: ")?,
            (None, None) => {}
        }
        for part in [&self.resource, &self.field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.reason)?;
        match std::iter::successors(self.also.as_ref(), |fault| fault.also.as_ref()).count() {
            0 => Ok(()),
            1 => f.write_str(" (and 1 more fault)"),
            more => write!(f, " (and {more} more faults)"),
        }
    }
}

impl std::error::Error for ConfigError {}

impl serde::de::Error for ConfigError {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        ConfigError::new(reason.to_string())
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        ConfigError::unknown_key(field, expected.iter().copied())
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let hint = match nearest(variant, expected.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("expected one of {}", expected.join(", ")),
        };
        ConfigError::new(format!("unknown value \"{variant}\"; {hint}"))
    }
}

/// Adds what a caller knows to the error of a [`Result`].
pub trait ConfigContext<T> {
    /// See [`ConfigError::in_key`].
    fn in_key(self, key: &str) -> Result<T, ConfigError>;
    /// See [`ConfigError::in_index`].
    fn in_index(self, index: usize) -> Result<T, ConfigError>;
    /// See [`ConfigError::in_resource`]; `kind "name"`.
    fn in_resource(self, kind: &str, name: &str) -> Result<T, ConfigError>;
}

impl<T> ConfigContext<T> for Result<T, ConfigError> {
    fn in_key(self, key: &str) -> Result<T, ConfigError> {
        self.map_err(|error| error.in_key(key))
    }

    fn in_index(self, index: usize) -> Result<T, ConfigError> {
        self.map_err(|error| error.in_index(index))
    }

    fn in_resource(self, kind: &str, name: &str) -> Result<T, ConfigError> {
        self.map_err(|error| error.in_resource(format!("{kind} \"{name}\"")))
    }
}

/// The candidate nearest to a misspelt name, if one is near enough to be worth a suggestion.
///
/// Near is an edit distance of at most a third of the name's length (at least 1, at most 3), counting
/// an exchange of neighbours as one edit, and upper and lower case as equal.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .filter_map(|candidate| Some((edit_distance(name, candidate, limit)?, candidate)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Optimal string alignment distance of two names, or `None` beyond `limit`.
fn edit_distance(a: &str, b: &str, limit: usize) -> Option<usize> {
    let a: Vec<char> = a.chars().map(|c| c.to_ascii_lowercase()).collect();
    let b: Vec<char> = b.chars().map(|c| c.to_ascii_lowercase()).collect();
    if a.len().abs_diff(b.len()) > limit {
        return None;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(above.len());
        row.push(i + 1);
        for (j, to) in b.iter().enumerate() {
            let mut best = (above[j] + usize::from(from != to)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *from == b[j - 1] && a[i - 1] == *to {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().filter(|distance| *distance <= limit)
}

/// Lines of one change of the configuration that the process's log gets, of each kind.
pub const MOST_LINES: usize = 100;

/// What is said of the faults of a configuration that are left, beside their number.
pub const MORE_FAULTS: &str = "more faults in the configuration; `sixfold validate` lists all of them";

/// Hands what there is to tell of a change to `line`, [`MOST_LINES`] at most, and the number of what is left to `more`, if
/// anything is: a file of a million faults is no log of a million lines.
pub fn tell_most<T>(all: &[T], line: impl FnMut(&T), more: impl FnOnce(usize)) {
    all.iter().take(MOST_LINES).for_each(line);
    if let Some(left @ 1..) = all.len().checked_sub(MOST_LINES) {
        more(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_holds_what_is_known() {
        let error = ConfigError::new("must be positive").in_key("weight").in_index(2).in_key("endpoints");
        assert_eq!(error.to_string(), "endpoints[2].weight: must be positive");
        let error = error.at(Place::new(3, 9)).at(Place::new(1, 1));
        let error = error.in_resource("cluster \"a\"").in_file("envoy.yaml");
        assert_eq!(error.to_string(), "envoy.yaml:3:9: cluster \"a\": endpoints[2].weight: must be positive");
    }

    /// A value of 31 MB was echoed whole, each time the file was read.
    #[test]
    fn long_values_are_cut() {
        let long = "\u{e9}".repeat(1 << 20);
        let error = ConfigError::new(format!("unknown {long}")).in_key(&long).in_resource(long.as_str());
        assert!(error.to_string().len() < 3 * (MAX_SHOWN + 32), "{}", error.to_string().len());
        assert!(error.to_string().ends_with("... (2097160 bytes)"));
        assert_eq!(ConfigError::new("x".repeat(MAX_SHOWN)).reason.len(), MAX_SHOWN);
    }

    /// What PowerShell writes was refused.
    #[test]
    fn utf_16_with_a_byte_order_mark_is_read() {
        for (mark, bytes) in
            [([0xff, 0xfe], u16::to_le_bytes as fn(u16) -> [u8; 2]), ([0xfe, 0xff], u16::to_be_bytes)]
        {
            let text: Vec<u8> =
                mark.into_iter().chain("a: \u{e9}\n".encode_utf16().flat_map(bytes)).collect();
            assert_eq!(ConfigError::utf8(text.clone()).unwrap(), "a: \u{e9}\n");
            assert!(ConfigError::utf8(text[..text.len() - 1].to_vec()).is_err());
        }
        let error = ConfigError::utf8(b"a\nb\xe9".to_vec()).unwrap_err();
        assert_eq!(error.to_string(), "2:2: not UTF-8 from here");
    }

    #[test]
    fn nearest_suggests_small_slips_only() {
        let known = ["filter_chains", "listener_filters", "name", "address"];
        assert_eq!(nearest("filter_chain", known), Some("filter_chains"));
        assert_eq!(nearest("fitler_chains", known), Some("filter_chains"));
        assert_eq!(nearest("Name", known), Some("name"));
        assert_eq!(nearest("adress", known), Some("address"));
        assert_eq!(nearest("socket", known), None);
        assert_eq!(nearest("", known), None);
    }
}
