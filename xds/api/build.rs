//! Turns the descriptors that `envoy-types` ships into the compact table that `src/schema.rs` reads in place.
//!
//! The layout of the table is described there. Comments, services, default values and all options but those of
//! `Options` are left out.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

#[path = "build/istio.rs"]
mod istio;

const DESCRIPTORS: &str = "src/generated/types.bin";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/istio.rs");
    println!("cargo::rerun-if-env-changed=ENVOY_TYPES_DIR");
    let descriptors = envoy_types_dir()?.join(DESCRIPTORS);
    println!("cargo::rerun-if-changed={}", descriptors.display());
    let bytes = fs::read(&descriptors)?;
    let files = FileDescriptorSet::decode(bytes.as_slice())?;
    let options = options::of(&options::Files::decode(bytes.as_slice())?);
    let (messages, enums) = (istio::messages(), istio::enums());
    let matchers = matchers();
    let mut types = BTreeMap::new();
    messages.iter().for_each(|(scope, message)| collect(scope, message, &mut types));
    types.extend(enums.iter().map(|(name, of)| ((*name).to_owned(), Definition::Enum(of))));
    for message in &matchers {
        collect(".xds.type.matcher.v3", message, &mut types);
    }
    for file in &files.file {
        let package = format!(".{}", file.package());
        for message in &file.message_type {
            collect(&package, message, &mut types);
        }
        for kind in &file.enum_type {
            types.insert(format!("{package}.{}", kind.name()), Definition::Enum(kind));
        }
    }
    let out = PathBuf::from(env::var("OUT_DIR")?).join("schema.bin");
    fs::write(out, Table::of(&types, options)?.finish(types.len()))?;
    Ok(())
}

/// The source folder of `envoy-types`: `$ENVOY_TYPES_DIR`, cargo's registry, or what `cargo metadata` tells
/// (vendored or patched sources).
fn envoy_types_dir() -> Result<PathBuf, Box<dyn Error>> {
    if let Some(dir) = env::var_os("ENVOY_TYPES_DIR") {
        return Ok(dir.into());
    }
    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let lock = manifest_dir.ancestors().map(|dir| dir.join("Cargo.lock")).find(|lock| lock.is_file());
    let lock = lock.ok_or("there is no Cargo.lock above the package")?;
    println!("cargo::rerun-if-changed={}", lock.display());
    let name = format!(
        "envoy-types-{}",
        locked_version(&fs::read_to_string(lock)?).ok_or("envoy-types is not locked")?
    );
    registry_dir(&name).map_or_else(|| metadata_dir(&manifest_dir), Ok)
}

fn locked_version(lock: &str) -> Option<&str> {
    let (_, package) = lock.split_once("name = \"envoy-types\"\nversion = \"")?;
    package.split('"').next()
}

fn registry_dir(name: &str) -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))?;
    let registries = fs::read_dir(home.join("registry/src")).ok()?;
    registries
        .flatten()
        .map(|registry| registry.path().join(name))
        .find(|dir| dir.join(DESCRIPTORS).is_file())
}

fn metadata_dir(manifest_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let output = std::process::Command::new(env::var("CARGO")?)
        .args(["metadata", "--format-version=1", "--filter-platform", &env::var("TARGET")?])
        .current_dir(manifest_dir)
        .output()?;
    let json = String::from_utf8(output.stdout)?;
    // The package's own manifest is the first one after its name.
    let package = json.split_once("{\"name\":\"envoy-types\"").map(|(_, rest)| rest);
    let path = package
        .and_then(|rest| rest.split_once("\"manifest_path\":\""))
        .and_then(|(_, path)| path.split_once("Cargo.toml\""))
        .ok_or("cargo metadata does not tell where envoy-types is")?;
    Ok(PathBuf::from(path.0))
}

/// Matchers of the matching API that `envoy-types` lacks (xds/type/matcher/v3: cel.proto, http_inputs.proto, ip.proto,
/// domain.proto).
fn matchers() -> [DescriptorProto; 4] {
    const ON_MATCH: &str = ".xds.type.matcher.v3.Matcher.OnMatch";
    let message = |name: &str, field: Vec<FieldDescriptorProto>, nested_type: Vec<DescriptorProto>| {
        DescriptorProto { name: Some(name.to_owned()), field, nested_type, ..DescriptorProto::default() }
    };
    let range = message(
        "IPRangeMatcher",
        vec![
            field("ranges", 1, Type::Message, ".xds.core.v3.CidrRange", true),
            field("on_match", 2, Type::Message, ON_MATCH, false),
            field("exclusive", 3, Type::Bool, "", false),
        ],
        Vec::new(),
    );
    let domain = message(
        "DomainMatcher",
        vec![
            field("domains", 1, Type::String, "", true),
            field("on_match", 2, Type::Message, ON_MATCH, false),
        ],
        Vec::new(),
    );
    let ranges =
        field("range_matchers", 1, Type::Message, ".xds.type.matcher.v3.IPMatcher.IPRangeMatcher", true);
    let domains = ".xds.type.matcher.v3.ServerNameMatcher.DomainMatcher";
    let domains = field("domain_matchers", 1, Type::Message, domains, true);
    let cel = vec![
        field("expr_match", 1, Type::Message, ".xds.type.v3.CelExpression", false),
        field("description", 2, Type::String, "", false),
    ];
    [
        message("CelMatcher", cel, Vec::new()),
        message("HttpAttributesCelMatchInput", Vec::new(), Vec::new()),
        message("IPMatcher", vec![ranges], vec![range]),
        message("ServerNameMatcher", vec![domains], vec![domain]),
    ]
}

