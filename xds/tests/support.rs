//! `docs/reference/envoy-support.md` says of every field of Envoy's messages what becomes of it. The page is made from
//! the code: messages are taken apart by patterns in which the compiler counts the fields, and what such a pattern
//! binds, leaves out or hands to `refuse!` or `refused!` is what the page says. So it can't say anything else than the code does.
//!
//! `cargo test --profile ci -p sixfold-xds --test support -- --ignored` writes the page anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use sixfold_xds_api::definition;
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{
    Arm, ExprField, FieldPat, Ident, ItemFn, Macro, Member, Pat, PatStruct, PatTupleStruct, Token, UseTree,
};

const PAGE: &str = "../docs/reference/envoy-support.md";

/// Folders whose code takes messages apart.
const SOURCES: [&str; 3] = ["src", "api/src", "../plugins/src/envoy"];

/// What the page is about: it must say something of each.
const ROOTS: [&str; 10] = [
    "envoy.config.bootstrap.v3.Bootstrap",
    "envoy.config.listener.v3.Listener",
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    "envoy.config.route.v3.RouteConfiguration",
    "envoy.config.route.v3.RouteAction",
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.endpoint.v3.ClusterLoadAssignment",
    "envoy.extensions.filters.http.fault.v3.HTTPFault",
    "envoy.extensions.filters.http.cors.v3.CorsPolicy",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Supported,
    Ignored,
    Refused,
}

/// Taken out of the encoded message before that is decoded (`xds/api/src/wire.rs`).
const FROM_WIRE: [(&str, &str); 1] = [("envoy.config.route.v3.VirtualHost", "routes")];

/// What the code says, by names without case and underscores, as modules and messages are spelled differently.
#[derive(Default)]
struct Record {
    /// Of each message its fields or oneofs.
    messages: BTreeMap<String, BTreeMap<String, State>>,
    /// Members of oneofs that are matched, and whether any match takes them.
    members: BTreeMap<String, State>,
}

/// One file, or one function of it.
struct Reader<'r> {
    record: &'r mut Record,
    imports: BTreeMap<String, String>,
    /// Fields that this folder reads by name, for those that a pattern leaves to somebody else.
    read: &'r BTreeSet<String>,
    /// Fields that files read by name, by the messages that they import.
    readers: &'r BTreeMap<String, BTreeSet<String>>,
    /// Names that the function refuses.
    refused: BTreeSet<String>,
    /// Names that the arm of the match refuses.
    arm: BTreeSet<String>,
}

fn normal(path: &str) -> String {
    path.replace("r#", "").replace('_', "").to_lowercase()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            sources(&path, found);
        } else if name.ends_with(".rs") && !name.starts_with("test") {
            found.push(path);
        }
    }
}

