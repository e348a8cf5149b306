//! Parses Envoy's `%OPERATOR(args):length%` (source/common/formatter/substitution_formatter.cc).

use super::fixed;
use super::network::Network;
use super::operator::{Address, Duration, GrpcForm, Header, MetadataOf, Operator, Point, Side, UrlPart};
use super::read::Read;
use super::time::TimeFormat;
use super::{Part, certificate, client_cert};
use crate::cel::{Extras, Program};
use crate::error::nearest;
use crate::files;
use crate::headers::HeaderName;

/// The largest file of `FILE_CONTENT`, which stands in every line.
const MAX_CONTENT_BYTES: usize = 1 << 20;

/// Names of the operators with arguments that are likely to be misspelt.
const WITH_ARGUMENTS: [&str; 15] = [
    "REQ",
    "RESP",
    "TRAILER",
    "REQUEST_HEADER",
    "RESPONSE_HEADER",
    "PATH",
    "QUERY_PARAM",
    "START_TIME",
    "COMMON_DURATION",
    "GRPC_STATUS",
    "DYNAMIC_METADATA",
    "METADATA",
    "FILTER_STATE",
    "REQUESTED_SERVER_NAME",
    "XFCC_VALUE",
];

/// Splits a format into parts.
pub(super) fn parse(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        plain.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            plain.push('%');
            rest = after;
            continue;
        }
        let command = Command::split(after)
            .ok_or_else(|| format!("'%{}' is not a command operator", shorten(after)))?;
        if !plain.is_empty() {
            parts.push(Part::text(&std::mem::take(&mut plain)));
        }
        let operator = match command.max {
            Some(_) if !fixed::takes_length(command.name) => Err("takes no length".to_owned()),
            _ => operator(command.name, command.arguments),
        }
        .map_err(|reason| format!("operator {}: {reason}", command.name))?;
        // Envoy takes a length for it, and keeps all of the value.
        let max = command.max.filter(|_| command.name != "XFCC_VALUE");
        parts.push(Part::operator(operator, max));
        rest = command.rest;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        parts.push(Part::text(&plain));
    }
    Ok(parts)
}

fn shorten(text: &str) -> &str {
    text.char_indices().nth(40).map_or(text, |(end, _)| &text[..end])
}

/// One `NAME(arguments):max%`, and what follows it.
struct Command<'a> {
    name: &'a str,
    arguments: Option<&'a str>,
    max: Option<usize>,
    rest: &'a str,
}

impl<'a> Command<'a> {
    fn split(text: &'a str) -> Option<Command<'a>> {
        let is_name = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
        let end = text.bytes().position(|b| !is_name(b)).filter(|end| *end > 0)?;
        let (name, after) = text.split_at(end);
        let Some(inside) = after.strip_prefix('(') else {
            let (max, rest) = end_of(after)?;
            return Some(Command { name, arguments: None, max, rest });
        };
        // The arguments end at the first parenthesis that an end of the operator follows.
        inside.match_indices(')').find_map(|(close, _)| {
            let (max, rest) = end_of(&inside[close + 1..])?;
            Some(Command { name, arguments: Some(&inside[..close]), max, rest })
        })
    }
}

/// The length and what follows, when `text` begins with `%` or `:N%`.
fn end_of(text: &str) -> Option<(Option<usize>, &str)> {
    if let Some(rest) = text.strip_prefix('%') {
        return Some((None, rest));
    }
    let (digits, rest) = text.strip_prefix(':')?.split_once('%')?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| (Some(digits.parse().unwrap_or(usize::MAX)), rest))
}

/// The operator of a name and its arguments.
fn operator(name: &str, arguments: Option<&str>) -> Result<Operator, String> {
    if let Some(operator) = with_arguments(name, arguments)? {
        return Ok(operator);
    }
    let read = fixed::find(name).ok_or_else(|| unknown(name))?;
    match (read, arguments) {
        (_, Some(arguments)) if !arguments.is_empty() => Err("takes no arguments".into()),
        (Some(read), _) => Ok(Operator::Read(read)),
        (None, _) => Ok(Operator::Missing),
    }
}

