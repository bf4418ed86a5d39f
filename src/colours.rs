//! Whether what is written for a person may have colours, on a terminal that shows them.

/// <https://no-color.org>: any value that is not empty says no.
pub(crate) fn are_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
