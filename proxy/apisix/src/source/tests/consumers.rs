//! Consumers, their groups and their credentials: who is found, and what runs for them.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use sixfold_core::plugin::{Chain, Passed, RequestPhases};

use super::*;

const CONSUMERS: &str = "\
routes:
  - {id: 1, uri: /, plugins: {knock: {}, marker: {text: of-route}}}
consumers:
  - username: jack
    group_id: g
    labels: {custom_id: j}
    plugins: {knock: {word: open}, late: {}}
  - id: jack/credentials/second
    plugins: {knock: {word: sesame}}
  - username: ann
    plugins: {knock: {word: hello}}
consumer_groups:
  - {id: g, plugins: {late: {}, other: {}}}
#END
";

/// A source whose changes are in force at once.
pub(super) struct Served {
    pub(super) source: TextSource,
    model: sixfold_core::model::Model,
}

impl Served {
    pub(super) fn new(text: &str) -> Served {
        let model = sixfold_core::model::Model::default();
        let mut served = Served { source: TextSource::new("", testing::context_of(&model)), model };
        served.change(text);
        served
    }

    /// The warnings and the faults.
    pub(super) fn change(&mut self, text: &str) -> Vec<String> {
        let Update { mut diff, refused, warnings } = self.source.update(resources(text)).unwrap();
        diff.listeners.clear();
        assert!(self.model.apply_detached(diff).is_empty());
        warnings.iter().chain(&refused).map(ToString::to_string).collect()
    }

    /// Whom a word is of, by which credential, and the plugins that run for him.
    fn knock(&self, word: &str) -> Option<(String, String, Vec<String>)> {
        let mut chain = self.source.chain_of("1").unwrap();
        let (mut phases, mut stream) = (RequestPhases::default(), testing::stream("h", "/", None));
        stream.request.headers.push(b"knock", word.as_bytes());
        loop {
            let polled =
                pin!(phases.run(&mut chain, &mut stream)).poll(&mut Context::from_waker(Waker::noop()));
            match polled {
                Poll::Ready(Passed::Done) => break,
                Poll::Ready(Passed::Identified) => {}
                _ => return None,
            }
        }
        let text = |name| String::from_utf8_lossy(stream.var(name).unwrap_or_default()).into_owned();
        let names = chain.members().iter().map(|member| member.name.to_string());
        Some((text("consumer_name"), text("credential"), names.collect()))
    }

    /// The status that a plugin answers a word with, at last in the phase `access`.
    fn answer(&self, word: &str) -> Option<u16> {
        let mut chain = self.source.chain_of("1").unwrap();
        let (mut phases, mut stream) = (RequestPhases::default(), testing::stream("h", "/", None));
        stream.request.headers.push(b"knock", word.as_bytes());
        loop {
            let polled =
                pin!(phases.run(&mut chain, &mut stream)).poll(&mut Context::from_waker(Waker::noop()));
            match polled {
                Poll::Ready(Passed::Done) => return None,
                Poll::Ready(Passed::Respond(reply)) => return Some(reply.status),
                Poll::Ready(Passed::Identified) => {}
                _ => panic!("waits"),
            }
        }
    }

    fn name_of(&self, word: &str) -> Option<String> {
        self.knock(word).map(|(name, ..)| name)
    }
}

/// The last one was whom the request was of, and nobody was told: the Admin API alone refused the second.
#[test]
fn two_with_one_key_are_warned_of() {
    let text = |second: &str| {
        format!(
            "routes:\n  - {{id: 1, uri: /, plugins: {{knock: {{}}}}}}\nconsumers:\n  \
             - {{username: ann, plugins: {{knock: {{word: same}}}}}}\n  \
             - {{username: jack, plugins: {{knock: {{word: {second}}}}}}}\n#END\n"
        )
    };
    let mut served = Served::new(&text("other"));
    let said = served.change(&text("same"));
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains("consumer \"jack\": plugins.knock: consumer \"ann\" is found by the same"),
        "{said:?}"
    );
    assert_eq!(served.change(&text("same").replace("uri: /,", "uri: /, name: a,")), Vec::<String>::new());
}

