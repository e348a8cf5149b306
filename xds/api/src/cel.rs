//! Expressions (CEL) in Envoy's messages: read already, or as text.

use prost::Message;
use sixfold_core::cel::{Ast, Constant, Extras, Program};
use sixfold_core::error::{ConfigContext, ConfigError};

use crate::pb::envoy::config::core::v3::CelExpressionConfig;
use crate::pb::google::api::expr::v1alpha1::constant::ConstantKind;
use crate::pb::google::api::expr::v1alpha1::expr::create_struct::{Entry, entry::KeyKind};
use crate::pb::google::api::expr::v1alpha1::expr::{Call, CreateList, CreateStruct, ExprKind, Ident, Select};
use crate::pb::google::api::expr::v1alpha1::{CheckedExpr, Constant as ProtoConstant, Expr, ParsedExpr};
use crate::pb::google::protobuf::{Duration, Timestamp};
use crate::pb::xds::r#type::v3::{CelExpression, cel_expression::ExprSpecifier};
use crate::values::Result;
use crate::wire::decode;

const NO_COMPREHENSION: &str = "comprehensions (all, exists, exists_one, map, filter) are not supported";

/// core/v3/cel.proto CelExpressionConfig.
pub fn extras(value: &Option<CelExpressionConfig>) -> Extras {
    let Some(value) = value else { return Extras::default() };
    let CelExpressionConfig { enable_string_conversion, enable_string_concat, enable_string_functions } =
        value;
    Extras {
        string_conversion: *enable_string_conversion,
        string_concat: *enable_string_concat,
        string_functions: *enable_string_functions,
    }
}

/// An expression as text.
pub fn text(text: &str, extras: Extras) -> Result<Program> {
    Program::parse(text, extras).map_err(ConfigError::new)
}

/// An expression that was read before (syntax.proto Expr).
pub fn expr(value: &Expr, extras: Extras) -> Result<Program> {
    Program::new(&ast(value)?, extras).map_err(ConfigError::new)
}

/// One that was checked too; what types it has was only for that.
pub fn checked(value: &CheckedExpr, extras: Extras) -> Result<Program> {
    let CheckedExpr { reference_map: _, type_map: _, source_info: _, expr_version: _, expr } = value;
    self::expr(expr.as_ref().ok_or_else(|| ConfigError::field("expr", "is missing"))?, extras).in_key("expr")
}

fn parsed(value: &ParsedExpr) -> Result<Program> {
    let ParsedExpr { expr, source_info: _ } = value;
    let expr = expr.as_ref().ok_or_else(|| ConfigError::field("expr", "is missing"))?;
    self::expr(expr, Extras::default()).in_key("expr")
}

/// xds/type/v3/cel.proto CelExpression, in the form that counts if there are several.
pub fn expression(value: &CelExpression) -> Result<Program> {
    let CelExpression { cel_expr_parsed, cel_expr_checked, cel_expr_string, expr_specifier } = value;
    // Both packages write the same bytes.
    let moved = |bytes: Vec<u8>| decode::<ParsedExpr>(&bytes);
    if !cel_expr_string.is_empty() {
        text(cel_expr_string, Extras::default()).in_key("cel_expr_string")
    } else if let Some(value) = cel_expr_checked {
        let value: CheckedExpr = decode(&value.encode_to_vec())?;
        checked(&value, Extras::default()).in_key("cel_expr_checked")
    } else if let Some(value) = cel_expr_parsed {
        moved(value.encode_to_vec()).and_then(|value| parsed(&value)).in_key("cel_expr_parsed")
    } else {
        match expr_specifier {
            Some(ExprSpecifier::ParsedExpr(value)) => parsed(value).in_key("parsed_expr"),
            Some(ExprSpecifier::CheckedExpr(value)) => {
                checked(value, Extras::default()).in_key("checked_expr")
            }
            None => Err(ConfigError::new("there is no expression")),
        }
    }
}