fn field(name: &str, number: i32, kind: Type, type_name: &str, repeated: bool) -> FieldDescriptorProto {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    let json_name = words.fold(first, |name, word| {
        let (initial, rest) = word.split_at(1);
        name + &initial.to_uppercase() + rest
    });
    FieldDescriptorProto {
        name: Some(name.to_owned()),
        json_name: Some(json_name),
        number: Some(number),
        label: Some(if repeated { Label::Repeated } else { Label::Optional } as i32),
        r#type: Some(kind as i32),
        type_name: (!type_name.is_empty()).then(|| type_name.to_owned()),
        ..FieldDescriptorProto::default()
    }
}

enum Definition<'a> {
    Message(&'a DescriptorProto),
    Enum(&'a EnumDescriptorProto),
}

/// Adds a message and what is nested in it, by full names with a leading dot.
fn collect<'a>(scope: &str, message: &'a DescriptorProto, types: &mut BTreeMap<String, Definition<'a>>) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        collect(&name, nested, types);
    }
    for kind in &message.enum_type {
        types.insert(format!("{name}.{}", kind.name()), Definition::Enum(kind));
    }
    types.insert(name, Definition::Message(message));
}

#[derive(Default)]
struct Table {
    types: Vec<u8>,
    fields: Vec<u8>,
    field_count: u32,
    values: Vec<u8>,
    value_count: u32,
    strings: Vec<u8>,
    known: HashMap<Vec<u8>, u32>,
    options: Options,
}

impl Table {
    fn of(types: &BTreeMap<String, Definition<'_>>, options: Options) -> Result<Table, Box<dyn Error>> {
        let indices: HashMap<&str, u32> = types.keys().map(String::as_str).zip(0..).collect();
        let mut table = Table { options, ..Table::default() };
        for (name, definition) in types {
            let name = name.trim_start_matches('.');
            let (kind, first, count) = match definition {
                Definition::Message(message) => {
                    let first = table.field_count;
                    for field in &message.field {
                        table.field(name, field, message, types, &indices)?;
                    }
                    let map_entry = message.options.as_ref().is_some_and(|options| options.map_entry());
                    (u8::from(map_entry), first, message.field.len())
                }
                Definition::Enum(kind) => {
                    let first = table.value_count;
                    for value in &kind.value {
                        table.bytes_into(value.name().as_bytes(), |table| &mut table.values)?;
                        table.values.extend(value.number().to_le_bytes());
                        table.value_count += 1;
                    }
                    (2, first, kind.value.len())
                }
            };
            table.bytes_into(name.as_bytes(), |table| &mut table.types)?;
            table.types.extend(first.to_le_bytes());
            table.types.extend(u16::try_from(count)?.to_le_bytes());
            table.types.extend([kind, 0]);
        }
        Ok(table)
    }

    fn field(
        &mut self,
        type_name: &str,
        field: &FieldDescriptorProto,
        message: &DescriptorProto,
        types: &BTreeMap<String, Definition<'_>>,
        indices: &HashMap<&str, u32>,
    ) -> Result<(), Box<dyn Error>> {
        let type_index = match field.r#type() {
            Type::Message | Type::Enum => *indices.get(field.type_name()).ok_or("a type is missing")?,
            Type::Group => return Err("groups are not supported".into()),
            _ => 0,
        };
        let is_map = matches!(types.get(field.type_name()), Some(Definition::Message(entry))
            if entry.options.as_ref().is_some_and(|options| options.map_entry()));
        let cardinality = match field.label() {
            Label::Repeated if is_map => 2,
            Label::Repeated => 1,
            _ => 0u8,
        };
        let oneof = field.oneof_index.filter(|_| !field.proto3_optional());
        let oneof = oneof.and_then(|index| message.oneof_decl.get(usize::try_from(index).ok()?));
        let oneof = oneof.map_or("", |oneof| oneof.name());
        let full_name = format!("{type_name}.{}", field.name());
        let secret = self.options.secrets.contains(&full_name);
        let required = self.options.required.contains(&format!("{type_name}.{oneof}"));
        let rules = self.options.rules.get(&full_name).cloned().unwrap_or_default();
        for bytes in [field.name().as_bytes(), field.json_name().as_bytes(), oneof.as_bytes(), &rules] {
            self.bytes_into(bytes, |table| &mut table.fields)?;
        }
        self.fields.extend(u32::try_from(field.number())?.to_le_bytes());
        self.fields.extend(type_index.to_le_bytes());
        let kind = u8::try_from(field.r#type() as i32)?;
        let flags = u8::from(required) | u8::from(field.proto3_optional()) << 1;
        self.fields.extend([kind, cardinality, u8::from(secret), flags]);
        self.field_count += 1;
        Ok(())
    }

