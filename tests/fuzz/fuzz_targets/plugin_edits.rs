#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| piko_plugin_host::fuzz::plugin_edits(input));
