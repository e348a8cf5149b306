#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sixfold_xds::fuzz::resources_in_text(data));
