//! Log lines as `key=value`, which Loki, Splunk and `grep` read alike.

use std::fmt::{self, Debug};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// One line an event: time, level, message, the event's own fields, and where it is from.
pub(super) struct Logfmt;

impl<S, N> FormatEvent<S, N> for Logfmt
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        to.write_str("ts=")?;
        SystemTime.format_time(&mut to)?;
        write!(to, " level={}", event.metadata().level().as_str().to_ascii_lowercase())?;
        let mut fields = Fields { to: &mut to, done: Ok(()) };
        event.record(&mut fields);
        fields.done?;
        writeln!(to, " target={}", event.metadata().target())
    }
}

struct Fields<'a, 'w> {
    to: &'a mut Writer<'w>,
    done: fmt::Result,
}

impl Fields<'_, '_> {
    fn put(&mut self, field: &Field, value: &str) {
        let key = if field.name() == "message" { "msg" } else { field.name() };
        self.done = self.done.and_then(|()| pair(self.to, key, value));
    }
}

impl Visit for Fields<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, &format!("{value:?}"));
    }
}

/// Writes one pair. What could end a value, a line or a terminal's patience is quoted and escaped: paths and headers are
/// a stranger's words.
fn pair(to: &mut impl fmt::Write, key: &str, value: &str) -> fmt::Result {
    let plain = |char: char| !char.is_control() && !matches!(char, ' ' | '"' | '=' | '\\');
    if !value.is_empty() && value.chars().all(plain) {
        return write!(to, " {key}={value}");
    }
    write!(to, " {key}=\"")?;
    for char in value.chars() {
        match char {
            '"' | '\\' => write!(to, "\\{char}")?,
            '\n' => to.write_str("\\n")?,
            '\r' => to.write_str("\\r")?,
            '\t' => to.write_str("\\t")?,
            char if char.is_control() => write!(to, "\\u{:04x}", u32::from(char))?,
            char => to.write_char(char)?,
        }
    }
    to.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_ends_its_line_or_begins_another_field() {
        let line = |value: &str| {
            let mut line = String::new();
            pair(&mut line, "k", value).map(|()| line)
        };
        let cases = [
            ("plain/42", r#" k=plain/42"#),
            ("", r#" k="""#),
            ("two words", r#" k="two words""#),
            ("a=b", r#" k="a=b""#),
            ("say \"no\"\\", r#" k="say \"no\"\\""#),
            ("a\nlevel\t\u{1b}[2J", r#" k="a\nlevel\t\u001b[2J""#),
        ];
        for (value, expected) in cases {
            assert_eq!(line(value).as_deref(), Ok(expected));
        }
    }
}
