//! Metadata of plugins, and resources that nothing here has a use for.

use super::consumers::Served;
use super::*;

fn metadata(text: &str) -> String {
    format!("plugin_metadata:\n  - {text}\n#END\n")
}

#[test]
fn metadata_comes_changes_and_goes_with_its_plugins_staying() {
    let mut served = Served::new(&metadata("{id: marker, text: one}"));
    let place = served.source.source.context.compile.build.metadata.of("marker");
    let now = || place.get::<String>().map(|text| (*text).clone());
    assert_eq!(now().as_deref(), Some("one"));
    assert_eq!(served.change(&metadata("{id: marker}")), [] as [&str; 0]);
    assert_eq!(now().as_deref(), Some("none"), "the schema's default");
    // What is wrong leaves what was told before.
    let told = served.change(&metadata("{id: marker, text: bad}"));
    assert!(told[0].contains("plugin_metadata \"marker\": text: is bad"), "{told:?}");
    let told = served.change(&metadata("{id: marker, text: 1}"));
    assert!(told[0].contains("wrong type: expected string, got number"), "{told:?}");
    assert_eq!(now().as_deref(), Some("none"));
    served.change("#END\nroutes: []\n#END\n");
    assert_eq!(now(), None);
}

#[test]
fn metadata_of_unknown_plugins_is_refused_and_of_others_told() {
    assert!(
        faults(&metadata("{id: key-auht}"))[0]
            .contains("unknown plugin [key-auht]; did you mean \"key-auth\"?")
    );
    let told = Served::new("#END\n").change(&metadata("{id: late, x: 1}"));
    assert!(told[0].contains("late has no use for metadata here"), "{told:?}");
}

#[test]
fn protos_and_secrets_are_checked() {
    let mut served = Served::new("protos:\n  - {id: 1, content: x}\n#END\n");
    assert!(faults("protos:\n  - {id: 1}\n#END\n")[0].contains("property \"content\" is required"));
    let vault = "secrets:\n  - {id: vault/1, uri: 'http://v', prefix: p, token: t}\n#END\n";
    assert!(served.change(vault)[0].contains("secret managers are not asked"));
    assert!(faults(&vault.replace(", token: t", ""))[0].contains("property \"token\" is required"));
    assert!(faults(&vault.replace("vault/1", "cave/1"))[0].contains("invalid secret manager: cave"));
}