fn parsed(path: &Path) -> syn::File {
    let text = std::fs::read_to_string(path).unwrap();
    syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Names by which fields are read, and texts that a field is refused with.
#[derive(Default)]
struct Names {
    read: BTreeSet<String>,
    refused: BTreeSet<String>,
}

impl<'a> Visit<'a> for Names {
    fn visit_expr_field(&mut self, field: &'a ExprField) {
        if let Member::Named(name) = &field.member {
            self.read.insert(normal(&name.to_string()));
        }
        visit::visit_expr_field(self, field);
    }

    /// `ConfigError::field("name", "is not supported")`, a closure of that called `unsupported`, and
    /// `refuse::unset(value, "name")`.
    fn visit_expr_call(&mut self, call: &'a syn::ExprCall) {
        let text = |at: usize| match call.args.iter().nth(at) {
            Some(syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. })) => Some(text.value()),
            _ => None,
        };
        let callee = match &*call.func {
            syn::Expr::Path(path) => path.path.segments.iter().map(|s| s.ident.to_string()).collect(),
            _ => Vec::new(),
        };
        match callee.join("::").as_str() {
            "ConfigError::field" if text(1).is_some_and(|text| text.starts_with("is not supported")) => {
                self.refused.extend(text(0).map(|name| normal(&name)));
            }
            "unsupported" => self.refused.extend(text(0).map(|name| normal(&name))),
            "refuse::unset" => self.refused.extend(text(1).map(|name| normal(&name))),
            _ => {}
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_macro(&mut self, given: &'a Macro) {
        if given.path.segments.last().is_some_and(|s| s.ident == "refuse" || s.ident == "refused")
            && let Ok(names) = given.parse_body_with(Punctuated::<Ident, Token![,]>::parse_terminated)
        {
            self.refused.extend(names.iter().map(|name| normal(&name.to_string())));
        }
    }
}

fn names(file: &syn::File) -> Names {
    let mut names = Names::default();
    names.visit_file(file);
    names
}

fn ident(name: &Ident) -> Pat {
    let ident = name.clone();
    Pat::Ident(syn::PatIdent { attrs: Vec::new(), by_ref: None, mutability: None, ident, subpat: None })
}

impl Reader<'_> {
    fn import(&mut self, tree: &UseTree, before: &str) {
        match tree {
            UseTree::Path(path) => self.import(&path.tree, &format!("{before}{}.", path.ident)),
            UseTree::Name(name) => {
                self.imports.insert(name.ident.to_string(), format!("{before}{}", name.ident));
            }
            UseTree::Rename(name) => {
                self.imports.insert(name.rename.to_string(), format!("{before}{}", name.ident));
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.import(tree, before)),
            UseTree::Glob(_) => {}
        }
    }

    /// The name in the definitions that a path stands for, if it is one of theirs.
    fn resolved(&self, path: &syn::Path) -> Option<String> {
        let mut segments = path.segments.iter().map(|s| s.ident.to_string());
        let first = self.imports.get(&segments.next()?)?;
        let (_, defined) = first.split_once("pb.")?;
        let rest: Vec<String> = segments.collect();
        Some(normal(&[&[defined.to_owned()], &rest[..]].concat().join(".")))
    }

    fn is_read(&self, message: &str, field: &str) -> bool {
        self.read.contains(field) || self.readers.get(message).is_some_and(|names| names.contains(field))
    }

    fn note(&mut self, message: &str, field: &str, state: State) {
        let fields = self.record.messages.entry(message.to_owned()).or_default();
        let known = fields.entry(normal(field)).or_insert(state);
        // Whoever takes it apart elsewhere may use what is left out here.
        *known = (*known).min(state);
    }

    /// A pattern of `matches!` takes what it names.
    fn looked_for(&mut self, given: &Macro) {
        let parse = |input: syn::parse::ParseStream<'_>| {
            input.parse::<syn::Expr>()?;
            input.parse::<Token![,]>()?;
            let pattern = Pat::parse_multi_with_leading_vert(input)?;
            if input.parse::<Option<Token![if]>>()?.is_some() {
                input.parse::<syn::Expr>()?;
            }
            input.parse::<Option<Token![,]>>()?;
            Ok(pattern)
        };
        let pattern = given.parse_body_with(parse).expect("matches!");
        let outer = std::mem::take(&mut self.arm);
        self.visit_pat(&pattern);
        self.arm = outer;
    }

    fn take_apart<'f>(&mut self, message: &str, fields: impl Iterator<Item = &'f FieldPat>) {
        for field in fields {
            let Member::Named(name) = &field.member else { continue };
            let name = name.to_string();
            let bound = match &*field.pat {
                Pat::Ident(bound) => Some(normal(&bound.ident.to_string())),
                Pat::Wild(_) => None,
                _ => Some(String::new()),
            };
            let state = match bound {
                Some(bound) if self.refused.contains(&bound) => State::Refused,
                Some(_) => State::Supported,
                None if self.is_read(message, &normal(&name)) => State::Supported,
                None => State::Ignored,
            };
            self.note(message, &name, state);
        }
    }
}

