//! The configurations that pages of documentation show.

use serde_json::{Map, Value, json};

use super::shell::{self, Command};

/// A configuration of a page.
#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    /// As a file of its own.
    File {
        /// The line of the page, from 1.
        line: usize,
        /// Of the file.
        extension: &'static str,
        /// The file.
        text: String,
    },
    /// What a command sends is no JSON: parts are left out, or come of a variable. The line of the page.
    NoJson(usize),
}

/// Lists of an apisix.yaml.
const SECTIONS: [&str; 12] = [
    "routes",
    "services",
    "upstreams",
    "consumers",
    "consumer_groups",
    "ssls",
    "global_rules",
    "plugin_configs",
    "plugin_metadata",
    "protos",
    "stream_routes",
    "secrets",
];

/// Top keys of a config.yaml.
const STATIC: [&str; 4] = ["apisix", "deployment", "nginx_config", "plugin_attr"];

/// The bodies in the fenced blocks of a page.
pub fn bodies(page: &str) -> Vec<Body> {
    let mut bodies = Vec::new();
    for Block { line, language, text } in blocks(page) {
        match language.as_str() {
            "shell" | "bash" | "sh" | "" => {
                let commands = shell::commands(&text);
                bodies.extend(commands.iter().filter_map(|command| sent(command, line)));
            }
            "yaml" => bodies.extend(shown(&text).map(|text| Body::File { line, extension: "yaml", text })),
            _ => {}
        }
    }
    bodies
}

struct Block {
    /// Of its first line, from 1.
    line: usize,
    language: String,
    text: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let (mut blocks, mut open): (Vec<Block>, Option<(Block, usize)>) = (Vec::new(), None);
    for (number, line) in page.lines().enumerate() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        match (&mut open, text.strip_prefix("```")) {
            (None, Some(info)) => {
                let language = info.split_whitespace().next().unwrap_or_default().to_lowercase();
                open = Some((Block { line: number + 2, language, text: String::new() }, indent));
            }
            (Some(_), Some(_)) => blocks.extend(open.take().map(|(block, _)| block)),
            (Some((block, indent)), None) => {
                // A block in a list is indented with it.
                let blank = line.len() - text.len();
                block.text.push_str(line.get(blank.min(*indent)..).unwrap_or_default());
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

/// What a command writes through the Admin API.
fn sent(command: &Command, first: usize) -> Option<Body> {
    let start = command.words.iter().position(|word| word == "curl")?;
    let words = command.words.get(start..)?;
    let path = words.iter().find_map(|word| word.split_once("/apisix/admin/")).map(|(_, path)| path)?;
    let path = path.split(['?', '#']).next().unwrap_or_default().trim_matches('/');
    let (section, id) = path.split_once('/').unwrap_or((path, ""));
    if !SECTIONS.contains(&section) {
        return None;
    }
    let method = value_of(words, &["-X", "--request"]).unwrap_or("POST");
    let data = value_of(words, &["-d", "--data", "--data-raw", "--data-binary"])?;
    if !["PUT", "POST"].contains(&method) || data.starts_with('@') {
        return None;
    }
    let line = first + command.line;
    let Ok(Value::Object(body)) = serde_json::from_str(data) else { return Some(Body::NoJson(line)) };
    let text = format!("{:#}\n", file(section, id, body));
    Some(Body::File { line, extension: "json", text })
}

/// The value of an option, which may stand in the same word.
fn value_of<'w>(words: &'w [String], names: &[&str]) -> Option<&'w str> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if names.contains(&word.as_str()) {
            return words.next().map(String::as_str);
        }
        let short = names.first().and_then(|name| word.strip_prefix(name));
        if let Some(value) = short.filter(|value| !value.is_empty() && !word.starts_with("--")) {
            return Some(value);
        }
    }
    None
}

/// An apisix.json with one resource, and with the consumer of a credential.
fn file(section: &str, id: &str, mut body: Map<String, Value>) -> Value {
    if section == "consumers" {
        let Some((consumer, credential)) = id.split_once("/credentials") else {
            return json!({section: [body]});
        };
        let of_body = body.get("id").and_then(Value::as_str).unwrap_or("1");
        let credential = match credential.trim_start_matches('/') {
            "" => of_body,
            of_path => of_path,
        };
        let id = format!("{consumer}/credentials/{credential}");
        body.insert("id".to_owned(), id.into());
        return json!({section: [{"username": consumer}, body]});
    }
    if !id.is_empty() || !body.contains_key("id") {
        let id = if id.is_empty() { "1" } else { id };
        body.insert("id".to_owned(), id.into());
    }
    json!({section: [body]})
}

/// A block of YAML that is an apisix.yaml or a config.yaml.
fn shown(text: &str) -> Option<String> {
    let has = |keys: &[&str]| {
        let key = |line: &str| {
            keys.iter().any(|key| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')))
        };
        text.lines().any(key)
    };
    // Manifests of Kubernetes and files of APISIX's own tool (adc) have other forms.
    if has(&["apiVersion", "kind"]) {
        return None;
    }
    let is_complete = text.trim_end().ends_with("#END");
    if has(&STATIC) && !is_complete {
        return Some(text.to_owned());
    }
    is_complete.then(|| text.to_owned())
}
