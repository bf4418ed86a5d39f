#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| piko_tunnel::fuzz::control_lines(input));
