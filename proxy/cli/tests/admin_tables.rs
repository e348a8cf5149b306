//! Every line of `admin_api.table`, over the real binary, with each store that is written to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use support::Directory;
use support::etcd::Etcd;
use support::gateway::{Gateway, Ports};

/// A request and what it is answered.
struct Case {
    line: usize,
    method: String,
    path: String,
    body: String,
    status: u16,
    answer: String,
}

fn cases() -> Vec<Case> {
    let text = include_str!("admin_api.table");
    let mut lines = text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let mut cases = Vec::new();
    while let (Some((line, request)), Some((_, answer))) = (lines.next(), lines.next()) {
        let mut words = request.splitn(3, ' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let (status, answer) = answer.split_once(' ').unwrap();
        let body = words.next().unwrap_or_default();
        cases.push(Case {
            line,
            method,
            path,
            body,
            status: status.parse().unwrap(),
            answer: answer.to_owned(),
        });
    }
    cases
}

/// Names with what they stand for.
type Names = BTreeMap<String, String>;

fn replaced(text: &str, names: &Names) -> String {
    // The longest first: no name is the beginning of another's.
    names.iter().rev().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("${name}"), value))
}

/// Why an answer is not what was expected.
fn differs(expected: &Value, found: &Value, names: &mut Names) -> Result<(), String> {
    let is_digits = |text: &str| text.len() == 20 && text.bytes().all(|byte| byte.is_ascii_digit());
    let as_is =
        || if expected == found { Ok(()) } else { Err(format!("{found} in the place of {expected}")) };
    match (expected, found) {
        (Value::String(wanted), _) if wanted == "<time>" => {
            let is_time = found.as_u64().is_some_and(|time| time > 1_700_000_000);
            if is_time { Ok(()) } else { Err(format!("{found} is no time")) }
        }
        (Value::String(wanted), _) if wanted == "<index>" => {
            if found.as_u64().is_some_and(|index| index > 0) {
                Ok(())
            } else {
                Err(format!("{found} is no revision"))
            }
        }
        (Value::String(wanted), Value::String(text)) if wanted == "<sealed>" => {
            let is_sealed = !text.is_empty() && !text.contains("BEGIN");
            if is_sealed { Ok(()) } else { Err(format!("{found} is no key as it is kept")) }
        }
        (Value::String(wanted), Value::String(text)) if wanted.starts_with("<=") => {
            if !is_digits(text) {
                return Err(format!("{found} is no id that was made"));
            }
            names.insert(wanted.trim_matches(['<', '=', '>']).to_owned(), text.clone());
            Ok(())
        }
        (Value::String(wanted), Value::String(text)) if wanted.ends_with("<id>") => {
            let made = text.strip_prefix(wanted.trim_end_matches("<id>")).is_some_and(is_digits);
            if made { Ok(()) } else { as_is() }
        }
        (Value::Object(wanted), Value::Object(members)) => {
            if wanted.len() != members.len() {
                return Err(format!("{found} in the place of {expected}"));
            }
            wanted.iter().try_for_each(|(name, value)| {
                differs(value, members.get(name).ok_or_else(|| format!("no {name} in {found}"))?, names)
            })
        }
        (Value::Array(wanted), Value::Array(items)) if wanted.len() == items.len() => {
            wanted.iter().zip(items).try_for_each(|(wanted, item)| differs(wanted, item, names))
        }
        _ => as_is(),
    }
}

/// A certificate with its key, as they stand in a text of JSON.
fn certificate() -> Names {
    let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
    let within = |text: String| serde_json::to_string(&text).unwrap().trim_matches('"').to_owned();
    let names = [("CERT", within(made.cert.pem())), ("KEY", within(made.signing_key.serialize_pem()))];
    names.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn answers_as_written(deployment: &str) {
    let (directory, ports) = (Directory::new(), Ports::free());
    // Values are shown as they are kept.
    let whole = ports.config(deployment).replace(
        "apisix:\n",
        "apisix:\n  data_encryption: {enable_encrypt_fields: false}\n  proxy_mode: http&stream\n  stream_proxy: {tcp: [{addr: \"127.0.0.1:0\"}]}\n",
    );
    directory.write("config.yaml", &whole);
    let gateway = Gateway::start(&directory, ports);
    let (mut names, mut wrong) = (certificate(), Vec::new());
    for Case { line, method, path, body, status, answer } in cases() {
        let got = gateway.ask(&method, &replaced(&path, &names), &replaced(&body, &names));
        let answer = replaced(&answer, &names);
        let same = match (serde_json::from_str(&answer), serde_json::from_str(&got.body)) {
            (Ok(wanted), Ok(found)) => differs(&wanted, &found, &mut names),
            _ if answer == got.body.trim_end() => Ok(()),
            _ => Err(format!("{} in the place of {answer}", got.body)),
        };
        if got.status != status || same.is_err() {
            wrong.push(format!(
                "line {line}: {method} {path}: {} {}",
                got.status,
                same.err().unwrap_or_default()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_embedded_store_answers_as_written() {
    answers_as_written("role: traditional");
}

#[test]
fn etcd_answers_as_written() {
    let etcd = Etcd::start();
    answers_as_written(&format!(
        "role: traditional\n  role_traditional: {{config_provider: etcd}}\n  etcd: {{host: ['{}']}}",
        etcd.url()
    ));
}
