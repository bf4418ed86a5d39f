#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| piko_agent::fuzz::service_addr(input));
