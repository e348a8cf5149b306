//! Templates of paths as google/api/http.proto describes them: `/v1/{name=shelves/*/books/**}:archive`.

/// A template.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Template {
    /// Literals, `*` and `**`.
    pub(super) segments: Vec<String>,
    /// What follows the last colon; empty where there is none.
    pub(super) verb: String,
    pub(super) variables: Vec<Variable>,
}

/// A part of the path that is the value of a field.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Variable {
    /// Names of fields, from the message's own inwards.
    pub(super) field: Vec<String>,
    /// The first of its segments.
    pub(super) start: usize,
    /// Its last one.
    pub(super) end: End,
}

/// Where a variable ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Before the segment of this number.
    At(usize),
    /// So many segments before the end of the path: it has a `**`.
    BeforeEnd(usize),
}

impl Template {
    /// `None` for what is no template.
    pub(super) fn parse(text: &str) -> Option<Template> {
        let mut template = Template { segments: Vec::new(), verb: String::new(), variables: Vec::new() };
        if text == "/" {
            return Some(template);
        }
        let mut rest = text.strip_prefix('/')?;
        template.read_segments(&mut rest, false)?;
        if let Some(verb) = rest.strip_prefix(':') {
            rest = verb;
            template.verb = literal(&mut rest)?.to_owned();
        }
        (rest.is_empty() && template.is_sound()).then_some(())?;
        let count = template.segments.len();
        for variable in &mut template.variables {
            if let End::At(end) = variable.end
                && template.segments.get(variable.start..end)?.iter().any(|segment| segment == "**")
            {
                variable.end = End::BeforeEnd(count - end);
            }
        }
        Some(template)
    }

    fn read_segments(&mut self, rest: &mut &str, in_variable: bool) -> Option<()> {
        loop {
            self.read_segment(rest, in_variable)?;
            match rest.strip_prefix('/') {
                Some(after) => *rest = after,
                None => return Some(()),
            }
        }
    }

    fn read_segment(&mut self, rest: &mut &str, in_variable: bool) -> Option<()> {
        if let Some(after) = rest.strip_prefix('{') {
            *rest = after;
            return if in_variable { None } else { self.read_variable(rest) };
        }
        for wildcard in ["**", "*"] {
            if let Some(after) = rest.strip_prefix(wildcard) {
                *rest = after;
                self.segments.push(wildcard.to_owned());
                return Some(());
            }
        }
        let text = literal(rest)?.to_owned();
        self.segments.push(text);
        Some(())
    }

    fn read_variable(&mut self, rest: &mut &str) -> Option<()> {
        let end = rest.find(['=', '}'])?;
        let (path, after) = rest.split_at_checked(end)?;
        *rest = after;
        let field: Vec<String> = path.split('.').map(str::to_owned).collect();
        if field.iter().any(String::is_empty) {
            return None;
        }
        let start = self.segments.len();
        match rest.strip_prefix('=') {
            Some(after) => {
                *rest = after;
                self.read_segments(rest, true)?;
            }
            None => self.segments.push("*".to_owned()),
        }
        *rest = rest.strip_prefix('}')?;
        self.variables.push(Variable { field, start, end: End::At(self.segments.len()) });
        Some(())
    }

    /// Behind `**` come literals alone.
    fn is_sound(&self) -> bool {
        let behind = self.segments.iter().skip_while(|segment| *segment != "**").skip(1);
        behind.into_iter().all(|segment| segment != "*" && segment != "**")
    }
}

/// What comes before the next `/`, `:` or `}`; there must be something.
fn literal<'t>(rest: &mut &'t str) -> Option<&'t str> {
    let end = rest.find(['/', ':', '}']).unwrap_or(rest.len());
    let (text, after) = rest.split_at_checked(end)?;
    *rest = after;
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn variable(field: &[&str], start: usize, end: End) -> Variable {
        Variable { field: field.iter().map(|name| (*name).to_owned()).collect(), start, end }
    }

    #[test]
    fn templates_are_taken_apart() {
        let template = Template::parse("/v1/{a.b}/{c=x/*/y/**}/z:go").unwrap();
        assert_eq!(template.segments, ["v1", "*", "x", "*", "y", "**", "z"]);
        assert_eq!(template.verb, "go");
        assert_eq!(
            template.variables,
            [variable(&["a", "b"], 1, End::At(2)), variable(&["c"], 2, End::BeforeEnd(1))]
        );
        assert_eq!(Template::parse("/").unwrap().segments, [""; 0]);
    }

    #[test]
    fn what_is_none_is_told() {
        for bad in [
            "",
            "v1",
            "//",
            "/v1/",
            "/{}",
            "/{a",
            "/{a=}",
            "/{a={b}}",
            "/{a..b}",
            "/**/*",
            "/**/**",
            "/a:",
            "/a}",
            "/***",
            "/a:b:c",
            "/a:b/c",
            "/{a=**}/{b}",
        ] {
            assert_eq!(Template::parse(bad), None, "{bad}");
        }
    }
}