impl<'a> Visit<'a> for Reader<'_> {
    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.import(&item.tree, "");
    }

    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if item.ident != "tests" {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'a ItemFn) {
        let mut names = Names::default();
        names.visit_item_fn(item);
        let outer = std::mem::replace(&mut self.refused, names.refused);
        visit::visit_item_fn(self, item);
        self.refused = outer;
    }

    fn visit_impl_item_fn(&mut self, item: &'a syn::ImplItemFn) {
        let mut names = Names::default();
        names.visit_impl_item_fn(item);
        let outer = std::mem::replace(&mut self.refused, names.refused);
        visit::visit_impl_item_fn(self, item);
        self.refused = outer;
    }

    fn visit_pat_struct(&mut self, pattern: &'a PatStruct) {
        if let Some(message) = self.resolved(&pattern.path) {
            self.take_apart(&message, pattern.fields.iter());
        }
        visit::visit_pat_struct(self, pattern);
    }

    fn visit_arm(&mut self, arm: &'a Arm) {
        let mut names = Names::default();
        names.visit_expr(&arm.body);
        let outer = std::mem::replace(&mut self.arm, names.refused);
        self.visit_pat(&arm.pat);
        self.arm = outer;
        self.visit_expr(&arm.body);
    }

    fn visit_pat_tuple_struct(&mut self, pattern: &'a PatTupleStruct) {
        if let Some(member) = self.resolved(&pattern.path) {
            // An arm may also refuse something within what it takes.
            let itself = member.rsplit('.').next().unwrap_or_default();
            let state = if self.arm.contains(itself) { State::Refused } else { State::Supported };
            let known = self.record.members.entry(member).or_insert(state);
            *known = (*known).min(state);
        }
        visit::visit_pat_tuple_struct(self, pattern);
    }

    /// `destructure!(Message { used } refusing { refused } = value)`, and what `matches!` looks for.
    fn visit_macro(&mut self, given: &'a Macro) {
        let called = |name: &str| given.path.segments.last().is_some_and(|s| s.ident == name);
        if called("matches") {
            self.looked_for(given);
        }
        if !called("destructure") {
            return;
        }
        let parse = |input: syn::parse::ParseStream<'_>| {
            let message: syn::Path = input.call(syn::Path::parse_mod_style)?;
            let (used, refused);
            syn::braced!(used in input);
            let used = Punctuated::<FieldPat, Token![,]>::parse_terminated_with(&used, |input| {
                let member: Ident = input.parse()?;
                let colon: Option<Token![:]> = input.parse()?;
                let pat = match colon {
                    Some(_) => Pat::parse_single(input)?,
                    None => ident(&member),
                };
                Ok(FieldPat { attrs: Vec::new(), member: member.into(), colon_token: colon, pat: pat.into() })
            })?;
            input.parse::<Ident>()?;
            syn::braced!(refused in input);
            let refused = Punctuated::<Ident, Token![,]>::parse_terminated(&refused)?;
            input.parse::<Token![=]>()?;
            input.parse::<syn::Expr>()?;
            Ok((message, used, refused))
        };
        let (message, used, refused) = given.parse_body_with(parse).expect("destructure!");
        let Some(message) = self.resolved(&message) else { return };
        self.take_apart(&message, used.iter());
        refused.iter().for_each(|name| self.note(&message, &name.to_string(), State::Refused));
    }
}

/// The messages that a file names.
fn imported(file: &syn::File) -> Vec<String> {
    let (mut record, nothing) = (Record::default(), BTreeSet::new());
    let (imports, refused, readers) = Default::default();
    let mut reader = Reader {
        record: &mut record,
        imports,
        read: &nothing,
        readers: &readers,
        refused,
        arm: BTreeSet::new(),
    };
    reader.visit_file(file);
    reader.imports.values().filter_map(|path| Some(normal(path.split_once("pb.")?.1))).collect()
}

fn record() -> Record {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut record = Record::default();
    for folder in SOURCES {
        let mut files = Vec::new();
        sources(&root.join(folder), &mut files);
        let files: Vec<_> = files.iter().map(|path| (path, parsed(path))).collect();
        let mut read: BTreeMap<&Path, BTreeSet<String>> = BTreeMap::new();
        let mut readers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (path, file) in &files {
            let names = names(file).read;
            for message in imported(file) {
                readers.entry(message).or_default().extend(names.iter().cloned());
            }
            read.entry(path.parent().unwrap()).or_default().extend(names);
        }
        for (path, file) in &files {
            let (read, readers) = (&read[path.parent().unwrap()], &readers);
            let (imports, refused) = Default::default();
            let record = &mut record;
            Reader { record, imports, read, readers, refused, arm: BTreeSet::new() }.visit_file(file);
        }
    }
    record
}

/// What becomes of the fields of a message, by their names; `None` where no code takes it apart.
fn fields_of(record: &Record, message: &str) -> Option<Vec<(&'static str, State)>> {
    let known = record.messages.get(&normal(message))?;
    let state = |field: &definition::Field| {
        let one_of_several = match field.oneof {
            "" => None,
            oneof => {
                let of = record.members.get(&normal(&format!("{message}.{oneof}.{}", field.name))).copied();
                // Members that are matched nowhere fall to whatever is done with the others.
                of.or_else(|| known.get(&normal(oneof)).copied())
            }
        };
        let from_wire = FROM_WIRE.contains(&(message, field.name)).then_some(State::Supported);
        from_wire.or(one_of_several).or_else(|| known.get(&normal(field.name)).copied())
    };
    let fields = definition::fields(message)?;
    // What no pattern counts is unknown: it would be left out in silence.
    let each = fields.iter().map(|field| (field.name, state(field).unwrap_or(State::Ignored)));
    Some(each.collect())
}

