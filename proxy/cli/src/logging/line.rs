//! From the formatter to the log's output.

use crate::arguments::LogForm;
use serde_json::Value;
use sixfold_core::access_log::LogSink;
use sixfold_server::log_file::Output;
use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes that a line has at most; what is longer (an error that shows a value of megabytes) is cut.
const LONGEST_LINE: usize = 16 << 10;

/// Bytes that a text in a JSON line which is too long keeps.
const LONGEST_TEXT: usize = 2 << 10;

/// Takes lines, each with one call.
pub(super) struct Lines {
    pub(super) output: Arc<Output>,
    pub(super) form: LogForm,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Lines;

    fn make_writer(&'a self) -> &'a Lines {
        self
    }
}

impl io::Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.output.write(&cut(line, self.form));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line that is not too long.
fn cut(line: &[u8], form: LogForm) -> Cow<'_, [u8]> {
    if line.len() <= LONGEST_LINE {
        return Cow::Borrowed(line);
    }
    match form {
        LogForm::Text => Cow::Owned([&line[..whole(line, LONGEST_LINE)], "…\n".as_bytes()].concat()),
        LogForm::Json => {
            let mut value = serde_json::from_slice(line).unwrap_or_default();
            shorten(&mut value);
            Cow::Owned(format!("{value}\n").into_bytes())
        }
    }
}

/// The largest length up to `most` that cuts no character in two.
fn whole(text: &[u8], most: usize) -> usize {
    let continues = |at: &usize| text.get(*at).is_some_and(|byte| byte & 0xC0 == 0x80);
    (0..=most.min(text.len())).rev().find(|at| !continues(at)).unwrap_or(0)
}

fn shorten(value: &mut Value) {
    match value {
        Value::String(text) if text.len() > LONGEST_TEXT => {
            text.truncate(whole(text.as_bytes(), LONGEST_TEXT));
            text.push('…');
        }
        Value::Object(fields) => fields.values_mut().for_each(shorten),
        Value::Array(items) => items.iter_mut().for_each(shorten),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn long_lines_are_cut_and_stay_what_they_are() {
        let short = b"a line\n";
        assert_eq!(*cut(short, LogForm::Text), *short);
        let long = format!("{}\n", "ä".repeat(1 << 20));
        let line = cut(long.as_bytes(), LogForm::Text);
        assert!(line.len() <= LONGEST_LINE + 4 && line.ends_with("ä…\n".as_bytes()));
        assert!(std::str::from_utf8(&line).is_ok());
        let json = serde_json::json!({"level": "ERROR", "fields": {"message": long, "n": 1}}).to_string();
        let line: Value = serde_json::from_slice(&cut(json.as_bytes(), LogForm::Json)).unwrap();
        assert_eq!((&line["level"], &line["fields"]["n"]), (&"ERROR".into(), &1.into()));
        assert!(line["fields"]["message"].as_str().unwrap().len() < LONGEST_TEXT + 8);
    }
}
