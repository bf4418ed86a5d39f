//! Who a span is, and whose part: `traceparent` of W3C Trace Context (<https://www.w3.org/TR/trace-context/>, section 3).

use http::{HeaderMap, HeaderName, HeaderValue};
use rand::Rng as _;

/// Carries the caller's span from program to program.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// `VERSION-TRACE-PARENT-FLAGS`, bytes.
const LENGTH: usize = 55;

/// The one flag that has a meaning.
const SAMPLED: u8 = 1;

/// A span of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// All spans of one request have it. Not 0.
    pub trace: u128,
    /// This span. Not 0.
    pub span: u64,
    /// Is the trace recorded? Whoever begins it decides for all.
    pub sampled: bool,
}

impl Context {
    /// The caller's span, if the request names one. What cannot be read is none, and so are two.
    pub fn of(headers: &HeaderMap) -> Option<Context> {
        let mut all = headers.get_all(TRACEPARENT).into_iter();
        match (all.next(), all.next()) {
            (Some(value), None) => Context::read(value.as_bytes()),
            _ => None,
        }
    }

    /// The id of the request's trace as it stands there, 32 hexadecimal digits: for logs.
    pub fn trace_id(headers: &HeaderMap) -> Option<&str> {
        Context::of(headers)?;
        headers.get(TRACEPARENT)?.to_str().ok()?.get(3..35)
    }

    fn read(value: &[u8]) -> Option<Context> {
        let (version, rest) = (value.get(..2)?, value.get(LENGTH..)?);
        // A later version may say more behind what is known of it.
        let good = match version {
            b"00" => rest.is_empty(),
            b"ff" => false,
            _ => is_hex(version) && matches!(rest, [] | [b'-', ..]),
        };
        let dashes = [2, 35, 52].iter().all(|at| value[*at] == b'-');
        if !good || !dashes {
            return None;
        }
        let number = |range: std::ops::Range<usize>| {
            let digits = value.get(range).filter(|digits| is_hex(digits))?;
            u128::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let (trace, span) = (number(3..35)?, u64::try_from(number(36..52)?).ok()?);
        let flags = u8::try_from(number(53..55)?).ok()?;
        (trace != 0 && span != 0).then_some(Context { trace, span, sampled: flags & SAMPLED != 0 })
    }

    /// As `traceparent` has it.
    pub fn write(&self) -> HeaderValue {
        let flags = if self.sampled { SAMPLED } else { 0 };
        let text = format!("00-{:032x}-{:016x}-{flags:02x}", self.trace, self.span);
        HeaderValue::try_from(text).expect("hexadecimal digits are a header's value")
    }

    /// The first span of a new trace.
    pub(super) fn root(trace: u128, sampled: bool) -> Context {
        Context { trace, span: id(), sampled }
    }

    /// A new span of the same trace.
    pub(super) fn child(&self) -> Context {
        Context { span: id(), ..*self }
    }
}

fn id() -> u64 {
    rand::rng().random_range(1..=u64::MAX)
}

/// Is all of it lower-case hexadecimal?
fn is_hex(text: &[u8]) -> bool {
    text.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_written_is_read() {
        let context = Context::read(GOOD.as_bytes()).expect("it is W3C's own example");
        assert_eq!((context.trace, context.sampled), (0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, true));
        assert_eq!(context.write(), GOOD);
        let child = context.child();
        assert_eq!((child.trace, child.sampled), (context.trace, true));
        assert_ne!(child.span, context.span);
        assert_eq!(Context::read(child.write().as_bytes()), Some(child));
        let unsampled = Context { sampled: false, ..child };
        assert_eq!(Context::read(unsampled.write().as_bytes()), Some(unsampled));
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let later = GOOD.replacen("00", "01", 1);
        assert!(Context::read(later.as_bytes()).is_some());
        assert!(Context::read(format!("{later}-more").as_bytes()).is_some());
        assert_eq!(Context::read(format!("{later}more").as_bytes()), None);
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        assert_eq!(Context::read(format!("{GOOD}-").as_bytes()), None);
        assert_eq!(Context::read(GOOD.to_uppercase().as_bytes()), None);
        assert_eq!(Context::read(GOOD.replacen("00", "ff", 1).as_bytes()), None);
        assert_eq!(Context::read(b"00-00000000000000000000000000000000-00f067aa0ba902b7-01"), None);
        assert_eq!(Context::read(b"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"), None);
        for end in 0..GOOD.len() {
            assert_eq!(Context::read(&GOOD.as_bytes()[..end]), None, "{end} bytes");
        }
        for at in 0..GOOD.len() {
            let mut bytes = GOOD.as_bytes().to_vec();
            bytes[at] = b'_';
            assert_eq!(Context::read(&bytes), None, "byte {at}");
        }
        let mut two = HeaderMap::new();
        two.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        assert!(Context::of(&two).is_some());
        assert_eq!(Context::trace_id(&two), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        two.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        assert_eq!((Context::of(&two), Context::trace_id(&two)), (None, None));
    }
}