/// What is said of a name that there is no operator for: what was meant.
fn unknown(name: &str) -> String {
    match nearest(name, WITH_ARGUMENTS.iter().copied().chain(fixed::names())) {
        Some(near) => format!("is not known; did you mean {near}?"),
        None => "is not known".to_owned(),
    }
}

fn with_arguments(name: &str, arguments: Option<&str>) -> Result<Option<Operator>, String> {
    let needed = || arguments.filter(|a| !a.is_empty()).ok_or("needs arguments");
    let given = arguments.unwrap_or_default();
    Ok(Some(match name {
        "REQ" | "REQUEST_HEADER" => headers(Side::Request, needed()?)?,
        "REQ_WITHOUT_QUERY" => Operator::WithoutQuery(Box::new(headers(Side::Request, needed()?)?)),
        "RESP" | "RESPONSE_HEADER" => headers(Side::Response, needed()?)?,
        "TRAILER" | "RESPONSE_TRAILER" => headers(Side::Trailers, needed()?)?,
        "PATH" => path(given)?,
        "QUERY_PARAM" => Operator::QueryParameter(needed()?.into()),
        "QUERY_PARAMS" => Operator::Query(match given {
            "" | "ORIG" => false,
            "DECODED" => true,
            _ => return Err("takes ORIG or DECODED".into()),
        }),
        "START_TIME" => Operator::Start(TimeFormat::utc(or(given, TimeFormat::ENVOY))?),
        "START_TIME_LOCAL" => Operator::Start(TimeFormat::local(or(given, TimeFormat::ENVOY))?),
        "EMIT_TIME" => Operator::Emit(TimeFormat::utc(or(given, TimeFormat::ENVOY))?),
        "EMIT_TIME_LOCAL" => Operator::Emit(TimeFormat::local(or(given, TimeFormat::ENVOY))?),
        "COMMON_DURATION" => Operator::Duration(duration(needed()?)?),
        "GRPC_STATUS" => Operator::GrpcStatus(match given {
            "" | "CAMEL_STRING" => GrpcForm::Camel,
            "SNAKE_STRING" => GrpcForm::Snake,
            "NUMBER" => GrpcForm::Number,
            _ => return Err("takes CAMEL_STRING, SNAKE_STRING or NUMBER".into()),
        }),
        "GRPC_STATUS_NUMBER" => Operator::GrpcStatus(GrpcForm::Number),
        "DYNAMIC_METADATA" => metadata(MetadataOf::Dynamic, needed()?)?,
        "CLUSTER_METADATA" => metadata(MetadataOf::Cluster, needed()?)?,
        "UPSTREAM_METADATA" => metadata(MetadataOf::Endpoint, needed()?)?,
        "METADATA" => any_metadata(needed()?)?,
        "FILTER_STATE" => filter_state(needed()?)?,
        "UPSTREAM_FILTER_STATE" => {
            // Nothing here leaves any with the upstream.
            filter_state(needed()?)?;
            Operator::Missing
        }
        "RESPONSE_CODE_DETAILS" if given == "ALLOW_WHITESPACES" => {
            Operator::Read(Read::Text(|stream| stream.details.as_ref().map(|text| text.as_bytes())))
        }
        // Envoy passes over what else is asked for.
        "RESPONSE_CODE_DETAILS" => return Ok(fixed::find(name).flatten().map(Operator::Read)),
        "REQUESTED_SERVER_NAME" => server_name(given)?,
        "ENVIRONMENT" => Operator::Constant(
            std::env::var(needed()?).map_or_else(|_| b"-".as_slice().into(), |v| v.into_bytes().into()),
        ),
        "FILE_CONTENT" => file_content(needed()?)?,
        "HOSTNAME" => Operator::Constant(host_name().into_bytes().into()),
        "CEL" => cel(needed()?, false)?,
        "TYPED_CEL" => cel(needed()?, true)?,
        "COALESCE" => coalesce(needed()?)?,
        "XFCC_VALUE" => Operator::ClientCert(client_cert::Key::parse(needed()?)?),
        _ if Network::is_of(name) => match Network::parse(name, given) {
            Some(network) => Operator::Network(network),
            None => return Ok(fixed::find(name).flatten().map(Operator::Read)),
        },
        _ => {
            let Some(of) = certificate::validity(name) else { return Ok(None) };
            let format = TimeFormat::utc(or(given, "%Y-%m-%dT%H:%M:%S.000Z"))?;
            Operator::Validity { of, format }
        }
    }))
}