#[test]
fn consumers_are_found_and_bring_their_plugins() {
    let served = Served::new(CONSUMERS);
    let all: Vec<String> = ["knock", "other", "marker", "late"].map(str::to_owned).into();
    assert_eq!(served.knock("open"), Some(("jack".into(), String::new(), all.clone())));
    assert_eq!(served.knock("sesame"), Some(("jack".into(), "second".into(), all.clone())));
    let own = vec![all[0].clone(), all[2].clone()];
    assert_eq!(served.knock("hello"), Some(("ann".into(), String::new(), own)));
    assert_eq!(served.knock("closed"), None);
}

/// It ran once the consumer was known: a request authenticated twice, and was another consumer's by the second.
#[test]
fn a_group_authenticates_nobody() {
    let text = |of_group: &str| CONSUMERS.replace("plugins: {late: {}, other: {}}", of_group);
    let mut served = Served::new(CONSUMERS);
    let told = served.change(&text("plugins: {late: {}, knock: {}}"));
    assert!(told.len() == 1 && told[0].contains("knock does not run in a consumer group"), "{told:?}");
    let jack = served.source.source.context.compile.build.consumers.of("knock").find(b"open").unwrap();
    let brought = jack.consumer.chain(&Chain::empty());
    assert_eq!(brought.members().iter().map(|member| &*member.name).collect::<Vec<_>>(), ["late"]);
    assert_eq!(served.name_of("open").as_deref(), Some("jack"));
    let off = text("plugins: {late: {}, knock: {_meta: {disable: true}}}");
    assert_eq!(served.change(&off), [""; 0]);
}

#[test]
fn what_does_not_change_keeps_its_identity() {
    let mut served = Served::new(CONSUMERS);
    let place = served.source.source.context.compile.build.consumers.of("knock");
    let before =
        (place.find(b"open").unwrap(), place.find(b"hello").unwrap(), place.find(b"sesame").unwrap());
    served.change(&CONSUMERS.replace("word: hello", "word: bye"));
    assert!(Arc::ptr_eq(&before.0, &place.find(b"open").unwrap()));
    assert_eq!((served.name_of("hello"), served.name_of("bye")), (None, Some("ann".to_owned())));
    // Another group makes another consumer of everybody in it.
    served.change(&CONSUMERS.replace("late: {}, other: {}", "late: {}"));
    assert!(!Arc::ptr_eq(&before.0.consumer, &place.find(b"open").unwrap().consumer));
    assert!(!Arc::ptr_eq(&before.2.consumer, &place.find(b"sesame").unwrap().consumer));
    assert_eq!(served.knock("open").unwrap().2, ["knock", "marker", "late"]);
    served.change(CONSUMERS);
    let diff = update(&mut served.source, &CONSUMERS.replace("#END", "# the same\n#END"));
    assert!(diff.is_empty(), "{diff:?}");
}

/// He was not found at all, and his requests were told that nobody has his key.
#[test]
fn whose_group_is_not_there_gets_no_further() {
    let groups = "consumer_groups:\n  - {id: g, plugins: {late: {}, other: {}}}\n";
    let without = CONSUMERS.replace(groups, "");
    let wrong = CONSUMERS.replace("late: {}, other: {}", "marker: {}");
    for (text, reason) in
        [(&without, "there is no consumer group \"g\""), (&wrong, "consumer group \"g\" is wrong itself")]
    {
        let mut served = Served::new("#END\n");
        let told = served.change(text);
        assert!(told.iter().any(|told| told.contains(&format!("group_id: {reason}"))), "{told:?}");
        assert_eq!(served.answer("open"), Some(503));
        assert_eq!(served.answer("hello"), None);
        assert!(served.change(CONSUMERS).is_empty());
        assert_eq!((served.answer("open"), served.answer("sesame")), (None, None));
    }
    // What was whole before stays so.
    let mut served = Served::new(CONSUMERS);
    served.change(&without.replace("{late: {}}}\n  - id", "{}}\n  - id"));
    assert_eq!(served.answer("open"), None);
}

/// A consumer that is taken away must not be let in by what is left of it.
#[test]
fn who_is_gone_is_not_found() {
    let mut served = Served::new(CONSUMERS);
    let without = CONSUMERS.replace(
        "  - username: jack\n    group_id: g\n    labels: {custom_id: j}\n    plugins: {knock: {word: open}, late: {}}\n",
        "",
    );
    served.change(&without);
    assert_eq!((served.name_of("open"), served.name_of("sesame")), (None, None));
    assert_eq!(served.name_of("hello").as_deref(), Some("ann"));
    // He is back with all that he had.
    served.change(CONSUMERS);
    assert_eq!(served.name_of("sesame").as_deref(), Some("jack"));
    let mut fresh = Served::new("#END\n");
    let told = fresh.change(&without);
    assert!(
        told[0].ends_with("credential \"jack/credentials/second\": id: there is no consumer \"jack\""),
        "{told:?}"
    );
}

