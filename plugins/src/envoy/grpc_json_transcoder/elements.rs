//! The elements of a JSON array that comes piece by piece: messages of a stream from the client.

use super::Fault;

/// An array under way.
#[derive(Debug, Default)]
pub(super) struct Elements {
    state: State,
    /// What has come of an element.
    element: Vec<u8>,
    /// Brackets that are open in it.
    depth: usize,
    in_string: bool,
    escaped: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing has come.
    #[default]
    Before,
    /// The first element, or the end of the array.
    First,
    /// An element.
    Next,
    /// A comma, or the end of the array.
    Between,
    Within,
    After,
}

impl Elements {
    /// Bytes that are kept.
    pub(super) fn kept(&self) -> usize {
        self.element.len()
    }

    /// The elements that end in a piece.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
        let mut ended = Vec::new();
        for byte in piece {
            // What ends a bare value stands behind it.
            if self.state == State::Within
                && !self.in_string
                && self.depth == 0
                && matches!(byte, b',' | b']' | b' ' | b'\n' | b'\r' | b'\t')
            {
                self.end(&mut ended);
            }
            match self.state {
                State::Within => self.within(*byte, &mut ended),
                _ => self.outside(*byte, &mut ended)?,
            }
        }
        Ok(ended)
    }

    /// The end of the body.
    pub(super) fn finish(&self) -> Result<(), Fault> {
        match self.state {
            State::After => Ok(()),
            State::Before => Err(Fault::invalid("Expected an array instead of an object")),
            _ => Err(Fault::invalid("Unexpected end of string. Expected a value.")),
        }
    }

    fn end(&mut self, ended: &mut Vec<Vec<u8>>) {
        ended.push(std::mem::take(&mut self.element));
        self.state = State::Between;
    }

    fn within(&mut self, byte: u8, ended: &mut Vec<Vec<u8>>) {
        self.element.push(byte);
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
        } else {
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => return,
            }
        }
        if !self.in_string && self.depth == 0 {
            self.end(ended);
        }
    }

    fn outside(&mut self, byte: u8, ended: &mut Vec<Vec<u8>>) -> Result<(), Fault> {
        match (self.state, byte) {
            (_, b' ' | b'\n' | b'\r' | b'\t') => {}
            (State::Before, b'[') => self.state = State::First,
            (State::Before, b'{') => {
                return Err(Fault::invalid("Expected an array instead of an object"));
            }
            (State::Before, _) => {
                return Err(Fault::invalid("Expected an array instead of a scalar value."));
            }
            (State::First | State::Between, b']') => self.state = State::After,
            (State::Between, b',') => self.state = State::Next,
            (State::First | State::Next, byte) => {
                self.state = State::Within;
                self.within(byte, ended);
            }
            (State::Between, _) => {
                return Err(Fault::invalid("Expected , or ] after array value."));
            }
            (State::After | State::Within, _) => {
                return Err(Fault::invalid("Parsing terminated before end of input."));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn split(text: &str, by: usize) -> Result<Vec<String>, String> {
        let (mut elements, mut all) = (Elements::default(), Vec::new());
        for piece in text.as_bytes().chunks(by) {
            all.extend(elements.push(piece).map_err(|fault| fault.message)?);
        }
        elements.finish().map_err(|fault| fault.message)?;
        Ok(all.into_iter().map(|element| String::from_utf8(element).unwrap()).collect())
    }

    #[test]
    fn elements_are_found_however_the_array_is_cut() {
        let text = r#" [ {"a": "]}\\\"", "b": [1, {}]} ,5, "x,\"y" , [ ], null ] "#;
        let expected = [r#"{"a": "]}\\\"", "b": [1, {}]}"#, "5", r#""x,\"y""#, "[ ]", "null"];
        for by in [1, 2, 3, 7, 1000] {
            assert_eq!(split(text, by).unwrap(), expected, "{by}");
        }
        assert_eq!(split("[]", 1).unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_no_array_is_told() {
        for (bad, reason) in [
            ("", "Expected an array instead of an object"),
            ("{}", "Expected an array instead of an object"),
            ("5", "Expected an array instead of a scalar value."),
            ("[1", "Unexpected end of string. Expected a value."),
            ("[1 2]", "Expected , or ] after array value."),
            ("[1]x", "Parsing terminated before end of input."),
        ] {
            assert_eq!(split(bad, 1).unwrap_err(), reason, "{bad}");
        }
    }
}
