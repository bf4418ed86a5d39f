//! What has to hold for whatever a plugin does to headers and answers. Run by the test below and by `make fuzz`
//! (tests/fuzz).

use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::bindings::piko::plugin::types::Response;
use crate::fields::{Answer, Fields};

/// Reads of a call see what its edits, applied in their order, make of the head; and an answer that is taken has
/// no field of the node's.
///
/// The input is a line each: `=name value` sets, `+name value` adds, `-name` removes, `^name value` was there.
pub fn plugin_edits(input: &[u8]) {
    let mut base = HeaderMap::new();
    let mut answered = Vec::new();
    let mut edits = Vec::new();
    for line in input.split(|byte| *byte == b'\n').take(300) {
        let Some((&kind, rest)) = line.split_first() else { continue };
        let mut words = rest.splitn(2, |byte| *byte == b' ');
        let name = String::from_utf8_lossy(words.next().unwrap_or_default()).into_owned();
        let value = words.next().unwrap_or_default().to_vec();
        answered.push((name.clone(), value.clone()));
        match kind {
            b'^' => {
                if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                    base.append(name, value);
                }
            }
            kind => edits.push((kind, name, value)),
        }
    }
    let mut fields = Fields::new(Arc::new(base.clone()));
    for (kind, name, value) in edits {
        let before = fields.edits.len();
        let done = match kind {
            b'=' => fields.set(&name, value),
            b'+' => fields.append(&name, value),
            _ => fields.remove(&name),
        };
        assert_eq!(fields.edits.len() - before, usize::from(done.is_ok()), "an edit is made or refused");
        let mut made = base.clone();
        fields.edits.iter().for_each(|edit| edit.apply(&mut made));
        let all: Vec<_> = made.get_all(name.as_str()).iter().map(|value| value.as_bytes().to_vec()).collect();
        assert_eq!(fields.all(&name), all, "{name}");
        assert_eq!(fields.first(&name), all.first().cloned(), "{name}");
        assert_eq!(fields.list().len(), made.len());
    }
    assert!(fields.edits.iter().all(|edit| {
        let mut alone = HeaderMap::new();
        edit.apply(&mut alone);
        alone.keys().all(is_theirs)
    }));
    let status = u16::from(input.first().copied().unwrap_or_default()) * 4;
    if let Ok(answer) = Answer::check(Response { status, headers: answered, body: Vec::new() }) {
        assert!((200..600).contains(&answer.status.as_u16()) && answer.headers.keys().all(is_theirs));
    }
}

/// May a plugin set it?
fn is_theirs(name: &HeaderName) -> bool {
    let ours =
        ["host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "expect"];
    !ours.contains(&name.as_str()) && !name.as_str().starts_with("x-piko-")
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_edits() {
        piko_test_mutate::run("plugin_edits", super::plugin_edits);
    }
}
