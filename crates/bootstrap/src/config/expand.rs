//! `${VAR}`, `$VAR` and `${VAR:default}` in a file, before it is parsed.

/// Replaces variables. Undefined and without a default: empty. The default also stands in for an
/// empty variable. `$$` is a literal `$`.
pub(super) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((inside, after)) = rest.strip_prefix('{').and_then(|r| r.split_once('}')) {
            let (name, default) = inside.split_once(':').unwrap_or((inside, ""));
            let value = lookup(name).filter(|value| !value.is_empty());
            out.push_str(value.as_deref().unwrap_or(default));
            rest = after;
        } else {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            let starts_well = rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            if starts_well {
                out.push_str(&lookup(&rest[..end]).unwrap_or_default());
                rest = &rest[end..];
            } else {
                out.push('$');
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c9_variables_expand_with_defaults() {
        let lookup = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        assert_eq!(expand("$A ${A} ${B:x:y} ${EMPTY:z} [$NONE] $$A 5$", lookup), "1 1 x:y z [] $A 5$");
    }
}
