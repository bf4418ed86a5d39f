//! What has to hold for any message of the tables. Run by the test below and by `make fuzz` (tests/fuzz).

use crate::message;

/// What is decoded is no larger than what came, and the same after it was encoded again.
pub fn gossip_message(input: &[u8]) {
    if let Some(message) = message::decode(input) {
        // A name's length and a number take a byte each, at least.
        assert!(
            message.entries() * 2 <= input.len(),
            "{} entries of {} bytes",
            message.entries(),
            input.len()
        );
        let written = message::encode(&message);
        let again = message::decode(&written).expect("what we wrote can be read");
        assert_eq!(message::encode(&again), written);
    }
    if let Some(messages) = message::decode_all(input) {
        assert!(messages.len() * 4 <= input.len(), "{} messages of {} bytes", messages.len(), input.len());
        let written = message::encode_all(&messages);
        let again = message::decode_all(&written).expect("what we wrote can be read");
        assert_eq!(message::encode_all(&again), written);
    }
    if let Some(identity) = message::decode_identity(input)
        && let Ok(written) = message::encode_identity(&identity)
    {
        assert!(written.len() <= 512, "it fits memberlist's metadata");
        assert_eq!(message::decode_identity(&written), Some(identity));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_message() {
        piko_test_mutate::run("gossip_message", super::gossip_message);
    }
}
