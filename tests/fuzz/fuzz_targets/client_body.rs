#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| piko_gateway::proxy::fuzz::client_body(input));
