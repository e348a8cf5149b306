#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::json;

use super::*;
use crate::resource::Kind;

/// The message that `schema` answers to `instance`, or `ok`.
fn answer(schema: Value, mut instance: Value) -> String {
    match Schema::compile(schema).unwrap().validate(&mut instance) {
        Ok(()) => "ok".to_owned(),
        Err(violation) => violation.message,
    }
}

#[test]
fn every_schema_of_the_program_compiles() {
    let all =
        Kind::ALL.into_iter().map(resource).chain(["vault", "aws", "gcp"].into_iter().filter_map(secret));
    for schema in all.chain([plugin_meta(), plugins_list()]) {
        assert_ne!(schema.source(), &Value::Bool(false), "{schema:?}");
    }
}

#[test]
fn types_have_luas_names() {
    let wrong = |name: &str, value: Value| answer(json!({ "type": name }), value);
    assert_eq!(wrong("string", json!(1)), "wrong type: expected string, got number");
    assert_eq!(wrong("integer", json!(1.5)), "wrong type: expected integer, got number");
    assert_eq!(wrong("object", json!([1])), "wrong type: expected object, got table");
    assert_eq!(wrong("array", json!({"a": 1})), "wrong type: expected array, got table");
    assert_eq!(wrong("boolean", json!("true")), "wrong type: expected boolean, got string");
    assert_eq!(wrong("number", Value::Null), "wrong type: expected number, got userdata");
    assert_eq!(
        answer(json!({"type": ["string", "number"]}), json!(true)),
        "wrong type: expected one of string, number, got boolean"
    );
    assert_eq!(wrong("integer", json!(2.0)), "ok");
    // Lua has one empty table for both.
    assert_eq!(wrong("object", json!([])), "ok");
    assert_eq!(wrong("array", json!({})), "ok");
}

#[test]
fn messages_about_properties() {
    let schema = json!({"properties": {"p": {"type": "string"}}, "required": ["p", "q"]});
    assert_eq!(answer(schema.clone(), json!({"q": 1})), "property \"p\" is required");
    assert_eq!(answer(schema.clone(), json!({"p": "x"})), "property \"q\" is required");
    assert_eq!(
        answer(schema, json!({"p": 1, "q": 1})),
        "property \"p\" validation failed: wrong type: expected string, got number"
    );
    let closed = json!({"properties": {"p": {}}, "additionalProperties": false});
    assert_eq!(answer(closed, json!({"p": 1, "k": 1})), "additional properties forbidden, found k");
    assert_eq!(
        answer(json!({"additionalProperties": {"type": "number"}}), json!({"k": "x"})),
        "failed to validate additional property k: wrong type: expected number, got string"
    );
    assert_eq!(
        answer(json!({"patternProperties": {"^k\\d": {"type": "number"}}}), json!({"k1": "x", "other": "y"})),
        "failed to validate k1 (matching \"^k\\\\d\"): wrong type: expected number, got string"
    );
    assert_eq!(answer(json!({"minProperties": 1}), json!({})), "expect object to have at least 1 properties");
    assert_eq!(
        answer(json!({"maxProperties": 1}), json!({"a": 1, "b": 2})),
        "expect object to have at most 1 properties"
    );
}

#[test]
fn messages_about_dependencies() {
    let list = json!({"properties": {"a": {}, "b": {}}, "dependencies": {"b": ["a"]}});
    assert_eq!(answer(list, json!({"b": 1})), "property \"a\" is required when \"b\" is set");
    let schema = json!({"dependencies": {"p": {"required": ["q"]}}});
    assert_eq!(
        answer(schema, json!({"p": 1})),
        "failed to validate dependent schema for \"p\": property \"q\" is required"
    );
}

