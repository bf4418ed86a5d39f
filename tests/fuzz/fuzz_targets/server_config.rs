#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| piko_gateway::config::fuzz::server_config(input));
