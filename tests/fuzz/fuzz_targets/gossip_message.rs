#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| piko_gateway::cluster::fuzz::gossip_message(input));
