#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| piko_cluster::fuzz::gossip_message(input));
