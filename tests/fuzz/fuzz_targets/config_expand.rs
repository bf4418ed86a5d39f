#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| piko_config::fuzz::config_expand(input));
