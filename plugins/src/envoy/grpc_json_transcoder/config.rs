//! A configuration, as requests need it.

use super::Fault;
use super::descriptors::{self, Descriptors};
use super::encode::{Encoder, Weave, field_of};
use super::http_body;
use super::paths::{Options, Paths, Unescape, unescaped};
use super::print::{MAX_DEPTH, PrintOptions};
use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::message::RequestHead;
use sixfold_core::plugin::BuildContext;
use sixfold_xds_api::pb::envoy::extensions::filters::http::grpc_json_transcoder::v3::GrpcJsonTranscoder;
use sixfold_xds_api::pb::envoy::extensions::filters::http::grpc_json_transcoder::v3::grpc_json_transcoder::{
    DescriptorSet, PrintOptions as ProtoPrint, RequestValidationOptions, UrlUnescapeSpec,
};
use sixfold_xds_api::pb::google::api::HttpRule;
use sixfold_xds_api::pb::google::api::http_rule::Pattern;
use sixfold_xds_api::pb::google::protobuf::UInt32Value;
use sixfold_xds_api::values::enum_value;
use std::path::Path;
use std::sync::Arc;

/// Bytes of a body that are transcoded where nothing is said: as many as a connection buffers by default.
const MAX_BODY: usize = 1 << 20;

