//! JSON with a space a level, written piece by piece, as protobuf's C++ printer lays it out.

use std::fmt::Display;
use std::io::{self, Write};

/// Writes one document. What it is asked to write is to be well formed: keys in objects, items in arrays.
pub struct Pretty<'a> {
    out: &'a mut dyn Write,
    /// For each open object or array, whether anything is in it.
    filled: Vec<bool>,
}

impl<'a> Pretty<'a> {
    /// Writes to `out`.
    pub fn new(out: &'a mut dyn Write) -> Pretty<'a> {
        Pretty { out, filled: Vec::new() }
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
        self.out.write_all(b": ")
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

    fn open(&mut self, bracket: &str) -> io::Result<()> {
        self.filled.push(false);
        self.out.write_all(bracket.as_bytes())
    }

    fn close(&mut self, bracket: &str) -> io::Result<()> {
        if self.filled.pop() == Some(true) {
            self.line()?;
        }
        self.out.write_all(bracket.as_bytes())?;
        if self.filled.is_empty() { self.out.write_all(b"\n") } else { Ok(()) }
    }

    fn line(&mut self) -> io::Result<()> {
        self.out.write_all(b"\n")?;
        self.filled.iter().try_for_each(|_| self.out.write_all(b" "))
    }
}
