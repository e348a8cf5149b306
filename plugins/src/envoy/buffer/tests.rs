#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing;

fn limit(config: &str, levels: &[&str]) -> Result<Option<usize>, String> {
    let filter = testing::filter_of::<Buffer, BufferPerRoute>(&factory(), config, levels)?;
    Ok(filter.chain.request_buffer())
}

#[test]
fn the_most_specific_limit_holds() {
    let own = "max_request_bytes: 10";
    assert_eq!(limit(own, &[]), Ok(Some(10)));
    assert_eq!(limit(own, &["buffer: {max_request_bytes: 100}"]), Ok(Some(100)));
    assert_eq!(limit(own, &["buffer: {max_request_bytes: 100}", "disabled: true"]), Ok(None));
    assert_eq!(limit(own, &["disabled: true", "buffer: {max_request_bytes: 5}"]), Ok(Some(5)));
}

#[test]
fn a_limit_is_needed() {
    let refused = |config: &str, levels: &[&str]| limit(config, levels).unwrap_err();
    assert_eq!(refused("{}", &[]), "max_request_bytes: must be greater than 0");
    assert_eq!(refused("max_request_bytes: 0", &[]), "max_request_bytes: must be greater than 0");
    assert_eq!(refused("max_request_bytes: 1", &["{}"]), "one of disabled and buffer is missing");
    assert_eq!(refused("max_request_bytes: 1", &["disabled: false"]), "disabled: must be true");
}