/// An expression, without what has to be asked for elsewhere.
fn cel(text: &str, typed: bool) -> Result<Operator, String> {
    let program = Program::parse(text, Extras::default())?;
    Ok(Operator::Cel { program: Box::new(program), typed })
}

/// `key:PLAIN|TYPED|FIELD:field`. There are texts in the state, which have no fields, and the peers of a mesh, which have.
fn filter_state(arguments: &str) -> Result<Operator, String> {
    let mut parts = arguments.split(':');
    let mut next = || parts.next().unwrap_or_default();
    let (key, form, field) = (next(), next(), next());
    let key = match key {
        "" => return Err("needs a key".into()),
        key => key.into(),
    };
    match (form, field) {
        ("" | "TYPED", "") => Ok(Operator::FilterState { key, typed: true }),
        ("PLAIN", "") => Ok(Operator::FilterState { key, typed: false }),
        ("FIELD", "") => Err("FIELD needs the name of a field".into()),
        ("FIELD", field) => Ok(Operator::PeerField { key, field: field.into() }),
        ("" | "TYPED" | "PLAIN", _) => Err("only FIELD takes the name of a field".into()),
        (other, _) => Err(format!("'{other}' is none of PLAIN, TYPED, FIELD")),
    }
}

fn or<'a>(given: &'a str, default: &'a str) -> &'a str {
    if given.is_empty() { default } else { given }
}

/// `X` or `X?Y`.
fn headers(side: Side, names: &str) -> Result<Operator, String> {
    let (first, second) = match names.split_once('?') {
        Some((_, second)) if second.contains('?') => return Err("takes one alternative at most".into()),
        Some((first, second)) => (first, Some(second)),
        None => (names, None),
    };
    let second = second.map(|name| header(side, name)).transpose()?;
    Ok(Operator::Header { side, first: header(side, first)?, second })
}

fn header(side: Side, name: &str) -> Result<Header, String> {
    let lower = name.to_ascii_lowercase();
    Ok(match (side, lower.as_str()) {
        (Side::Request, ":method") => Header::Method,
        (Side::Request, ":path") => Header::Path,
        (Side::Request, ":authority" | "host") => Header::Authority,
        (Side::Request, ":scheme") => Header::Scheme,
        (Side::Response, ":status") => Header::Status,
        // A pseudo header that the message does not have is a header that is never there.
        (_, pseudo) if pseudo.starts_with(':') => Header::None,
        (_, name) => Header::Named(HeaderName::new(name).map_err(|e| e.to_string())?),
    })
}

/// `PATH(WQ|NQ:ORIG|PATH|ORIG_OR_PATH)`
fn path(arguments: &str) -> Result<Operator, String> {
    let (query, which) = arguments.split_once(':').unwrap_or((arguments, ""));
    let query = match query {
        "" | "WQ" => true,
        "NQ" => false,
        other => return Err(format!("'{other}' is neither WQ nor NQ")),
    };
    let original = match which {
        "" | "ORIG_OR_PATH" => UrlPart::OriginalOrCurrent,
        "ORIG" => UrlPart::Original,
        "PATH" => UrlPart::Current,
        other => return Err(format!("'{other}' is none of ORIG, PATH, ORIG_OR_PATH")),
    };
    Ok(Operator::Path { query, of: original })
}