#[test]
fn messages_about_values() {
    assert_eq!(answer(json!({"enum": ["a", 1]}), json!("b")), "matches none of the enum values");
    assert_eq!(answer(json!({"enum": ["a", 1]}), json!(1.0)), "ok");
    assert_eq!(answer(json!({"const": {"a": [1]}}), json!({"a": [2]})), "failed to check const value");
    assert_eq!(answer(json!({"minimum": 200}), json!(199)), "expected 199 to be at least 200");
    assert_eq!(answer(json!({"exclusiveMinimum": 0}), json!(-1)), "expected -1 to be greater than 0");
    assert_eq!(answer(json!({"maximum": 5}), json!(5.5)), "expected 5.5 to be at most 5");
    assert_eq!(answer(json!({"exclusiveMaximum": 5}), json!(5)), "expected 5 to be smaller than 5");
    assert_eq!(answer(json!({"multipleOf": 2}), json!(3)), "expected 3 to be a multiple of 2");
    assert_eq!(answer(json!({"multipleOf": 0.01}), json!(1.13)), "ok");
    assert_eq!(answer(json!({"minLength": 2}), json!("ä")), "string too short, expected at least 2, got 1");
    assert_eq!(answer(json!({"maxLength": 2}), json!("äöü")), "string too long, expected at most 2, got 3");
    assert_eq!(
        answer(json!({"pattern": "^\\/.*"}), json!("home")),
        r#"failed to match pattern "^\\/.*" with "home""#
    );
    assert_eq!(
        answer(json!({"type": "string", "format": "ipv4"}), json!("1.2.3")),
        "expect valid ipv4 format but got: 1.2.3"
    );
    assert_eq!(answer(json!({"format": "ipv6"}), json!("::g")), "expect valid ipv6 format but got: ::g");
    assert_eq!(answer(json!({"format": "date-time"}), json!("2026-02-01T10:00:00Z")), "ok");
    assert_eq!(answer(json!(false), json!(1)), "expect false always");
}

#[test]
fn messages_about_arrays() {
    let two = json!({"minItems": 2, "maxItems": 3, "uniqueItems": true, "items": {"type": "number"}});
    assert_eq!(answer(two.clone(), json!([1])), "expect array to have at least 2 items");
    assert_eq!(answer(two.clone(), json!({})), "expect array to have at least 2 items");
    assert_eq!(answer(two.clone(), json!([1, 2, 3, 4])), "expect array to have at most 3 items");
    assert_eq!(answer(two.clone(), json!([1, 2, 1.0])), "expected unique items but items 1 and 3 are equal");
    assert_eq!(
        answer(two, json!([1, "x"])),
        "failed to validate item 2: wrong type: expected number, got string"
    );
    let unique = json!({"uniqueItems": true});
    assert_eq!(
        answer(unique.clone(), json!(["a", {"b": 1}, "c", {"b": 1}])),
        "expected unique items but items 2 and 4 are equal"
    );
    assert_eq!(answer(unique, json!(["a", "b", "b"])), "expected unique items but items 2 and 3 are equal");
    let tuple = json!({"items": [{"type": "number"}], "additionalItems": false});
    assert_eq!(answer(tuple, json!([1, 2])), "found unexpected extra items in array");
    let tuple = json!({"items": [{"type": "number"}], "additionalItems": {"type": "string"}});
    assert_eq!(
        answer(tuple, json!([1, 2])),
        "failed to validate additional item 2: wrong type: expected string, got number"
    );
    assert_eq!(answer(json!({"contains": {"type": "string"}}), json!([1])), "failed to check contains");
    assert_eq!(answer(json!({"contains": {}}), json!([])), "check contains: empty array is invalid");
}