fn ast(value: &Expr) -> Result<Ast> {
    let Expr { id: _, expr_kind } = value;
    let missing = || ConfigError::new("a part of the expression is missing");
    Ok(match expr_kind.as_ref().ok_or_else(missing)? {
        ExprKind::ConstExpr(value) => Ast::Constant(constant(value)?),
        ExprKind::IdentExpr(Ident { name }) => Ast::Ident(name.clone()),
        ExprKind::SelectExpr(select) => {
            let Select { operand, field, test_only } = &**select;
            let operand = Box::new(ast(operand.as_deref().ok_or_else(missing)?)?);
            Ast::Select { operand, field: field.clone(), test: *test_only }
        }
        ExprKind::CallExpr(call) => {
            let Call { target, function, args } = &**call;
            Ast::Call {
                target: target.as_deref().map(ast).transpose()?.map(Box::new),
                function: function.clone(),
                args: args.iter().map(ast).collect::<Result<_>>()?,
            }
        }
        // Of optional elements the CEL of Envoy knows nothing.
        ExprKind::ListExpr(CreateList { elements, optional_indices }) => {
            if !optional_indices.is_empty() {
                return Err(ConfigError::new("optional elements are not supported"));
            }
            Ast::List(elements.iter().map(ast).collect::<Result<_>>()?)
        }
        ExprKind::StructExpr(CreateStruct { message_name, entries }) => {
            if !message_name.is_empty() {
                return Err(ConfigError::new("messages can't be made"));
            }
            Ast::Map(entries.iter().map(entry).collect::<Result<_>>()?)
        }
        ExprKind::ComprehensionExpr(_) => Ast::Refused(NO_COMPREHENSION),
    })
}

fn entry(value: &Entry) -> Result<(Ast, Ast)> {
    let Entry { id: _, value, optional_entry, key_kind } = value;
    let (Some(value), Some(KeyKind::MapKey(key)), false) = (value, key_kind, *optional_entry) else {
        return Err(ConfigError::new("an entry of a map must have a key and a value"));
    };
    Ok((ast(key)?, ast(value)?))
}

