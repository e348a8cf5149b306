#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sixfold_core::cel::fuzz::expression(data));
