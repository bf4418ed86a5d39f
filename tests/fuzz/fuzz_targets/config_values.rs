#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| piko_bootstrap::config::fuzz::config_values(input));