    /// Appends a reference to a string or to bytes: offset in the pool and length.
    fn bytes_into(
        &mut self,
        bytes: &[u8],
        section: fn(&mut Table) -> &mut Vec<u8>,
    ) -> Result<(), Box<dyn Error>> {
        let offset = match self.known.get(bytes) {
            Some(offset) => *offset,
            None => {
                let offset = u32::try_from(self.strings.len())?;
                self.strings.extend(bytes);
                self.known.insert(bytes.to_owned(), offset);
                offset
            }
        };
        let length = u32::try_from(bytes.len())?;
        section(self).extend(offset.to_le_bytes().into_iter().chain(length.to_le_bytes()));
        Ok(())
    }

    fn finish(self, type_count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for count in [type_count, self.field_count as usize, self.value_count as usize] {
            bytes.extend((count as u32).to_le_bytes());
        }
        for section in [&self.types, &self.fields, &self.values, &self.strings] {
            bytes.extend(section);
        }
        bytes
    }
}

use options::Options;

/// The options that matter, which `prost_types` does not have since they are extensions.
mod options {
    use prost::Message;
    use std::collections::{HashMap, HashSet};

    /// What options say, by full names.
    #[derive(Default)]
    pub(crate) struct Options {
        /// Fields that `udpa.annotations.sensitive` marks.
        pub(crate) secrets: HashSet<String>,
        /// `validate.rules` of fields, encoded.
        pub(crate) rules: HashMap<String, Vec<u8>>,
        /// Oneofs of which `validate.required` wants one member to be given.
        pub(crate) required: HashSet<String>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Files {
        #[prost(message, repeated, tag = "1")]
        file: Vec<File>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct File {
        #[prost(string, optional, tag = "2")]
        package: Option<String>,
        #[prost(message, repeated, tag = "4")]
        messages: Vec<Type>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Type {
        #[prost(string, optional, tag = "1")]
        name: Option<String>,
        #[prost(message, repeated, tag = "2")]
        fields: Vec<Field>,
        #[prost(message, repeated, tag = "3")]
        nested: Vec<Type>,
        #[prost(message, repeated, tag = "8")]
        oneofs: Vec<Oneof>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Field {
        #[prost(string, optional, tag = "1")]
        name: Option<String>,
        #[prost(message, optional, tag = "8")]
        options: Option<FieldOptions>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct FieldOptions {
        /// `validate.rules`
        #[prost(bytes = "vec", optional, tag = "1071")]
        rules: Option<Vec<u8>>,
        /// `udpa.annotations.sensitive`
        #[prost(bool, optional, tag = "76569463")]
        sensitive: Option<bool>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Oneof {
        #[prost(string, optional, tag = "1")]
        name: Option<String>,
        #[prost(message, optional, tag = "2")]
        options: Option<OneofOptions>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct OneofOptions {
        /// `validate.required`
        #[prost(bool, optional, tag = "1071")]
        required: Option<bool>,
    }

    pub(crate) fn of(files: &Files) -> Options {
        let mut found = Options::default();
        for file in &files.file {
            file.messages.iter().for_each(|message| collect(file.package(), message, &mut found));
        }
        found
    }

    fn collect(scope: &str, message: &Type, found: &mut Options) {
        let name = format!("{scope}.{}", message.name());
        message.nested.iter().for_each(|nested| collect(&name, nested, found));
        for field in &message.fields {
            let Some(options) = &field.options else { continue };
            let name = format!("{name}.{}", field.name());
            if options.sensitive() {
                found.secrets.insert(name.clone());
            }
            if let Some(rules) = &options.rules {
                found.rules.insert(name, rules.clone());
            }
        }
        for oneof in &message.oneofs {
            if oneof.options.as_ref().is_some_and(OneofOptions::required) {
                found.required.insert(format!("{name}.{}", oneof.name()));
            }
        }
    }
}