/// `from:to:unit`
fn duration(arguments: &str) -> Result<Duration, String> {
    let mut parts = arguments.split(':');
    let mut next = || parts.next().unwrap_or_default();
    let (from, to, unit) = (next(), next(), next());
    let nanos = match unit {
        "ms" => 1_000_000,
        "us" => 1_000,
        "ns" => 1,
        _ => return Err("the unit is none of ms, us, ns".into()),
    };
    Ok(Duration { from: Point::parse(from), to: Point::parse(to), nanos })
}

/// `namespace:key:key`, or the old header syntax `["namespace", "key"]`.
fn metadata(of: MetadataOf, arguments: &str) -> Result<Operator, String> {
    let path: Vec<Box<str>> = if arguments.starts_with('[') {
        serde_json::from_str(arguments).map_err(|e| e.to_string())?
    } else {
        arguments.split(':').map(Into::into).collect()
    };
    let mut path = path.into_iter();
    // Nobody has written any under an empty name, but Envoy takes it.
    let namespace = path.next().unwrap_or_default();
    Ok(Operator::Metadata { of, namespace, path: path.collect() })
}

fn any_metadata(arguments: &str) -> Result<Operator, String> {
    let (of, rest) = arguments.split_once(':').unwrap_or((arguments, ""));
    let of = match of {
        "DYNAMIC" => MetadataOf::Dynamic,
        "CLUSTER" => MetadataOf::Cluster,
        "ROUTE" => MetadataOf::Route,
        "VIRTUAL_HOST" => MetadataOf::VirtualHost,
        "UPSTREAM_HOST" => MetadataOf::Endpoint,
        "LISTENER" => MetadataOf::Listener,
        "LISTENER_FILTER_CHAIN" => MetadataOf::FilterChain,
        other => return Err(format!("'{other}' is not a kind of metadata")),
    };
    metadata(of, rest)
}

fn server_name(arguments: &str) -> Result<Operator, String> {
    let (which, _) = arguments.split_once(':').unwrap_or((arguments, ""));
    Ok(match which {
        "" | "SNI_ONLY" => Operator::ServerName(&[Address::Sni]),
        "SNI_FIRST" => Operator::ServerName(&[Address::Sni, Address::Host]),
        "HOST_FIRST" => Operator::ServerName(&[Address::Host, Address::Sni]),
        "HOST_ONLY" => Operator::ServerName(&[Address::Host]),
        other => return Err(format!("'{other}' is none of SNI_ONLY, SNI_FIRST, HOST_FIRST, HOST_ONLY")),
    })
}

fn file_content(arguments: &str) -> Result<Operator, String> {
    let (path, _) = arguments.split_once(':').unwrap_or((arguments, ""));
    let content =
        files::read_promptly(path.as_ref(), MAX_CONTENT_BYTES).map_err(|e| format!("{path}: {e}"))?;
    Ok(Operator::Constant(content.into()))
}

/// The machine's name, as the kernel has it.
pub(super) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim_end().to_owned())
        .or_else(|_| std::env::var("HOSTNAME"))
        .unwrap_or_else(|_| "-".to_owned())
}

/// `{"operators": ["NAME", {"command": "REQ", "param": "x", "max_length": 5}]}`: the first that has a value.
fn coalesce(arguments: &str) -> Result<Operator, String> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Arguments {
        operators: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Entry {
        Name(String),
        Full {
            command: String,
            #[serde(default)]
            param: Option<String>,
            #[serde(default)]
            max_length: Option<usize>,
        },
    }
    let arguments: Arguments = serde_json::from_str(arguments).map_err(|e| e.to_string())?;
    if arguments.operators.is_empty() {
        return Err("needs at least one operator".into());
    }
    let entries = arguments.operators.into_iter().map(|entry| {
        let (name, param, max) = match entry {
            Entry::Name(name) => (name, None, None),
            Entry::Full { command, param, max_length } => (command, param, max_length),
        };
        let operator =
            operator(&name, param.as_deref()).map_err(|reason| format!("operator {name}: {reason}"))?;
        Ok((operator, max))
    });
    entries.collect::<Result<_, String>>().map(Operator::Coalesce)
}
