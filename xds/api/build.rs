//! Turns the descriptors that `envoy-types` ships into the compact table that `src/schema.rs` reads in place.
//!
//! The layout of the table is described there. Comments, options, services and default values are left out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

const DESCRIPTORS: &str = "src/generated/types.bin";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=ENVOY_TYPES_DIR");
    let descriptors = envoy_types_dir()?.join(DESCRIPTORS);
    println!("cargo::rerun-if-changed={}", descriptors.display());
    let bytes = fs::read(&descriptors)?;
    let files = FileDescriptorSet::decode(bytes.as_slice())?;
    let secrets = secret::fields(&secret::Files::decode(bytes.as_slice())?);
    let typed_struct = typed_struct();
    let mut types = BTreeMap::new();
    collect(".xds.type.v3", &typed_struct, &mut types);
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
    fs::write(out, Table::of(&types, secrets)?.finish(types.len()))?;
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

/// xds/type/v3/typed_struct.proto, which `envoy-types` leaves out.
fn typed_struct() -> DescriptorProto {
    let field = |name: &str, number, kind: Type| FieldDescriptorProto {
        name: Some(name.to_owned()),
        json_name: Some(if number == 1 { "typeUrl".to_owned() } else { name.to_owned() }),
        number: Some(number),
        r#type: Some(kind as i32),
        type_name: (kind == Type::Message).then(|| ".google.protobuf.Struct".to_owned()),
        ..FieldDescriptorProto::default()
    };
    DescriptorProto {
        name: Some("TypedStruct".to_owned()),
        field: vec![field("type_url", 1, Type::String), field("value", 2, Type::Message)],
        ..DescriptorProto::default()
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
    known: HashMap<String, u32>,
    /// Full names of fields that are secrets.
    secrets: HashSet<String>,
}

impl Table {
    fn of(
        types: &BTreeMap<String, Definition<'_>>,
        secrets: HashSet<String>,
    ) -> Result<Table, Box<dyn Error>> {
        let indices: HashMap<&str, u32> = types.keys().map(String::as_str).zip(0..).collect();
        let mut table = Table { secrets, ..Table::default() };
        for (name, definition) in types {
            let name = name.trim_start_matches('.');
            let (kind, first, count) = match definition {
                Definition::Message(message) => {
                    let first = table.field_count;
                    for field in &message.field {
                        let secret = table.secrets.contains(&format!("{name}.{}", field.name()));
                        table.field(field, message, types, &indices, secret)?;
                    }
                    let map_entry = message.options.as_ref().is_some_and(|options| options.map_entry());
                    (u8::from(map_entry), first, message.field.len())
                }
                Definition::Enum(kind) => {
                    let first = table.value_count;
                    for value in &kind.value {
                        table.string_into(value.name(), |table| &mut table.values)?;
                        table.values.extend(value.number().to_le_bytes());
                        table.value_count += 1;
                    }
                    (2, first, kind.value.len())
                }
            };
            table.string_into(name, |table| &mut table.types)?;
            table.types.extend(first.to_le_bytes());
            table.types.extend(u16::try_from(count)?.to_le_bytes());
            table.types.extend([kind, 0]);
        }
        Ok(table)
    }

    fn field(
        &mut self,
        field: &FieldDescriptorProto,
        message: &DescriptorProto,
        types: &BTreeMap<String, Definition<'_>>,
        indices: &HashMap<&str, u32>,
        secret: bool,
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
        self.string_into(field.name(), |table| &mut table.fields)?;
        self.string_into(field.json_name(), |table| &mut table.fields)?;
        self.string_into(oneof.map_or("", |oneof| oneof.name()), |table| &mut table.fields)?;
        self.fields.extend(u32::try_from(field.number())?.to_le_bytes());
        self.fields.extend(type_index.to_le_bytes());
        self.fields.extend([u8::try_from(field.r#type() as i32)?, cardinality, u8::from(secret), 0]);
        self.field_count += 1;
        Ok(())
    }

    /// Appends a reference to a string: offset in the pool and length.
    fn string_into(
        &mut self,
        text: &str,
        section: fn(&mut Table) -> &mut Vec<u8>,
    ) -> Result<(), Box<dyn Error>> {
        let offset = match self.known.get(text) {
            Some(offset) => *offset,
            None => {
                let offset = u32::try_from(self.strings.len())?;
                self.strings.extend(text.as_bytes());
                self.known.insert(text.to_owned(), offset);
                offset
            }
        };
        let length = u32::try_from(text.len())?;
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

/// The one option of fields that matters, which `prost_types` does not have since it is an extension.
mod secret {
    use prost::Message;
    use std::collections::HashSet;

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
    }

    #[derive(Clone, PartialEq, Message)]
    struct Field {
        #[prost(string, optional, tag = "1")]
        name: Option<String>,
        #[prost(message, optional, tag = "8")]
        options: Option<Options>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Options {
        /// `udpa.annotations.sensitive`
        #[prost(bool, optional, tag = "76569463")]
        sensitive: Option<bool>,
    }

    /// Full names of the fields that are marked.
    pub(crate) fn fields(files: &Files) -> HashSet<String> {
        let mut found = HashSet::new();
        for file in &files.file {
            file.messages.iter().for_each(|message| collect(file.package(), message, &mut found));
        }
        found
    }

    fn collect(scope: &str, message: &Type, found: &mut HashSet<String>) {
        let name = format!("{scope}.{}", message.name());
        message.nested.iter().for_each(|nested| collect(&name, nested, found));
        let marked = |field: &&Field| field.options.as_ref().is_some_and(Options::sensitive);
        found.extend(message.fields.iter().filter(marked).map(|field| format!("{name}.{}", field.name())));
    }
}
