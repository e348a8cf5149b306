//! APISIX's fault-injection: requests that are delayed or answered with an error, to see what comes of it.

use crate::apisix::{self, template};
use crate::shared::header_names;
use serde::Deserialize;
use serde_json::{Map, Value};
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::expr::Expr;
use sixfold_core::format::Format;
use sixfold_core::headers::HeaderName;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, LocalReply, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::time::Duration;

pub(crate) fn factory() -> ApisixFactory {
    let schema = include_str!("../../schemas/fault-injection.json");
    ApisixFactory::new("fault-injection", 11000, schema, FaultInjection::build)
}

#[derive(Deserialize)]
struct Config {
    abort: Option<AbortConfig>,
    delay: Option<DelayConfig>,
}

#[derive(Deserialize)]
struct AbortConfig {
    http_status: u16,
    body: Option<String>,
    #[serde(default)]
    headers: Map<String, Value>,
    percentage: Option<u8>,
    vars: Option<Vec<Value>>,
}

#[derive(Deserialize)]
struct DelayConfig {
    duration: f64,
    percentage: Option<u8>,
    vars: Option<Vec<Value>>,
}

struct FaultInjection {
    delay: Option<(Duration, Meant)>,
    abort: Option<(Abort, Meant)>,
}

struct Abort {
    status: u16,
    body: Option<Format>,
    headers: Vec<(HeaderName, Format)>,
}

/// Which requests a fault is for.
struct Meant {
    /// Of a hundred; all where none is said.
    percentage: Option<u8>,
    /// Any of these holds; without a list all are meant, with an empty one none, as in APISIX.
    when: Option<Vec<Expr>>,
}

impl FaultInjection {
    fn build(config: Config, _: &BuildContext) -> Built {
        let delay = config.delay.map(|delay| {
            let time = Duration::try_from_secs_f64(delay.duration).unwrap_or(Duration::MAX);
            Ok((time, Meant::new(delay.percentage, delay.vars)?))
        });
        let abort = config.abort.map(|abort| {
            let meant = Meant::new(abort.percentage, abort.vars)?;
            let header = |(name, value): (&String, &Value)| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                Ok((header_names::one(name, "headers")?, template(&text).in_key(name).in_key("headers")?))
            };
            let abort = Abort {
                status: abort.http_status,
                body: abort.body.as_deref().map(template).transpose().in_key("body")?,
                headers: collect(abort.headers.iter().map(header))?,
            };
            Ok((abort, meant))
        });
        let fault = FaultInjection {
            delay: delay.transpose().in_key("delay")?,
            abort: abort.transpose().in_key("abort")?,
        };
        Ok(Plugin::of(fault).rewrite(FaultInjection::rewrite).build())
    }

    fn rewrite<'a>(&'a self, stream: &'a mut Stream, _: Slot) -> Step<'a> {
        // Which requests are meant is decided when they come.
        let abort = self.abort.as_ref().filter(|(_, meant)| meant.is(stream)).map(|(abort, _)| abort);
        let delay = self.delay.as_ref().filter(|(_, meant)| meant.is(stream)).map(|(delay, _)| *delay);
        match delay.filter(|delay| !delay.is_zero()) {
            Some(delay) => Step::Wait(Box::pin(async move {
                tokio::time::sleep(delay).await;
                step(abort, stream)
            })),
            None => step(abort, stream),
        }
    }
}

fn step<'a>(abort: Option<&Abort>, stream: &Stream) -> Step<'a> {
    abort.map_or(Step::Continue, |abort| Step::Respond(abort.reply(stream)))
}

impl Abort {
    fn reply(&self, stream: &Stream) -> LocalReply {
        let body = self.body.as_ref().map(|body| apisix::value(body, stream)).unwrap_or_default();
        let mut reply = LocalReply::new(self.status, body, "");
        for (name, value) in &self.headers {
            let mut text = Vec::new();
            value.write_header(stream, &mut text);
            // What is empty is not sent, as in nginx.
            if !text.is_empty() {
                reply.headers.set(name, &text);
            }
        }
        reply
    }
}