#[test]
fn of_two_with_one_key_the_last_counts() {
    let mut served = Served::new(&CONSUMERS.replace("word: hello", "word: sesame"));
    assert_eq!(served.name_of("sesame").as_deref(), Some("ann"));
    served.change(CONSUMERS);
    assert_eq!(served.name_of("sesame").as_deref(), Some("jack"));
}

/// A text that refers to a secret was the secret to whoever knew the text.
#[test]
fn a_reference_that_leads_to_nothing_lets_nobody_in() {
    let mut served = Served::new(CONSUMERS);
    for reference in ["$env://NONE", "$ENV://NONE", "$secret://vault/1/a/b"] {
        let told = served.change(&CONSUMERS.replace("word: open", &format!("word: \'{reference}\'")));
        assert!(
            told[0].contains("consumer \"jack\": plugins.knock.word: ")
                && told[0].contains("nobody authenticates"),
            "{told:?}"
        );
        assert_eq!((served.name_of("open"), served.name_of(reference)), (None, None));
        assert_eq!(served.name_of("sesame").as_deref(), Some("jack"));
    }
}

#[test]
fn what_is_wrong_is_told_in_apisixs_words() {
    let of = |consumer: &str| faults(&format!("consumers:\n  - {consumer}\n#END\n"));
    assert_eq!(
        of("{username: jack, plugins: {knock: {}}}"),
        [
            "apisix.yaml:2:32: consumer \"jack\": plugins.knock: failed to check the configuration of plugin knock err: \
          property \"word\" is required"
        ]
    );
    assert_eq!(
        of("{username: jack, plugins: {knock: {word: \'\'}}}"),
        [
            "apisix.yaml:2:40: consumer \"jack\": plugins.knock.word: failed to check the configuration of plugin knock \
          err: must not be empty"
        ]
    );
    assert!(of("{username: jack, group_id: x}")[0].ends_with("group_id: there is no consumer group \"x\""));
    assert!(of("{username: jack, uri: /}")[0].contains("additional properties forbidden, found uri"));
    let credential = of("{id: jack/credentials/c, plugins: {marker: {text: x}}}");
    assert!(
        credential[0].ends_with("only supports auth type plugins in consumer credential"),
        "{credential:?}"
    );
}

#[test]
fn who_else_has_a_key_is_told() {
    let served = Served::new(CONSUMERS);
    let consumers = &served.source.source.context.compile.build.consumers;
    let of = |word: &str, name: &str, credential: Option<&str>| {
        let plugins = serde_json::json!({"knock": {"word": word}, "marker": {"text": "x"}});
        let registry = testing::registry();
        crate::duplicate_key(plugins.as_object().unwrap(), name, credential, &registry, consumers)
    };
    let found = |of: &str| Some(format!("duplicate word of plugin knock found with {of}"));
    assert_eq!(of("open", "ann", None), found("consumer: jack"));
    assert_eq!(of("sesame", "ann", None), found("credential: second of consumer: jack"));
    assert_eq!(of("sesame", "jack", Some("third")), found("credential: second of consumer: jack"));
    assert_eq!((of("sesame", "jack", Some("second")), of("sesame", "jack", None)), (None, None));
    assert_eq!((of("new", "ann", None), of("$env://KEY", "ann", None)), (None, None));
}

#[test]
fn a_consumer_switches_a_plugin_of_the_route_off() {
    let off = CONSUMERS.replace("late: {}}\n  - id", "marker: {text: x, _meta: {disable: true}}}\n  - id");
    let served = Served::new(&off);
    let chain = served.knock("open").unwrap().2;
    assert_eq!(chain, ["knock", "other", "marker", "late"]);
    let consumers = served.source.source.context.compile.build.consumers.of("knock");
    let of_jack = consumers.find(b"open").unwrap().consumer.chain(&served.source.chain_of("1").unwrap());
    let marker = of_jack.members().iter().find(|member| &*member.name == "marker").unwrap();
    assert!(marker.plugin.is_idle());
}
