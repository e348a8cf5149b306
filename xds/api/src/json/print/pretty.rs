//! JSON with a space a level or without any, written piece by piece, as protobuf's C++ printer lays it out.

use std::fmt::Display;
use std::io::{self, Write};

/// Writes one document. What it is asked to write is to be well formed: keys in objects, items in arrays.
pub struct Pretty<'a> {
    out: &'a mut dyn Write,
    /// For each open object or array, whether anything is in it.
    filled: Vec<bool>,
    /// Neither spaces nor lines.
    compact: bool,
}

impl<'a> Pretty<'a> {
    /// Writes to `out`.
    pub fn new(out: &'a mut dyn Write) -> Pretty<'a> {
        Pretty { out, filled: Vec::new(), compact: false }
    }

    /// Writes to `out` on one line, which nothing ends.
    pub fn compact(out: &'a mut dyn Write) -> Pretty<'a> {
        Pretty { compact: true, ..Pretty::new(out) }
    }

    /// Opens an object.
    ///
    /// # Errors
    /// Those of the writer, as for all of these.
    pub fn open_object(&mut self) -> io::Result<()> {
        self.open("{")
    }

    /// Closes it.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn close_object(&mut self) -> io::Result<()> {
        self.close("}")
    }

    /// Opens an array.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn open_array(&mut self) -> io::Result<()> {
        self.open("[")
    }

    /// Closes it.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn close_array(&mut self) -> io::Result<()> {
        self.close("]")
    }

    /// Begins an entry of an object; its value follows.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn key(&mut self, name: &str) -> io::Result<()> {
        self.item()?;
        self.text(name)?;
        self.out.write_all(if self.compact { b":" } else { b": " })
    }

    /// Begins an item of an array; its value follows.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn item(&mut self) -> io::Result<()> {
        if let Some(filled) = self.filled.last_mut()
            && std::mem::replace(filled, true)
        {
            self.out.write_all(b",")?;
        }
        self.line()
    }

    /// A string. Angle brackets are escaped, so that a page that shows it is none of a stranger's.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(b"\"")?;
        let mut plain = 0;
        for (at, byte) in text.bytes().enumerate() {
            let escaped: &[u8] = match byte {
                b'"' => b"\\\"",
                b'\\' => b"\\\\",
                b'\n' => b"\\n",
                b'\r' => b"\\r",
                b'\t' => b"\\t",
                0x08 => b"\\b",
                0x0c => b"\\f",
                b'<' => b"\\u003c",
                b'>' => b"\\u003e",
                0..=0x1f | 0x7f => b"",
                _ => continue,
            };
            self.out.write_all(text.as_bytes().get(plain..at).unwrap_or_default())?;
            match escaped {
                b"" => write!(self.out, "\\u{byte:04x}")?,
                escaped => self.out.write_all(escaped)?,
            }
            plain = at + 1;
        }
        self.out.write_all(text.as_bytes().get(plain..).unwrap_or_default())?;
        self.out.write_all(b"\"")
    }

    /// A number, `true`, `false` or `null`.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn bare(&mut self, value: impl Display) -> io::Result<()> {
        write!(self.out, "{value}")
    }

    /// A number of 64 bits; a string, if it is none.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn double(&mut self, value: f64) -> io::Result<()> {
        self.number(value, 15, 17, |text| text.parse() == Ok(value))
    }

    /// A number of 32 bits; a string, if it is none.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn float(&mut self, value: f32) -> io::Result<()> {
        self.number(f64::from(value), 6, 9, |text| text.parse() == Ok(value))
    }

    /// With `few` digits, or if those are not `enough` with `many` (`SimpleDtoa`, `SimpleFtoa`).
    fn number(&mut self, value: f64, few: i32, many: i32, enough: impl Fn(&str) -> bool) -> io::Result<()> {
        match value {
            value if value.is_nan() => return self.text("NaN"),
            f64::INFINITY => return self.text("Infinity"),
            f64::NEG_INFINITY => return self.text("-Infinity"),
            _ => {}
        }
        let short = general(value, few);
        self.bare(if enough(&short) { short } else { general(value, many) })
    }

    fn open(&mut self, bracket: &str) -> io::Result<()> {
        self.filled.push(false);
        self.out.write_all(bracket.as_bytes())
    }

    fn close(&mut self, bracket: &str) -> io::Result<()> {
        if self.filled.pop() == Some(true) {
            self.line()?;
        }
        self.out.write_all(bracket.as_bytes())?;
        if self.filled.is_empty() && !self.compact { self.out.write_all(b"\n") } else { Ok(()) }
    }

    fn line(&mut self) -> io::Result<()> {
        if self.compact {
            return Ok(());
        }
        self.out.write_all(b"\n")?;
        self.filled.iter().try_for_each(|_| self.out.write_all(b" "))
    }
}

/// A finite number with so many significant digits, as C's `%g` writes it.
fn general(value: f64, digits: i32) -> String {
    let places = usize::try_from(digits - 1).unwrap_or_default();
    let scientific = format!("{value:.places$e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let without_zeros = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if (-4..digits).contains(&exponent) {
        let places = usize::try_from(digits - 1 - exponent).unwrap_or_default();
        return without_zeros(&format!("{value:.places$}"));
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", without_zeros(mantissa), exponent.unsigned_abs())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// As protobuf's C++ prints them.
    #[test]
    fn numbers_have_as_many_digits_as_they_need() {
        let double = |value: f64| {
            let mut out = Vec::new();
            Pretty::compact(&mut out).double(value).unwrap();
            String::from_utf8(out).unwrap()
        };
        let float = |value: f32| {
            let mut out = Vec::new();
            Pretty::compact(&mut out).float(value).unwrap();
            String::from_utf8(out).unwrap()
        };
        for (value, shown) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (0.1, "0.1"),
            (1.0 / 3.0, "0.33333333333333331"),
            (1e-7, "1e-07"),
            (0.0001, "0.0001"),
            (1e15, "1e+15"),
            (123_456_789_012_345.0, "123456789012345"),
            (1e21, "1e+21"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::NAN, "\"NaN\""),
            (f64::NEG_INFINITY, "\"-Infinity\""),
        ] {
            assert_eq!(double(value), shown);
        }
        for (value, shown) in
            [(0.1, "0.1"), (3.4e38, "3.4e+38"), (16_777_216.0, "16777216"), (1.0 / 3.0, "0.333333343")]
        {
            assert_eq!(float(value), shown);
        }
    }
}
