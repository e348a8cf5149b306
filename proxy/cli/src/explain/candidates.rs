//! Virtual host, route, and the routes before it.

use super::Story;
use serde_json::{Value, json};
use sixfold_core::message::strip_port;
use sixfold_core::route::Route;
use sixfold_core::router::{Explained, Lost, Passed, RouteTable};
use sixfold_core::stream::Stream;

/// Adds the virtual host and what was passed over.
pub(super) fn add(story: &mut Story, table: &RouteTable, explained: &Explained, stream: &Stream) {
    // As it was compared.
    let authority = &stream.request.authority;
    let host = if table.options.ignore_port { strip_port(authority) } else { authority.as_slice() };
    let host = explained.found.as_ref().map(|found| {
        let domain = explained.domain.map(|domain| domain.shown(host));
        json!({"name": &*found.virtual_host.name, "domain": domain})
    });
    story.insert("virtual_host".into(), host.unwrap_or(Value::Null));
    let passed = explained.passed.iter().map(|passed| passed_over(passed, stream));
    story.insert("passed_over".into(), passed.collect());
    story.insert("of_other_hosts".into(), explained.elsewhere.into());
}

fn passed_over(passed: &Passed, stream: &Stream) -> Value {
    let Passed { route, reason } = passed;
    let (reason, wanted, seen) = match reason {
        Lost::Path => {
            let path = String::from_utf8_lossy(stream.request.target.path()).into_owned();
            ("path", path_of(route), Some(path))
        }
        Lost::Condition(at) => match route.predicates.get(*at) {
            Some(predicate) => (predicate.kind(), predicate.wanted(stream), predicate.seen(stream)),
            None => ("condition", String::new(), None),
        },
        Lost::Untried => ("untried", "expressions may scan no more for this request".to_owned(), None),
    };
    json!({"route": name(route), "reason": reason, "wanted": wanted, "seen": seen})
}

/// What a route is called: its name, or APISIX's id.
fn name(route: &Route) -> &str {
    if route.ids.route.is_empty() { &route.name } else { &route.ids.route }
}

/// The path that a route is for.
fn path_of(route: &Route) -> String {
    if route.ids.uris.is_empty() {
        route.path.to_string()
    } else {
        format!("path is {}", route.ids.uris.join(" or "))
    }
}

/// A route and all that it asks for.
pub(super) fn route(route: &Route) -> Value {
    let conditions = route.predicates.iter().map(ToString::to_string);
    let conditions: Vec<String> = std::iter::once(path_of(route)).chain(conditions).collect();
    json!({
        "name": name(route),
        "title": if route.ids.route.is_empty() { Value::Null } else { Value::from(&*route.name) },
        "conditions": conditions,
        "priority": route.priority,
        "service": (!route.ids.service.is_empty()).then(|| route.ids.service.to_string()),
    })
}