fn page() -> String {
    let record = record();
    let mut page = String::from(
        "# Envoy's messages, field by field\n\n\
         What becomes of each field: *supported* ones mean what Envoy's definition says, *ignored* ones may be set and change nothing, and a \
         message in which a *refused* one is set is refused as a whole, with the field's name.\nOf an extension that is not listed the whole is \
         refused by its name. The page is made from the code (`xds/tests/support.rs`), and a test fails when it is out of date.\n",
    );
    page.push_str("\n## What Istio sends beside\n\n");
    page.push_str("These are left out of what they stand in, and the log says so once for each:\n\n");
    for (place, config, loss) in sixfold_xds::skipped() {
        writeln!(page, "- {place} `{config}`: {loss}").unwrap();
    }
    page.push_str(
        "\nThese come when its users ask for them, and are refused by name, with what they stand in:\n\n",
    );
    for (place, config) in sixfold_xds::REFUSED {
        writeln!(page, "- {place} `{config}`").unwrap();
    }
    page.push_str(
        "\nSo are the listeners and addresses of HBONE (`internal_listener`, `envoy_internal_address`) and network filters that come by \
         themselves (`config_discovery`).\n",
    );
    let mut all: Vec<&str> = definition::names()
        .filter(|name| {
            ["envoy.", "io.istio.", "istio.", "stats."].iter().any(|package| name.starts_with(package))
        })
        .collect();
    all.sort_by_key(|name| (ROOTS.iter().position(|root| root == name).unwrap_or(ROOTS.len()), *name));
    for message in all {
        let Some(fields) = fields_of(&record, message).filter(|fields| !fields.is_empty()) else { continue };
        write!(page, "\n## {message}\n\n").unwrap();
        for (state, word) in
            [(State::Supported, "supported"), (State::Ignored, "ignored"), (State::Refused, "refused")]
        {
            let names: Vec<String> =
                fields.iter().filter(|(_, s)| *s == state).map(|(name, _)| format!("`{name}`")).collect();
            if !names.is_empty() {
                writeln!(page, "- {word}: {}", names.join(", ")).unwrap();
            }
        }
    }
    page
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE)
}

#[test]
fn the_page_says_what_the_code_does() {
    let written = std::fs::read_to_string(path()).unwrap();
    let made = page();
    let differ = written.lines().zip(made.lines()).find(|(written, made)| written != made);
    assert_eq!(differ, None, "write the page anew: see the head of this file");
    assert_eq!(
        written.lines().count(),
        made.lines().count(),
        "write the page anew: see the head of this file"
    );
}

#[test]
fn every_root_is_taken_apart() {
    let record = record();
    let of = |message: &str, field: &str| {
        let fields = fields_of(&record, message).unwrap_or_else(|| panic!("nothing takes {message} apart"));
        fields.iter().find(|(name, _)| *name == field).unwrap().1
    };
    for root in ROOTS {
        assert!(fields_of(&record, root).is_some(), "nothing takes {root} apart");
    }
    let cluster = "envoy.config.cluster.v3.Cluster";
    assert_eq!(of(cluster, "lb_subset_config"), State::Supported);
    assert_eq!(of(cluster, "name"), State::Supported, "by another part of the module");
    let assignment = "envoy.config.endpoint.v3.ClusterLoadAssignment";
    assert_eq!(of(assignment, "cluster_name"), State::Supported, "by another module");
    assert_eq!(of(cluster, "wait_for_warm_on_init"), State::Ignored);
    assert_eq!(of(cluster, "preconnect_policy"), State::Refused);
    let listener = "envoy.config.listener.v3.Listener";
    assert_eq!(of(listener, "tcp_fast_open_queue_length"), State::Refused, "one of several told together");
    let source = "envoy.config.core.v3.ConfigSource";
    assert_eq!(of(source, "path_config_source"), State::Supported, "a member that some matches refuse");
    assert_eq!(of(source, "api_config_source"), State::Supported);
    let action = "envoy.config.route.v3.RouteAction";
    assert_eq!(of(action, "cluster_header"), State::Supported, "a member of a oneof");
    assert_eq!(of(action, "cluster_specifier_plugin"), State::Refused, "another");
    let layer = "envoy.config.bootstrap.v3.RuntimeLayer";
    assert_eq!(of(layer, "rtds_layer"), State::Refused, "by a closure");
    assert_eq!(of(layer, "disk_layer"), State::Refused);
    assert_eq!(of(layer, "static_layer"), State::Supported);
    let service = "envoy.config.core.v3.GrpcService";
    assert_eq!(of(service, "google_grpc"), State::Refused, "with more than two words");
    assert_eq!(of(ROOTS[2], "strip_any_host_port"), State::Supported, "by matches!");
    let socket = "envoy.config.core.v3.SocketAddress";
    assert_eq!(of(socket, "ipv4_compat"), State::Supported, "the same in a struct");
    assert_eq!(of("envoy.config.route.v3.VirtualHost", "routes"), State::Supported, "before it is decoded");
    assert_eq!(of(ROOTS[0], "stats_eviction_interval"), State::Ignored);
}

#[test]
#[ignore = "writes the page"]
fn write_the_page() {
    std::fs::write(path(), page()).unwrap();
}
