//! One thing in the world that is not as a configuration says.

/// Something that is not as the configuration says.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::commands) struct Finding {
    /// Its key.
    pub(in crate::commands) key: String,
    /// What is wrong, and what would be right.
    pub(in crate::commands) message: String,
    /// It is no reason not to start.
    pub(in crate::commands) harmless: bool,
    /// It is wrong on any machine.
    pub(in crate::commands) anywhere: bool,
}

impl Finding {
    pub(super) fn new(key: impl Into<String>, message: impl Into<String>) -> Finding {
        Finding { key: key.into(), message: message.into(), harmless: false, anywhere: false }
    }

    pub(super) fn anywhere(mut self) -> Finding {
        self.anywhere = true;
        self
    }

    pub(super) fn harmless(mut self) -> Finding {
        self.harmless = true;
        self
    }
}