#[test]
fn messages_about_combinations() {
    let all = json!({"allOf": [{}, {"required": ["a"]}]});
    assert_eq!(answer(all, json!({"b": 1})), "allOf 2 failed: property \"a\" is required");
    let any = json!({"anyOf": [{"required": ["a"]}, {"required": ["b", "c"]}]});
    assert_eq!(answer(any, json!({})), r#"object matches none of the required: ["a"] or ["b","c"]"#);
    assert_eq!(
        answer(json!({"anyOf": [{"type": "string"}]}), json!(1)),
        "object matches none of the required"
    );
    let one = json!({"oneOf": [{"required": ["a"]}, {"required": ["b"]}, {"required": ["c"]}]});
    assert_eq!(answer(one.clone(), json!({})), "value should match only one schema, but matches none");
    assert_eq!(
        answer(one, json!({"a": 1, "c": 1})),
        "value should match only one schema, but matches both schemas 1 and 3"
    );
    let not = json!({"not": {"required": ["a"]}});
    assert_eq!(answer(not, json!({"a": 1})), "value wasn't supposed to match schema");
    let condition =
        json!({"if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": {"required": ["c"]}});
    assert_eq!(answer(condition.clone(), json!({"a": 1})), "then clause did not match");
    assert_eq!(answer(condition, json!({})), "else clause did not match");
    assert_eq!(answer(json!({"then": false}), json!(1)), "ok");
}

#[test]
fn defaults_are_filled_into_objects_that_exist() {
    let schema = Schema::compile(json!({"properties": {
        "a": {"type": "number", "default": 1},
        "b": {"type": "object", "default": {"x": 1}, "properties": {"y": {"default": 2}}},
        "c": {"type": "object", "properties": {"z": {"default": 3}}},
        "d": {"default": null},
    }}))
    .unwrap();
    let mut instance = json!({});
    schema.validate(&mut instance).unwrap();
    // A default is not expanded by the defaults below it, and `c` is not made up.
    assert_eq!(instance, json!({"a": 1, "b": {"x": 1}}));
    let mut instance = json!({"a": 5, "b": {}, "c": {}});
    schema.validate(&mut instance).unwrap();
    assert_eq!(instance, json!({"a": 5, "b": {"y": 2}, "c": {"z": 3}}));
    let mut instance = json!([]);
    schema.validate(&mut instance).unwrap();
    assert_eq!(instance, json!({"a": 1, "b": {"x": 1}}));
}

#[test]
fn references_to_secrets_pass_as_strings_only() {
    let string = json!({"type": "string", "minLength": 100});
    for reference in ["$env://A", "$ENV://A", "$secret://vault/1/a"] {
        assert_eq!(answer(string.clone(), json!(reference)), "ok");
    }
    assert_ne!(answer(string, json!("$envy://A")), "ok");
    assert_ne!(answer(json!({"type": "number"}), json!("$env://A")), "ok");
}

#[test]
fn a_violation_knows_its_path() {
    let mut route = json!({
        "uri": "/", "upstream": {"nodes": {"a:80": 1}, "timeout": {"connect": 0, "send": 1, "read": 1}},
    });
    let violation = resource(Kind::Route).validate(&mut route).unwrap_err();
    assert_eq!(display_path(&violation.path), "upstream.timeout.connect");
    assert_eq!(
        violation.message,
        "property \"upstream\" validation failed: property \"timeout\" validation failed: \
         property \"connect\" validation failed: expected 0 to be greater than 0"
    );
    let mut route = json!({"uri": "/", "plugins": {}, "hosts": ["a.com", "a b"]});
    let violation = resource(Kind::Route).validate(&mut route).unwrap_err();
    assert_eq!(display_path(&violation.path), "hosts[1]");
}

#[test]
fn a_schema_with_a_fault_is_refused_and_refuses() {
    let error = Schema::compile(json!({"properties": {"a": {"pattern": "("}}})).unwrap_err();
    assert_eq!(error.at, "/properties/a/pattern");
    for (schema, at) in [
        (json!({"typo": 1}), "/typo"),
        (json!({"type": "strin"}), "/type"),
        (json!({"minLength": -1}), "/minLength"),
        (json!({"allOf": [1]}), "/allOf/0"),
    ] {
        assert_eq!(Schema::compile(schema).unwrap_err().at, at);
    }
    assert!(Schema::builtin("{").validate(&mut json!({})).is_err());
}

/// What APISIX answers for its resources, as its users see it.
#[test]
fn resources_answer_as_apisix() {
    let check = |kind: Kind, mut value: Value| match resource(kind).validate(&mut value) {
        Ok(()) => "ok".to_owned(),
        Err(violation) => violation.message,
    };
    let nodes = json!({"127.0.0.1:80": 1});
    assert_eq!(
        check(Kind::Route, json!({"upstream": {"nodes": nodes}})),
        "allOf 1 failed: value should match only one schema, but matches none"
    );
    assert!(
        check(Kind::Route, json!({"uri": "/"}))
            .starts_with(r#"object matches none of the required: ["plugins","uri"]"#)
    );
    assert_eq!(
        check(Kind::Route, json!({"uri": "/", "plugins": {}, "script": "local _M = {}"})),
        "value wasn't supposed to match schema"
    );
    assert_eq!(
        check(Kind::Route, json!({"uri": "/", "upstream": {"nodes": nodes, "checks": {"passive": {}}}})),
        "property \"upstream\" validation failed: property \"checks\" validation failed: object matches none of \
         the required: [\"active\"] or [\"active\",\"passive\"]"
    );
    assert_eq!(
        check(Kind::Upstream, json!({"type": "roundrobin"})),
        "value should match only one schema, but matches none"
    );
    assert_eq!(
        check(Kind::Upstream, json!({"nodes": {"a:80": -1}})),
        "property \"nodes\" validation failed: object matches none of the required"
    );
    assert_eq!(
        check(Kind::Consumer, json!({"username": "a b"})),
        r#"property "username" validation failed: failed to match pattern "^[a-zA-Z0-9_\\-]+$" with "a b""#
    );
    assert_eq!(
        check(Kind::Ssl, json!({"cert": "x".repeat(128), "key": "x".repeat(64)})),
        "then clause did not match"
    );
    assert_eq!(
        check(Kind::Ssl, json!({"cert": "x".repeat(128), "key": "x".repeat(64), "type": "client"})),
        "ok"
    );
    assert_eq!(
        check(Kind::Route, json!({"uri": "/", "plugins": {}, "id": "a b"})),
        "property \"id\" validation failed: object matches none of the required"
    );
    assert_eq!(
        check(Kind::Route, json!({"uri": "/", "plugins": {}, "uid": 1})),
        "additional properties forbidden, found uid"
    );
    let remote = |addr: &str| check(Kind::Route, json!({"uri": "/", "plugins": {}, "remote_addr": addr}));
    for good in ["127.0.0.1", "10.0.0.0/8", "::1", "fe80::/32"] {
        assert_eq!(remote(good), "ok", "{good}");
    }
    for bad in ["127.0.0.", "10.0.0.0/33", "::g", "localhost"] {
        assert_ne!(remote(bad), "ok", "{bad}");
    }
}

/// Every fault was hidden by the one before it.
#[test]
fn all_faults_are_told_and_the_first_is_the_engines() {
    let schema = json!({
        "properties": {
            "policy": {"enum": ["local", "redis"]},
            "count": {"type": "integer", "minimum": 1},
            "list": {"items": {"type": "string"}},
            "window": {"type": "integer"},
        },
        "required": ["window"],
        "additionalProperties": false,
        "if": {"properties": {"policy": {"enum": ["redis"]}}},
        "then": {"required": ["redis_host"], "properties": {"count": {"minimum": 5}}},
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
    });
    let instance = json!({"policy": "redis", "count": 0, "list": ["x", 1, true], "cuont": 1});
    let told = |instance: &Value| {
        let schema = Schema::compile(schema.clone()).unwrap();
        let all = schema.validate_all(&mut instance.clone()).unwrap_err();
        assert_eq!(schema.validate(&mut instance.clone()).unwrap_err(), all[0]);
        all.into_iter()
            .map(|violation| {
                let hint = violation.hint.map(|hint| format!(" <{hint}>")).unwrap_or_default();
                format!("{}: {}{hint}", display_path(&violation.path), violation.message)
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        told(&instance),
        [
            "count: property \"count\" validation failed: expected 0 to be at least 1",
            "list[1]: property \"list\" validation failed: failed to validate item 2: wrong type: expected string, got number",
            "list[2]: property \"list\" validation failed: failed to validate item 3: wrong type: expected string, got boolean",
            ": property \"window\" is required",
            "cuont: additional properties forbidden, found cuont <did you mean \"count\"?>",
            ": value should match only one schema, but matches none <property \"a\" is required; or property \"b\" is required>",
            // Not that of the count once more.
            ": then clause did not match <property \"redis_host\" is required>",
        ]
    );
    let both = json!({"policy": "lcoal", "window": 1, "a": 1, "b": 1});
    assert_eq!(
        told(&both)[..1],
        [
            "policy: property \"policy\" validation failed: matches none of the enum values <did you mean \"local\"?>"
        ]
    );
}