impl Meant {
    fn new(percentage: Option<u8>, vars: Option<Vec<Value>>) -> Result<Meant, ConfigError> {
        let expr = |(index, vars): (usize, &Value)| {
            Expr::new(vars).map_err(|error| ConfigError::new(error.to_string()).in_index(index))
        };
        let when = vars.map(|vars| collect(vars.iter().enumerate().map(expr))).transpose().in_key("vars")?;
        Ok(Meant { percentage, when })
    }

    fn is(&self, stream: &Stream) -> bool {
        // An expression that can't be evaluated does not hold.
        let holds = |when: &Vec<Expr>| when.iter().any(|expr| expr.eval(stream).unwrap_or(false));
        self.percentage.is_none_or(|percentage| fastrand::u8(1..=100) <= percentage)
            && self.when.as_ref().is_none_or(holds)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
    use crate::testing::{build, context, now, plugin, stream};
    use serde_json::{Value, json};
    use sixfold_core::plugin::LocalReply;
    use std::time::Duration;

    fn ask(config: Value) -> Option<LocalReply> {
        now(plugin("fault-injection", &config).rewrite(&mut stream("/?a=1", &[("x-b", "2")])))
    }

    #[test]
    fn requests_are_aborted() {
        let config = json!({"abort": {
            "http_status": 418, "body": "a is $arg_a\n",
            "headers": {"X-Text": "b is $http_x_b", "X-Number": 1.5, "X-Gone": "$arg_none"},
        }});
        let reply = ask(config).unwrap();
        assert_eq!((reply.status, &reply.body[..]), (418, &b"a is 1\n"[..]));
        let names = ["x-text", "x-number", "x-gone"].map(|name| reply.headers.get_str(name));
        assert_eq!(names, [Some("b is 2"), Some("1.5"), None]);
        assert!(ask(json!({"abort": {"http_status": 200}})).unwrap().body.is_empty());
    }

    #[test]
    fn a_share_of_requests_is_meant() {
        let aborted = |percentage: u8| {
            let config = json!({"abort": {"http_status": 500, "percentage": percentage}});
            let plugin = plugin("fault-injection", &config);
            (0..2000).filter(|_| now(plugin.rewrite(&mut stream("/", &[]))).is_some()).count()
        };
        assert_eq!([aborted(0), aborted(100)], [0, 2000]);
        let half = aborted(50);
        assert!((800..1200).contains(&half), "{half}");
    }

    #[test]
    fn requests_are_meant_by_any_of_the_expressions() {
        let aborts = |vars: Value| ask(json!({"abort": {"http_status": 500, "vars": vars}})).is_some();
        assert!(aborts(json!([[["arg_a", "==", "1"]]])));
        assert!(aborts(json!([[["arg_a", "==", "2"]], [["http_x_b", "==", "2"], ["arg_a", "==", "1"]]])));
        assert!(!aborts(json!([[["arg_a", "==", "2"]]])));
        assert!(!aborts(json!([])));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_delayed_before_they_are_aborted() {
        let begun = tokio::time::Instant::now();
        let config = json!({"delay": {"duration": 0.5}, "abort": {"http_status": 503}});
        let plugin = plugin("fault-injection", &config);
        assert_eq!(plugin.rewrite(&mut stream("/", &[])).await.unwrap().status, 503);
        assert_eq!(begun.elapsed().as_millis(), 500);
        // One that is not meant is not delayed.
        for config in [
            json!({"delay": {"duration": 9, "percentage": 0}}),
            json!({"delay": {"duration": 9, "vars": [[["arg_a", "==", "2"]]]}}),
            json!({"delay": {"duration": 0}}),
        ] {
            assert!(ask(config).is_none());
        }
        assert!(begun.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn bad_configurations_are_refused() {
        let error = |config| build("fault-injection", &config, &context()).err().unwrap();
        for fault in ["abort", "delay"] {
            let mut config = json!({"abort": {"http_status": 200}, "delay": {"duration": 1}});
            config[fault]["vars"] = json!([[], [["a", "<>", 1]]]);
            let said = error(config);
            assert_eq!(said, format!("{fault}.vars[1]: invalid operator '<>'"));
        }
        let header = error(json!({"abort": {"http_status": 200, "headers": {"a b": "c"}}}));
        assert_eq!(header, "abort.headers: 'a b' is not a header name");
    }
}