fn constant(value: &ProtoConstant) -> Result<Constant> {
    let nanos = |seconds: i64, nanos: i32| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Ok(match &value.constant_kind {
        None => return Err(ConfigError::new("a constant has no value")),
        Some(ConstantKind::NullValue(_)) => Constant::Null,
        Some(ConstantKind::BoolValue(value)) => Constant::Bool(*value),
        Some(ConstantKind::Int64Value(value)) => Constant::Int(*value),
        Some(ConstantKind::Uint64Value(value)) => Constant::Uint(*value),
        Some(ConstantKind::DoubleValue(value)) => Constant::Double(*value),
        Some(ConstantKind::StringValue(value)) => Constant::String(value.clone()),
        Some(ConstantKind::BytesValue(value)) => Constant::Bytes(value.clone()),
        Some(ConstantKind::DurationValue(Duration { seconds, nanos: part })) => {
            Constant::Duration(nanos(*seconds, *part))
        }
        Some(ConstantKind::TimestampValue(Timestamp { seconds, nanos: part })) => {
            Constant::Timestamp(nanos(*seconds, *part))
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::read;
    use sixfold_core::connection::Connection;
    use sixfold_core::stream::Stream;

    fn holds(expression: &CelExpression) -> std::result::Result<bool, String> {
        let address = "127.0.0.1:1".parse().unwrap();
        let mut stream = Stream::new(std::sync::Arc::new(Connection::plain(address, address)));
        stream.request.headers.push(b"x", b"1");
        self::expression(expression).map(|program| program.holds(&stream)).map_err(|error| error.to_string())
    }

    /// `request.headers["x"] == TEXT`
    fn tree(text: &str) -> String {
        format!(
            "{{call_expr: {{function: '_==_', args: [{{call_expr: {{function: '_[_]', args: [{{select_expr: {{operand: {{ident_expr: {{name: request}}}}, field: headers}}}}, {{const_expr: {{string_value: x}}}}]}}}}, {{const_expr: {{string_value: '{text}'}}}}]}}}}"
        )
    }

    #[test]
    fn every_form_says_the_same() {
        for (text, wanted) in [("1", true), ("2", false)] {
            for form in ["parsed_expr", "checked_expr", "cel_expr_parsed", "cel_expr_checked"] {
                let value = read(&format!("{form}: {{expr: {}}}", tree(text)));
                assert_eq!(holds(&value), Ok(wanted), "{form}");
            }
            let value = read(&format!("cel_expr_string: \"request.headers['x'] == '{text}'\""));
            assert_eq!(holds(&value), Ok(wanted));
        }
        let both = read(&format!("{{cel_expr_string: 'true', cel_expr_parsed: {{expr: {}}}}}", tree("2")));
        assert_eq!(holds(&both), Ok(true), "the text counts");
    }

    #[test]
    fn every_kind_of_node_is_read() {
        let list = "{list_expr: {elements: [{const_expr: {int64_value: 1}}, {const_expr: {uint64_value: 2}}, {const_expr: {double_value: 1.5}}, {const_expr: {bytes_value: YQ==}}, {const_expr: {null_value: null}}, {const_expr: {duration_value: 1s}}, {const_expr: {timestamp_value: '2020-01-01T00:00:00Z'}}]}}";
        let map = "{struct_expr: {entries: [{map_key: {const_expr: {bool_value: true}}, value: {const_expr: {int64_value: 7}}}]}}";
        let size = |of: &str| format!("{{call_expr: {{target: {of}, function: size}}}}");
        let equal = |one: &str, other: i64| {
            format!(
                "{{call_expr: {{function: '_==_', args: [{one}, {{const_expr: {{int64_value: {other}}}}}]}}}}"
            )
        };
        for (of, wanted) in [(list, 7), (map, 1)] {
            let value = read(&format!("parsed_expr: {{expr: {}}}", equal(&size(of), wanted)));
            assert_eq!(holds(&value), Ok(true), "{of}");
        }
        let has = "{select_expr: {operand: {select_expr: {operand: {ident_expr: {name: request}}, field: headers}}, field: x, test_only: true}}";
        assert_eq!(holds(&read(&format!("parsed_expr: {{expr: {has}}}"))), Ok(true));
    }

    #[test]
    fn what_is_none_is_refused_with_its_place() {
        for (value, wanted) in [
            ("{}", "there is no expression"),
            ("parsed_expr: {}", "parsed_expr.expr: is missing"),
            ("parsed_expr: {expr: {}}", "parsed_expr.expr: a part of the expression is missing"),
            ("cel_expr_string: '1 +'", "cel_expr_string: it ends too early"),
            (
                "cel_expr_parsed: {expr: {comprehension_expr: {}}}",
                "cel_expr_parsed.expr: comprehensions (all, exists, exists_one, map, filter) are not supported",
            ),
            (
                "parsed_expr: {expr: {struct_expr: {message_name: a}}}",
                "parsed_expr.expr: messages can't be made",
            ),
        ] {
            assert_eq!(holds(&read(value)).unwrap_err(), wanted, "{value}");
        }
    }

    /// What a message may be nested is bounded by how it is read; that much fits onto a worker's stack.
    #[test]
    fn the_deepest_messages_that_are_read_fit_onto_a_stack() {
        let nested = |depth: usize, wrap: fn(Expr) -> ExprKind| {
            let start = Expr { id: 0, expr_kind: Some(ExprKind::IdentExpr(Ident { name: "a".to_owned() })) };
            let expr = (0..depth).fold(start, |expr, _| Expr { id: 0, expr_kind: Some(wrap(expr)) });
            let parsed = ParsedExpr { expr: Some(expr), source_info: None };
            let bytes = parsed.encode_to_vec();
            decode::<ParsedExpr>(&bytes)
        };
        let select = |expr| {
            let operand = Some(Box::new(expr));
            ExprKind::SelectExpr(Box::new(Select { operand, field: "b".to_owned(), test_only: false }))
        };
        let call = |expr| {
            let (target, function) = (None, "!_".to_owned());
            ExprKind::CallExpr(Box::new(Call { target, function, args: vec![expr] }))
        };
        let list =
            |expr| ExprKind::ListExpr(CreateList { elements: vec![expr], optional_indices: Vec::new() });
        let entry = |expr| {
            let key = Expr { id: 0, expr_kind: Some(ExprKind::IdentExpr(Ident { name: "k".to_owned() })) };
            let key_kind = Some(KeyKind::MapKey(key));
            let entry = Entry { id: 0, value: Some(expr), optional_entry: false, key_kind };
            ExprKind::StructExpr(CreateStruct { message_name: String::new(), entries: vec![entry] })
        };
        let all = move || {
            for wrap in [select as fn(Expr) -> ExprKind, call, list, entry] {
                let deepest = (1..500).map_while(|depth| nested(depth, wrap).ok()).last().unwrap();
                let program = parsed(&deepest).unwrap();
                let address = "127.0.0.1:1".parse().unwrap();
                assert!(
                    !program.holds(&Stream::new(std::sync::Arc::new(Connection::plain(address, address))))
                );
                assert!(nested(500, wrap).is_err());
            }
        };
        std::thread::Builder::new().stack_size(2 << 20).spawn(all).unwrap().join().unwrap();
    }
}