/// The largest set of descriptors.
const MAX_DESCRIPTORS: usize = 32 << 20;

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.`: bytes that wait for the rest of a message.
    pub struct TranscoderStats {
        counters: [],
        gauges: [transcoder_request_buffer_bytes, transcoder_response_buffer_bytes],
        histograms: [],
    }
}

/// What is said of services.
pub(super) struct Config {
    paths: Paths<Arc<Rule>>,
    pub(super) pool: DescriptorPool,
    pub(super) print: PrintOptions,
    pub(super) framing: Framing,
    pub(super) encoder: Encoder,
    /// The route that was found for the request as it came stays.
    pub(super) keeps_route: bool,
    unknown: Unknown,
    /// What is for no method is refused.
    rejects_methods: bool,
    /// What has parameters that bind nothing is refused.
    rejects_parameters: bool,
    /// Statuses of failed calls become bodies.
    pub(super) converts_status: bool,
    /// Bytes.
    pub(super) max_request: usize,
    /// Bytes.
    pub(super) max_response: usize,
    pub(super) stats: TranscoderStats,
}

/// What stands between the messages of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// They are elements of an array.
    Array,
    /// Each is a line.
    Lines,
    /// Each is an event (Server-Sent Events).
    Events,
}

/// What becomes of parameters of the query that bind nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unknown {
    /// The request is not transcoded.
    Refused,
    Ignored,
    /// They are told in an extension of the HttpBody.
    Captured,
}

/// A method of a service.
pub(super) struct Method {
    /// `/package.Service/Method`
    pub(super) path: Vec<u8>,
    input: MessageDescriptor,
    pub(super) output: MessageDescriptor,
    pub(super) client_streaming: bool,
    pub(super) server_streaming: bool,
    /// The fields that lead to the HttpBody of its request, if it has one.
    request_body: Option<Vec<FieldDescriptor>>,
    /// Numbers of those that lead to that of its response.
    pub(super) response_body: Option<Vec<u32>>,
}

/// A path of a method.
pub(super) struct Rule {
    pub(super) method: Arc<Method>,
    /// Names of the fields that lead to what the body is.
    pub(super) body: Vec<String>,
}

impl Method {
    pub(super) fn input(&self) -> &MessageDescriptor {
        &self.input
    }

    /// Numbers of the fields that lead to the HttpBody of its request, if it has one.
    pub(super) fn request_body(&self) -> Option<Vec<u32>> {
        Some(self.request_body.as_ref()?.iter().map(FieldDescriptor::number).collect())
    }
}

/// What a request comes to.
pub(super) struct Opened {
    pub(super) rule: Arc<Rule>,
    pub(super) weave: Weave,
    pub(super) unknown: http_body::Unknown,
}

/// Why a request is not transcoded.
pub(super) enum Unopened {
    /// It passes as it is.
    Passes,
    Refused(Fault),
}

impl Config {
    /// `None` without services: nothing is transcoded.
    pub(super) fn new(
        value: GrpcJsonTranscoder,
        context: &BuildContext,
    ) -> Result<Option<Config>, ConfigError> {
        let GrpcJsonTranscoder {
            services,
            print_options,
            match_incoming_request_route,
            ignored_query_parameters,
            auto_mapping,
            ignore_unknown_query_parameters,
            convert_grpc_status,
            url_unescape_spec,
            query_param_unescape_plus,
            match_unregistered_custom_verb,
            request_validation_options,
            case_insensitive_enum_parsing,
            max_request_body_size,
            max_response_body_size,
            capture_unknown_query_parameters,
            descriptor_set,
        } = value;
        if services.is_empty() {
            return Ok(None);
        }
        let descriptors = descriptors(descriptor_set)?;
        let mut paths = Paths::new(Options {
            unescape: match enum_value(url_unescape_spec, "url_unescape_spec")? {
                UrlUnescapeSpec::AllCharactersExceptReserved => Unescape::NotReserved,
                UrlUnescapeSpec::AllCharactersExceptSlash => Unescape::NotSlash,
                UrlUnescapeSpec::AllCharacters => Unescape::All,
            },
            plus_is_space: query_param_unescape_plus,
            any_verb: match_unregistered_custom_verb,
            ignored: ignored_query_parameters.into_iter().collect(),
        });
        for (index, service) in services.iter().enumerate() {
            add_service(service, &descriptors, auto_mapping, &mut paths)
                .in_index(index)
                .in_key("services")?;
        }
        let RequestValidationOptions {
            reject_unknown_method,
            reject_unknown_query_parameters,
            reject_binding_body_field_collisions,
        } = request_validation_options.unwrap_or_default();
        let (print, framing) = printing(print_options.unwrap_or_default());
        Ok(Some(Config {
            paths,
            pool: descriptors.pool,
            print,
            framing,
            encoder: Encoder {
                any_case: case_insensitive_enum_parsing,
                rejects_collisions: reject_binding_body_field_collisions,
            },
            keeps_route: match_incoming_request_route,
            unknown: match (capture_unknown_query_parameters, ignore_unknown_query_parameters) {
                (true, _) => Unknown::Captured,
                (false, true) => Unknown::Ignored,
                (false, false) => Unknown::Refused,
            },
            rejects_methods: reject_unknown_method,
            rejects_parameters: reject_unknown_query_parameters,
            converts_status: convert_grpc_status,
            max_request: limit(max_request_body_size, "max_request_body_size")?,
            max_response: limit(max_response_body_size, "max_response_body_size")?,
            stats: TranscoderStats::new(&context.metrics, &context.scope),
        }))
    }

    /// The method that a request is for, with what its path and query bind.
    pub(super) fn open(&self, request: &RequestHead) -> Result<Opened, Unopened> {
        let unless = |rejects: bool, fault: Fault| match rejects {
            true => Unopened::Refused(fault),
            false => Unopened::Passes,
        };
        let (path, query) = (request.target.path(), request.target.query().unwrap_or_default());
        let Some((rule, bindings)) = self.paths.find(request.method.as_str().as_bytes(), path, query) else {
            let path = String::from_utf8_lossy(path);
            let fault = Fault::not_found(format!("Could not resolve {path} to a method."));
            return Err(unless(self.rejects_methods, fault));
        };
        let (mut weave, mut unknown) = (Weave::default(), http_body::Unknown::new());
        for binding in bindings {
            let value = String::from_utf8(binding.value)
                .map_err(|_| Fault::invalid(format!("{}: the value is not UTF-8", binding.field.join("."))));
            let path = match resolve(&rule.method.input, &binding.field) {
                Ok(path) => path,
                Err(_) if self.unknown == Unknown::Captured => {
                    let values = unknown.entry(binding.field.join(".")).or_default();
                    values.push(value.map_err(Unopened::Refused)?);
                    continue;
                }
                Err(_) if self.unknown == Unknown::Ignored => continue,
                Err(fault) => return Err(unless(self.rejects_parameters, fault)),
            };
            // A message may hold itself, and a query say so as often as it has room for.
            if path.len() > MAX_DEPTH {
                return Err(Unopened::Refused(Fault::invalid("Message too deep")));
            }
            // What is in the HttpBody is the body's.
            let is_inside = rule.method.request_body.as_ref().is_some_and(|body| path.starts_with(body));
            if !is_inside {
                weave.bind(&path, value.map_err(Unopened::Refused)?);
            }
        }
        Ok(Opened { rule: rule.clone(), weave, unknown })
    }
}

fn descriptors(set: Option<DescriptorSet>) -> Result<Descriptors, ConfigError> {
    match set {
        Some(DescriptorSet::ProtoDescriptorBin(set)) => Descriptors::new(&set).in_key("proto_descriptor_bin"),
        Some(DescriptorSet::ProtoDescriptor(path)) => {
            sixfold_core::files::read_promptly(Path::new(&path), MAX_DESCRIPTORS)
                .map_err(|error| ConfigError::new(format!("{path}: {error}")))
                .and_then(|set| Descriptors::new(&set))
                .in_key("proto_descriptor")
        }
        None => Err(ConfigError::new("one of proto_descriptor and proto_descriptor_bin is missing")),
    }
}

fn limit(bytes: Option<UInt32Value>, field: &str) -> Result<usize, ConfigError> {
    match bytes {
        Some(bytes) if bytes.value == 0 => Err(ConfigError::field(field, "must be greater than 0")),
        bytes => Ok(bytes.map_or(MAX_BODY, |bytes| bytes.value as usize)),
    }
}

fn printing(value: ProtoPrint) -> (PrintOptions, Framing) {
    let ProtoPrint {
        add_whitespace,
        always_print_primitive_fields,
        always_print_enums_as_ints,
        preserve_proto_field_names,
        stream_newline_delimited,
        stream_sse_style_delimited,
    } = value;
    let print = PrintOptions {
        whitespace: add_whitespace,
        defaults: always_print_primitive_fields,
        numbers: always_print_enums_as_ints,
        names: preserve_proto_field_names,
    };
    let framing = match (stream_sse_style_delimited, stream_newline_delimited) {
        (true, _) => Framing::Events,
        (false, true) => Framing::Lines,
        (false, false) => Framing::Array,
    };
    (print, framing)
}

fn add_service(
    name: &str,
    descriptors: &Descriptors,
    maps_all: bool,
    paths: &mut Paths<Arc<Rule>>,
) -> Result<(), ConfigError> {
    let missing = || ConfigError::new(format!("the descriptors have no service \"{name}\""));
    for method in &descriptors.service(name).ok_or_else(missing)?.method {
        let path = format!("/{name}/{}", method.name);
        let automatic = || {
            let pattern = Some(Pattern::Post(path.clone()));
            HttpRule { body: "*".to_owned(), pattern, ..HttpRule::default() }
        };
        let rule = method.rule().cloned().or_else(|| maps_all.then(automatic)).unwrap_or_default();
        let of_method = |error: ConfigError| ConfigError::new(format!("method {}: {error}", method.name));
        let made = method_of(path.clone(), method, &rule, &descriptors.pool).map_err(of_method)?;
        add_rule(&rule, &Arc::new(made), paths).map_err(of_method)?;
    }
    Ok(())
}

fn method_of(
    path: String,
    method: &descriptors::Method,
    rule: &HttpRule,
    pool: &DescriptorPool,
) -> Result<Method, ConfigError> {
    let message = |name: &str| {
        let unknown = || ConfigError::new(format!("there is no message \"{name}\""));
        pool.get_message_by_name(name.trim_start_matches('.')).ok_or_else(unknown)
    };
    let (input, output) = (message(&method.input_type)?, message(&method.output_type)?);
    let request_body =
        http_body_at(&input, &rule.body).map_err(|reason| ConfigError::field("body", reason))?;
    let response_body = http_body_at(&output, &rule.response_body)
        .map_err(|reason| ConfigError::field("response_body", reason))?;
    if response_body.is_none() && !rule.response_body.is_empty() {
        let reason = format!("must be a field of type {}", http_body::NAME);
        return Err(ConfigError::field("response_body", reason));
    }
    Ok(Method {
        path: path.into_bytes(),
        input,
        output,
        client_streaming: method.client_streaming,
        server_streaming: method.server_streaming,
        request_body,
        response_body: response_body.map(|path| path.iter().map(FieldDescriptor::number).collect()),
    })
}

/// The fields that lead to the HttpBody that a path of names is; `None` if it is another message.
fn http_body_at(message: &MessageDescriptor, path: &str) -> Result<Option<Vec<FieldDescriptor>>, String> {
    let names = names(path);
    let fields = resolve(message, &names).map_err(|fault| fault.message)?;
    let kind = fields.last().map_or_else(|| Kind::Message(message.clone()), FieldDescriptor::kind);
    let is_http_body = matches!(&kind, Kind::Message(message) if message.full_name() == http_body::NAME);
    Ok(is_http_body.then_some(fields))
}

/// Names of the fields of a path; none is the whole message.
fn names(path: &str) -> Vec<String> {
    path.split('.').filter(|name| !name.is_empty() && *name != "*").map(str::to_owned).collect()
}

fn add_rule(rule: &HttpRule, method: &Arc<Method>, paths: &mut Paths<Arc<Rule>>) -> Result<(), ConfigError> {
    // Its selector is that of a service's configuration, and its response_body that of the method.
    let HttpRule { selector: _, body, response_body: _, additional_bindings, pattern } = rule;
    if let Some(pattern) = pattern {
        let (by, template) = match pattern {
            Pattern::Get(path) => ("GET", path),
            Pattern::Put(path) => ("PUT", path),
            Pattern::Post(path) => ("POST", path),
            Pattern::Delete(path) => ("DELETE", path),
            Pattern::Patch(path) => ("PATCH", path),
            Pattern::Custom(custom) => (custom.kind.as_str(), &custom.path),
        };
        let made = Rule { method: method.clone(), body: names(body) };
        if !paths.add(by, template, Arc::new(made)) {
            return Err(ConfigError::new(format!("\"{template}\" is no template of a path")));
        }
    }
    additional_bindings.iter().try_for_each(|rule| add_rule(rule, method, paths))
}

/// The fields that names lead to (grpc_transcoding/type_helper.h).
fn resolve(message: &MessageDescriptor, names: &[String]) -> Result<Vec<FieldDescriptor>, Fault> {
    let (mut fields, mut current) = (Vec::<FieldDescriptor>::new(), message.clone());
    for (index, name) in names.iter().enumerate() {
        if let Some(last) = index.checked_sub(1).and_then(|last| fields.get(last)) {
            let Kind::Message(inner) = last.kind() else {
                let reason = "that is not a message while parsing a field path";
                return Err(Fault::invalid(format!(
                    "Encountered a non-leaf field \"{}\" {reason}",
                    last.name()
                )));
            };
            current = inner;
        }
        let plain = || String::from_utf8(unescaped(name.as_bytes(), Unescape::All, false)).ok();
        let field = field_of(&current, name).or_else(|| field_of(&current, &plain()?));
        let unknown = || {
            Fault::invalid(format!(
                "Could not find field \"{name}\" in the type \"{}\".",
                current.full_name()
            ))
        };
        fields.push(field.ok_or_else(unknown)?);
    }
    Ok(fields)
}
