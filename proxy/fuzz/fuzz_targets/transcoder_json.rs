#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sixfold_plugins::fuzz::transcoder_json(data));
