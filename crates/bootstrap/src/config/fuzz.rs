//! What has to hold for any text of a value. Run by the test below and by `make fuzz` (tests/fuzz).

use super::types::{BindAddr, ByteSize, HumanDuration};

/// Durations, sizes and addresses: what is taken can be written and read again, and is then the same.
pub fn config_values(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(duration) = text.parse::<HumanDuration>() {
        let again: HumanDuration = duration.to_string().parse().expect("as written by us");
        let apart = again.get().abs_diff(duration.get());
        assert!(apart.as_secs_f64() <= duration.get().as_secs_f64() * 1e-9 + 1e-9, "{duration} is {again}");
    }
    if let Ok(size) = text.parse::<ByteSize>() {
        assert_eq!(size.to_string().parse(), Ok(size));
    }
    if let Ok(addr) = text.parse::<BindAddr>() {
        let _ = addr.socket();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_value() {
        piko_test_mutate::run("config_values", super::config_values);
    }
}
