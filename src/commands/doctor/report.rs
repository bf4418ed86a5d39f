//! What was found: for people, and for programs.

use std::fmt::Write as _;

use serde::Serialize;

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Good,
    /// It works, and may soon not, or not as well as it could.
    Warning,
    /// It does not work.
    Problem,
    /// It could not be tried.
    Skipped,
}

/// One thing that was tried.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    state: State,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cure: Option<String>,
}

/// All that was tried, in order.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    checks: Vec<Check>,
}

impl Report {
    pub(super) fn good(&mut self, name: &str, message: String) {
        self.add(name, State::Good, message, None);
    }

    pub(super) fn warn(&mut self, name: &str, message: String, cure: &str) {
        self.add(name, State::Warning, message, Some(cure));
    }

    pub(super) fn problem(&mut self, name: &str, message: String, cure: &str) {
        self.add(name, State::Problem, message, Some(cure));
    }

    pub(super) fn skip(&mut self, name: &str, message: String) {
        self.add(name, State::Skipped, message, None);
    }

    fn add(&mut self, name: &str, state: State, message: String, cure: Option<&str>) {
        let cure = cure.filter(|cure| !cure.is_empty()).map(str::to_owned);
        self.checks.push(Check { name: name.to_owned(), state, message, cure });
    }

    /// Is nothing a problem?
    pub(super) fn is_well(&self) -> bool {
        !self.checks.iter().any(|check| check.state == State::Problem)
    }

    /// One thing a line, its cure below it.
    pub(super) fn told(&self) -> String {
        let mut text = String::new();
        for Check { name, state, message, cure } in &self.checks {
            let state = match state {
                State::Good => "ok",
                State::Warning => "WARNING",
                State::Problem => "PROBLEM",
                State::Skipped => "skipped",
            };
            // Writing to a string does not fail.
            let _ = writeln!(text, "{state:<8} {}: {}", clean(name), clean(message));
            if let Some(cure) = cure {
                let _ = writeln!(text, "{:<8} cure: {}", "", clean(cure));
            }
        }
        let count = |state| self.checks.iter().filter(|check| check.state == state).count();
        let (problems, warnings) = (count(State::Problem), count(State::Warning));
        let _ = writeln!(text, "{problems} problems, {warnings} warnings");
        text
    }
}

/// Without control characters: some words are a server's.
fn clean(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_no_problems_and_cures_stand_below() {
        let mut report = Report::default();
        report.good("dns", "it has an address".to_owned());
        report.warn("clock", "late\x1b[2J".to_owned(), "set it");
        assert!(report.is_well());
        report.problem("tcp", "refused".to_owned(), "");
        assert!(!report.is_well());
        let told = report.told();
        assert_eq!(
            told,
            "ok       dns: it has an address\nWARNING  clock: late [2J\n         cure: set it\n\
             PROBLEM  tcp: refused\n1 problems, 1 warnings\n"
        );
    }
}
