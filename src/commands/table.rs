//! JSON as a table for people: as wide as the terminal, longer cells on lines of their own, colours where they are
//! wanted.

use std::io::IsTerminal as _;

use serde_json::Value;

use crate::colours;

/// Narrowest a column gets, characters: less is no word any more.
const NARROWEST: usize = 8;
/// Between columns.
const GAP: &str = "  ";

/// How a table is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// Characters in a line; `None`: as many as there are.
    pub(super) width: Option<usize>,
    pub(super) colours: bool,
}

impl Look {
    /// For standard output: what a terminal has room for, a file everything. `COLUMNS` says otherwise.
    pub(super) fn of_stdout() -> Look {
        let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let is_terminal = std::io::stdout().is_terminal();
        let real =
            || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)).filter(|_| is_terminal);
        Look { width: told.or_else(real), colours: is_terminal && colours::are_wanted() }
    }
}

/// A list of objects with its fields as columns, or a map with its keys and values.
pub(super) fn table(answer: &Value, look: Look) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut has_head = false;
    match answer {
        Value::Array(items) => {
            let objects = || items.iter().filter_map(Value::as_object);
            // Not every row has every field.
            let mut names: Vec<&String> = Vec::new();
            for name in objects().flat_map(|object| object.keys()) {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            has_head = !names.is_empty();
            rows.extend(has_head.then(|| names.iter().map(|name| name.to_uppercase()).collect()));
            let cell = |value: Option<&Value>| value.map_or_else(String::new, text);
            rows.extend(objects().map(|object| names.iter().map(|name| cell(object.get(*name))).collect()));
        }
        Value::Object(map) => rows.extend(map.iter().map(|(key, value)| vec![clean(key), text(value)])),
        other => rows.push(vec![text(other)]),
    }
    draw(&rows, has_head, look)
}

fn draw(rows: &[Vec<String>], has_head: bool, look: Look) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let natural = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths = fit((0..columns).map(natural).collect(), look.width);
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        let cells: Vec<Vec<String>> =
            row.iter().zip(&widths).map(|(cell, width)| wrap(cell, *width)).collect();
        for line in 0..cells.iter().map(Vec::len).max().unwrap_or(0) {
            let of = |(cell, width): (&Vec<String>, &usize)| {
                let text = cell.get(line).map(String::as_str).unwrap_or_default();
                let padding = " ".repeat(width.saturating_sub(text.chars().count()));
                format!("{}{padding}", paint(text, has_head && i == 0, look.colours))
            };
            let parts: Vec<_> = cells.iter().zip(&widths).map(of).collect();
            out.push_str(parts.join(GAP).trim_end());
            out.push('\n');
        }
    }
    out
}

/// Takes from the widest column until all fit.
fn fit(mut widths: Vec<usize>, room: Option<usize>) -> Vec<usize> {
    let Some(room) = room else { return widths };
    let gaps = GAP.len() * widths.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > room {
        match widths.iter_mut().max() {
            Some(widest) if *widest > NARROWEST => *widest -= 1,
            _ => break,
        }
    }
    widths
}

/// Lines of at most `width` characters, broken after a comma or a space where there is one.
fn wrap(cell: &str, width: usize) -> Vec<String> {
    let mut rest: Vec<char> = cell.chars().collect();
    let mut lines = Vec::new();
    while rest.len() > width.max(1) {
        let end = rest[..width.max(1)]
            .iter()
            .rposition(|c| matches!(c, ' ' | ','))
            .map_or(width.max(1), |at| at + 1);
        lines.push(rest.drain(..end).collect::<String>().trim_end().to_owned());
    }
    lines.push(rest.into_iter().collect());
    lines
}

fn paint(text: &str, is_head: bool, colours: bool) -> String {
    let code = match text {
        _ if !colours || text.is_empty() => return text.to_owned(),
        _ if is_head => "1",
        "active" => "32",
        "unreachable" => "31",
        "left" => "2",
        _ => return text.to_owned(),
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// A value in a cell: no JSON, which nobody reads in columns.
fn text(value: &Value) -> String {
    let joined = |parts: Vec<String>, between: &str| {
        if parts.is_empty() { "-".to_owned() } else { parts.join(between) }
    };
    match value {
        Value::String(text) => clean(text),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            joined(items.iter().map(text).collect(), ", ")
        }
        Value::Array(items) => joined(items.iter().map(text).collect(), " "),
        Value::Object(fields) => {
            joined(fields.iter().map(|(key, value)| format!("{}={}", clean(key), text(value))).collect(), " ")
        }
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// What agents say of themselves must not move a terminal's cursor.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plain(width: usize) -> Look {
        Look { width: Some(width), colours: false }
    }

    #[test]
    fn a_table_is_no_wider_than_the_terminal_and_says_everything() {
        let nodes = json!([
            { "id": "piko-1-abcdefg", "status": "active", "links": ["piko-2-abcdefg", "piko-3-abcdefg"] },
            { "id": "piko-2-abcdefg", "status": "active", "links": [] },
        ]);
        assert_eq!(
            table(&nodes, plain(200)),
            "ID              STATUS  LINKS\n\
             piko-1-abcdefg  active  piko-2-abcdefg piko-3-abcdefg\n\
             piko-2-abcdefg  active  -\n"
        );
        assert_eq!(
            table(&nodes, plain(40)),
            "ID              STATUS  LINKS\n\
             piko-1-abcdefg  active  piko-2-abcdefg\n                        piko-3-abcdefg\n\
             piko-2-abcdefg  active  -\n"
        );
        for width in 30..120 {
            let drawn = table(&nodes, plain(width));
            assert!(drawn.lines().all(|line| line.chars().count() <= width), "{width}:\n{drawn}");
        }
    }

    #[test]
    fn cells_have_no_json_and_nothing_that_moves_the_cursor() {
        let agents = json!([{ "agent": "a\u{1b}[2J", "tunnels": [{ "addr": "1:1", "inflight": 0 }, { "addr": "2:2" }] }]);
        let drawn = table(&agents, Look { width: None, colours: false });
        assert_eq!(drawn, "AGENT  TUNNELS\na\u{FFFD}[2J  addr=1:1 inflight=0, addr=2:2\n");
    }

    #[test]
    fn colours_change_no_width() {
        let nodes = json!([{ "id": "n", "status": "unreachable", "x": 1 }]);
        let coloured = table(&nodes, Look { width: None, colours: true });
        assert!(coloured.contains("\x1b[31munreachable\x1b[0m  1"), "{coloured:?}");
    }
}
