//! The line of a key in a file, by its path: for mistakes that are found after parsing, where lines are forgotten.

/// The line, from 1, of a key like `plugins[1].path`; where it is not in the file, of what should hold it.
/// Follows indentation. What a flow collection (`{…}`) holds has the line where that begins.
pub(crate) fn line_of_key(text: &str, path: &str) -> Option<usize> {
    let lines: Vec<Line> = text.lines().map(Line::of).collect();
    let mut found = None;
    let mut section = Section { first: 0, deeper_than: None };
    for part in path.split('.') {
        let (name, index) = match part.split_once('[') {
            Some((name, rest)) => (name, rest.trim_end_matches(']').parse::<usize>().ok()),
            None => (part, None),
        };
        let Some(at) = section.find(&lines, |line| line.is_key(name)) else { break };
        found = Some(at + 1);
        section = Section { first: at + 1, deeper_than: Some(lines[at].indent) };
        if let Some(index) = index {
            let Some(at) = nth_item(&lines, at + 1, lines[at].indent, index) else { break };
            found = Some(at + 1);
            // The item's first key is on the line of its dash.
            section = Section { first: at, deeper_than: Some(lines[at].dash.unwrap_or_default()) };
        }
    }
    found
}

/// The first line of a key of that name, wherever it stands.
pub(crate) fn line_of_name(text: &str, name: &str) -> Option<usize> {
    text.lines().position(|line| Line::of(line).is_key(name)).map(|at| at + 1)
}

struct Line<'t> {
    /// Columns before its content, dashes of lists included.
    indent: usize,
    /// The column of its first dash, if it begins an item.
    dash: Option<usize>,
    content: &'t str,
}

impl Line<'_> {
    fn of(line: &str) -> Line<'_> {
        let mut content = line.trim_start();
        let mut dash = None;
        while let Some(rest) = content.strip_prefix("- ") {
            dash = dash.or(Some(line.len() - content.len()));
            content = rest.trim_start();
        }
        if content == "-" {
            dash = dash.or(Some(line.len() - content.len()));
        }
        Line { indent: line.len() - content.len(), dash, content }
    }

    fn is_key(&self, name: &str) -> bool {
        !name.is_empty() && self.content.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'))
    }

    fn says_nothing(&self) -> bool {
        self.content.is_empty() || self.content.starts_with('#')
    }
}

/// The lines from one on, as long as they are indented deeper.
struct Section {
    first: usize,
    deeper_than: Option<usize>,
}

impl Section {
    fn find(&self, lines: &[Line], wanted: impl Fn(&Line) -> bool) -> Option<usize> {
        for (at, line) in lines.iter().enumerate().skip(self.first).filter(|(_, line)| !line.says_nothing()) {
            if self.deeper_than.is_some_and(|least| line.indent <= least) {
                return None;
            }
            // The item after this one.
            if at > self.first && line.dash.is_some_and(|dash| Some(dash) == self.deeper_than) {
                return None;
            }
            if wanted(line) {
                return Some(at);
            }
        }
        None
    }
}

/// The line of an item of the list below a key. Its dashes may be as far left as the key.
fn nth_item(lines: &[Line], first: usize, key: usize, index: usize) -> Option<usize> {
    let items = lines.iter().enumerate().skip(first).filter(|(_, line)| !line.says_nothing());
    let mut column = None;
    let mut seen = 0;
    for (at, line) in items {
        // Further left than the key, or beside it and no item: the list is over.
        if line.dash.unwrap_or(line.indent) < key || line.dash.is_none() && line.indent <= key {
            return None;
        }
        let Some(dash) = line.dash else { continue };
        // An item of a list inside this one.
        if *column.get_or_insert(dash) != dash {
            continue;
        }
        if seen == index {
            return Some(at);
        }
        seen += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_key_is_that_of_its_own_section() {
        let text = "\
# bind_addr: no key
proxy:
  bind_addr: a
  http:
    timeout: 1s
upstream: {bind_addr: b}

plugins:
  - name: x
    path: p
  - path: q
    name: y
    config:
      - path: r
admin:
  bind_addr: c
lists:
- a: 1
- b: 2
";
        for (path, line) in [
            ("proxy.bind_addr", 3),
            ("proxy.http.timeout", 5),
            ("proxy.http.missing", 4),
            ("upstream.bind_addr", 6),
            ("plugins[0].path", 10),
            ("plugins[1].path", 11),
            ("plugins[1].name", 12),
            ("plugins[1].config[0].path", 14),
            ("plugins[1].missing", 11),
            ("plugins[7].path", 8),
            ("admin.bind_addr", 16),
            ("lists[1].b", 19),
        ] {
            assert_eq!(line_of_key(text, path), Some(line), "{path}");
        }
        assert_eq!(line_of_key(text, "nowhere.at.all"), None);
        assert_eq!(line_of_name(text, "config"), Some(13));
    }
}
