//! What a survey reads of pages, and how it ranks.

#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::{Value, json};
use xtask::survey::{Body, Ranked, bodies, reason_of};

const PAGE: &str = r#"# A page

```shell
# a comment with a ' in it
curl -i "http://127.0.0.1:9180/apisix/admin/routes/r1?ttl=5" \
  -H "X-API-KEY: $admin_key" -X PUT -d '
{
  "uri": "/a",
  "plugins": {"key-auth": {"key": "'"$KEY"'"}}
}'

curl http://127.0.0.1:9180/apisix/admin/consumers/jack/credentials/c -X PUT -d '{"plugins": {}}' | jq
curl http://127.0.0.1:9180/apisix/admin/routes/r1 -X PATCH -d '{"uri": "/b"}'
curl http://127.0.0.1:9180/apisix/admin/routes -d '{ ... }'
curl http://127.0.0.1:9080/a -d '{"no": "configuration"}'
```

1. in a list

   ```yaml title="conf/config.yaml"
   apisix:
     node_listen: 80
   ```

```yaml
routes:
  - uri: /c
#END
```

```yaml title="ic.yaml"
apiVersion: v1
```
"#;

#[test]
fn bodies_of_a_page_become_files() {
    let found = bodies(PAGE);
    let json = |body: &Body| -> (usize, Value) {
        let Body::File { line, extension: "json", text } = body else { panic!("{body:?}") };
        (*line, serde_json::from_str(text).unwrap())
    };
    let route = json!({"routes": [{"uri": "/a", "plugins": {"key-auth": {"key": "$KEY"}}, "id": "r1"}]});
    assert_eq!(json(&found[0]), (5, route));
    let consumers = json!([{"username": "jack"}, {"plugins": {}, "id": "jack/credentials/c"}]);
    assert_eq!(json(&found[1]).1, json!({"consumers": consumers}));
    assert_eq!(found[2], Body::NoJson(14));
    let yaml = |line, text: &str| Body::File { line, extension: "yaml", text: text.to_owned() };
    assert_eq!(found[3], yaml(21, "apisix:\n  node_listen: 80\n"));
    assert_eq!(found[4], yaml(26, "routes:\n  - uri: /c\n#END\n"));
    assert_eq!(found.len(), 5, "{found:?}");
}

#[test]
fn reasons_are_ranked_without_what_is_of_one_file() {
    let fault = |field: &str, reason: &str| json!({"field": field, "reason": reason});
    assert_eq!(
        reason_of(&fault("nodes[3].port", "expected 65535 to be less than 12")),
        "nodes[N].port: expected N to be less than N"
    );
    assert_eq!(reason_of(&json!({"message": "line 5"})), "line N");
    let mut ranked = Ranked::default();
    let dangling = fault("upstream_id", "there is no upstream \"5\"");
    ranked.add("a", &json!({"errors": []}));
    ranked.add("b", &json!({"errors": [dangling]}));
    ranked.add("c", &json!({"errors": [dangling, fault("plugins.x", "unknown plugin [x]")]}));
    assert_eq!(
        ranked.shown(1),
        "3 files: 1 accepted, 1 refused, 1 but for what they refer to accepted\n\
         \x20   2  upstream_id: there is no upstream  (b)\n       and 1 reasons more\n"
    );
}
