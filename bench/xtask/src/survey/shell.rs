//! As much of a shell as it takes to read the commands of documentation.

/// A command: its words, and the line on which it begins, from 0.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) line: usize,
    pub(super) words: Vec<String>,
}

/// The commands of a text. Quotes are taken off, lines that end in a backslash go on, and nothing is expanded: a variable
/// stays as it is written.
pub(super) fn commands(text: &str) -> Vec<Command> {
    let mut reader = Reader::default();
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\'' => {
                reader.begin();
                for inner in chars.by_ref().take_while(|inner| *inner != '\'') {
                    reader.push(inner);
                }
            }
            '"' => {
                reader.begin();
                while let Some(inner) = chars.next() {
                    match inner {
                        '"' => break,
                        '\\' if chars.peek().is_some_and(|next| "\"\\$`".contains(*next)) => {
                            reader.push(chars.next().unwrap_or_default());
                        }
                        inner => reader.push(inner),
                    }
                }
            }
            '\\' => match chars.next() {
                Some('\n') => {
                    reader.line += 1;
                    reader.end_word();
                }
                Some(other) => reader.push(other),
                None => {}
            },
            '\n' => {
                reader.end();
                reader.line += 1;
            }
            ';' | '|' | '&' => reader.end(),
            '#' if reader.word.is_none() => while chars.next_if(|inner| *inner != '\n').is_some() {},
            blank if blank.is_whitespace() => reader.end_word(),
            other => reader.push(other),
        }
    }
    reader.end();
    reader.commands
}

#[derive(Default)]
struct Reader {
    commands: Vec<Command>,
    words: Vec<String>,
    word: Option<String>,
    line: usize,
    began: usize,
}

impl Reader {
    fn begin(&mut self) {
        if self.words.is_empty() && self.word.is_none() {
            self.began = self.line;
        }
        self.word.get_or_insert_default();
    }

    fn push(&mut self, char: char) {
        self.begin();
        if char == '\n' {
            self.line += 1;
        }
        self.word.get_or_insert_default().push(char);
    }

    fn end_word(&mut self) {
        self.words.extend(self.word.take());
    }

    fn end(&mut self) {
        self.end_word();
        let words = std::mem::take(&mut self.words);
        if !words.is_empty() {
            self.commands.push(Command { line: self.began, words });
        }
    }
}
