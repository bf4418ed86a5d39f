//! What has to hold for any configuration file. Run by the test below and by `make fuzz` (tests/fuzz).

use piko_bootstrap::config::ConfigSpec as _;

use super::Config;

/// Whatever is read as a configuration can be checked, and is the same after it was written and read again.
pub fn server_config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(config) = serde_yaml::from_str::<Config>(text) else { return };
    if let Err(invalid) = config.validate() {
        assert!(!invalid.key.is_empty() && !invalid.message.is_empty(), "it says where and why");
    }
    let Ok(written) = serde_json::to_value(&config) else { return };
    let again: Config = serde_json::from_value(written.clone()).expect("what we wrote can be read");
    assert_eq!(serde_json::to_value(again).expect("and written"), written);
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_file() {
        piko_test_mutate::run("server_config", super::server_config);
    }
}
