//! The trace that a request belongs to, by W3C Trace Context (`traceparent`): for logs. The header itself passes
//! untouched.

use http::HeaderMap;

/// The header: `version-trace_id-parent_id-flags`.
const TRACEPARENT: &str = "traceparent";
/// Longest header that is looked at, bytes. One of today's version has 55; later ones may append to it.
const MAX_LENGTH: usize = 128;

/// The trace's id, 32 hex digits. Returns `None` where there is no header, more than one, or none that the
/// specification (section 3.2) calls valid.
pub fn id(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(TRACEPARENT).into_iter();
    let (Some(value), None) = (all.next(), all.next()) else { return None };
    let value = value.to_str().ok().filter(|value| value.len() <= MAX_LENGTH)?;
    let mut parts = value.split('-');
    let [version, trace, parent, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    // Only versions that are not known yet may have more parts.
    let whole = parts.next().is_none() || version != "00";
    let set = |part: &str| is_hex(part) && part.bytes().any(|digit| digit != b'0');
    let good = version.len() == 2 && is_hex(version) && version != "ff" && flags.len() == 2 && is_hex(flags);
    (whole && good && trace.len() == 32 && set(trace) && parent.len() == 16 && set(parent)).then_some(trace)
}

/// Capitals are not allowed.
fn is_hex(part: &str) -> bool {
    part.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn found(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, value.parse().unwrap());
        }
        id(&headers).map(str::to_owned)
    }

    #[test]
    fn a_trace_has_an_id() {
        let parent = "00f067aa0ba902b7";
        for good in [format!("00-{TRACE}-{parent}-01"), format!("cc-{TRACE}-{parent}-01-later")] {
            assert_eq!(found(&[&good]).unwrap(), TRACE, "{good}");
        }
    }

    #[test]
    fn what_is_no_trace_has_none() {
        let (parent, zeros) = ("00f067aa0ba902b7", "0".repeat(32));
        let good = format!("00-{TRACE}-{parent}-01");
        for bad in [
            String::new(),
            TRACE.to_owned(),
            format!("00-{TRACE}-{parent}"),
            format!("00-{TRACE}-{parent}-01-more"),
            format!("ff-{TRACE}-{parent}-01"),
            format!("00-{zeros}-{parent}-01"),
            format!("00-{TRACE}-{}-01", &zeros[..16]),
            format!("00-{}-{parent}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}0-{parent}-01"),
            format!("00-{TRACE}-{parent}-0g"),
            format!("cc-{TRACE}-{parent}-01-{}", "x".repeat(MAX_LENGTH)),
        ] {
            assert_eq!(found(&[&bad]), None, "{bad}");
        }
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[&good, &good]), None, "which of them?");
    }
}
