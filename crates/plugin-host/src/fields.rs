//! Header edits of one call: an overlay, dropped unless the call ends well. Everything is checked like what a
//! client sends.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::bindings::piko::plugin::types::{EditError, Response};

/// Largest head, bytes: names, values and 32 each, as HTTP/2 counts (RFC 9113, section 6.5.2).
const MAX_HEAD: usize = 128 << 10;
/// Edits in one call at most.
const MAX_EDITS: usize = 256;
/// Largest body of an answer, bytes.
const MAX_BODY: usize = 1 << 20;
/// What a plugin may pass to the node in one call of a function, bytes: the largest answer, and as much again as
/// a head may have for what lists cost beside their contents. It is checked before anything is copied.
pub(crate) const MAX_PASSED: usize = MAX_BODY + 2 * MAX_HEAD;
/// Longest piece of what a plugin passed that an error repeats, characters.
const MAX_REPEATED: usize = 64;
/// What a field costs beside name and value, bytes.
const FIELD_OVERHEAD: usize = 32;

/// One checked change of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Replaces all values of that name by this one.
    Set(HeaderName, HeaderValue),
    /// Adds this value to those there are.
    Append(HeaderName, HeaderValue),
    /// Removes all values of that name. None need be there.
    Remove(HeaderName),
}

impl Edit {
    fn name(&self) -> &HeaderName {
        match self {
            Edit::Set(name, _) | Edit::Append(name, _) | Edit::Remove(name) => name,
        }
    }

    /// Makes the change. It was checked when the plugin asked for it.
    pub fn apply(&self, headers: &mut HeaderMap) {
        match self {
            Edit::Set(name, value) => drop(headers.insert(name, value.clone())),
            Edit::Append(name, value) => drop(headers.append(name, value.clone())),
            Edit::Remove(name) => drop(headers.remove(name)),
        }
    }
}

/// An answer of a plugin, checked.
#[derive(Debug, Clone)]
pub struct Answer {
    /// A final status, 200 to 599.
    pub status: StatusCode,
    /// Without framing and hop-by-hop fields.
    pub headers: HeaderMap,
    /// The whole body, at most 1 MiB.
    pub body: Bytes,
}

impl Answer {
    /// Checks what a plugin answers. An error says what of it no client may be sent.
    pub(crate) fn check(response: Response) -> Result<Answer, String> {
        let status = status(response.status).ok_or_else(|| format!("status {}", response.status))?;
        if response.body.len() > MAX_BODY {
            return Err(format!("a body of {} bytes, more than {MAX_BODY}", response.body.len()));
        }
        let mut fields = Fields::default();
        for (name, value) in response.headers {
            let append = fields.append(&name, value);
            append.map_err(|e| format!("header {:?}: {}", repeated(&name), word(e)))?;
        }
        let mut headers = HeaderMap::new();
        fields.edits.iter().for_each(|edit| edit.apply(&mut headers));
        Ok(Answer { status, headers, body: response.body.into() })
    }
}

/// The piece of a plugin's text that an error repeats.
fn repeated(text: &str) -> String {
    text.chars().take(MAX_REPEATED).collect()
}

/// A final status: 1xx are the node's.
pub(crate) fn status(code: u16) -> Option<StatusCode> {
    StatusCode::from_u16(code).ok().filter(|status| (200..600).contains(&status.as_u16()))
}

/// A head's fields with the edits of one call on top.
#[derive(Default)]
pub(crate) struct Fields {
    base: Arc<HeaderMap>,
    size: usize,
    pub(crate) edits: Vec<Edit>,
}

impl Fields {
    pub(crate) fn new(base: Arc<HeaderMap>) -> Self {
        let cost = |(name, value): (&HeaderName, &HeaderValue)| field_size(name, value);
        Fields { size: base.iter().map(cost).sum(), base, edits: Vec::new() }
    }

    pub(crate) fn first(&self, name: &str) -> Option<Vec<u8>> {
        if self.edits.is_empty() {
            return self.base.get(name).map(|value| value.as_bytes().to_vec());
        }
        self.all(name).into_iter().next()
    }

    pub(crate) fn all(&self, name: &str) -> Vec<Vec<u8>> {
        let Ok(name) = HeaderName::try_from(name) else { return Vec::new() };
        let mine = || self.edits.iter().filter(|edit| *edit.name() == name);
        let replaced = mine().any(|edit| !matches!(edit, Edit::Append(..)));
        let base = (!replaced).then(|| self.base.get_all(&name)).into_iter().flatten();
        let mut values: Vec<_> = base.map(|value| value.as_bytes().to_vec()).collect();
        for edit in mine() {
            match edit {
                Edit::Append(_, value) => values.push(value.as_bytes().to_vec()),
                Edit::Set(_, value) => values = vec![value.as_bytes().to_vec()],
                Edit::Remove(_) => values.clear(),
            }
        }
        values
    }

    pub(crate) fn list(&self) -> Vec<(String, Vec<u8>)> {
        let list = |headers: &HeaderMap| {
            headers
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
                .collect()
        };
        if self.edits.is_empty() {
            return list(&self.base);
        }
        let mut headers = HeaderMap::clone(&self.base);
        self.edits.iter().for_each(|edit| edit.apply(&mut headers));
        list(&headers)
    }

    pub(crate) fn set(&mut self, name: &str, value: Vec<u8>) -> Result<(), EditError> {
        let (name, value) = (checked_name(name)?, checked_value(value)?);
        self.grow(field_size(&name, &value))?;
        self.edits.push(Edit::Set(name, value));
        Ok(())
    }

    pub(crate) fn append(&mut self, name: &str, value: Vec<u8>) -> Result<(), EditError> {
        let (name, value) = (checked_name(name)?, checked_value(value)?);
        self.grow(field_size(&name, &value))?;
        self.edits.push(Edit::Append(name, value));
        Ok(())
    }

    pub(crate) fn remove(&mut self, name: &str) -> Result<(), EditError> {
        let name = checked_name(name)?;
        self.grow(0)?;
        self.edits.push(Edit::Remove(name));
        Ok(())
    }

    /// What is replaced or removed still counts: the sum only has to be bounded.
    fn grow(&mut self, by: usize) -> Result<(), EditError> {
        if self.edits.len() >= MAX_EDITS || self.size + by > MAX_HEAD {
            return Err(EditError::TooLarge);
        }
        self.size += by;
        Ok(())
    }
}

/// An error as the contract calls it: its `Debug` is the contract's whole text.
fn word(error: EditError) -> &'static str {
    match error {
        EditError::InvalidName => "invalid-name",
        EditError::InvalidValue => "invalid-value",
        EditError::Forbidden => "forbidden",
        EditError::TooLarge => "too-large",
    }
}

fn field_size(name: &HeaderName, value: &HeaderValue) -> usize {
    name.as_str().len() + value.len() + FIELD_OVERHEAD
}

fn checked_value(value: Vec<u8>) -> Result<HeaderValue, EditError> {
    HeaderValue::try_from(value).map_err(|_| EditError::InvalidValue)
}

fn checked_name(name: &str) -> Result<HeaderName, EditError> {
    /// Framing, connection and identity of a message: the node's alone.
    const FORBIDDEN: [HeaderName; 10] = [
        header::HOST,
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::EXPECT,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    let name = HeaderName::try_from(name).map_err(|_| EditError::InvalidName)?;
    if FORBIDDEN.contains(&name) || name.as_str().starts_with("x-piko-") {
        return Err(EditError::Forbidden);
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Fields {
        let mut base = HeaderMap::new();
        base.append("a", HeaderValue::from_static("1"));
        base.append("a", HeaderValue::from_static("2"));
        base.append("b", HeaderValue::from_static("3"));
        Fields::new(Arc::new(base))
    }

    #[test]
    fn reads_see_the_edits_of_the_call() {
        let mut fields = fields();
        assert_eq!(fields.first("A").as_deref(), Some(&b"1"[..]));
        fields.append("A", b"x".to_vec()).expect("fine");
        assert_eq!(fields.all("a"), [b"1", b"2", b"x"]);
        fields.set("a", b"y".to_vec()).expect("fine");
        fields.append("a", b"z".to_vec()).expect("fine");
        assert_eq!(fields.all("a"), [b"y", b"z"]);
        fields.remove("b").expect("fine");
        assert_eq!(fields.first("b"), None);
        assert_eq!(fields.list(), [("a".into(), b"y".to_vec()), ("a".into(), b"z".to_vec())]);
    }

    #[test]
    fn framing_private_and_malformed_headers_are_refused() {
        let mut fields = fields();
        for name in ["Host", "content-length", "Transfer-Encoding", "connection", "x-piko-listener"] {
            assert_eq!(fields.set(name, b"1".to_vec()), Err(EditError::Forbidden), "{name}");
            assert_eq!(fields.remove(name), Err(EditError::Forbidden), "{name}");
        }
        for name in ["", "a b", "a\r\nb", "ä", "a:"] {
            assert_eq!(fields.append(name, b"1".to_vec()), Err(EditError::InvalidName), "{name:?}");
        }
        for value in [&b"a\r\nb: c"[..], b"a\0", b"\n"] {
            assert_eq!(fields.set("c", value.to_vec()), Err(EditError::InvalidValue));
        }
        assert!(fields.edits.is_empty());
    }

    #[test]
    fn edits_are_bounded_in_number_and_size() {
        let mut fields = fields();
        assert_eq!(fields.set("c", vec![b'x'; MAX_HEAD]), Err(EditError::TooLarge));
        let done = (0..1000).filter(|_| fields.append("c", b"x".to_vec()).is_ok()).count();
        assert_eq!(done, MAX_EDITS);
    }

    #[test]
    fn an_answer_is_checked_like_a_response() {
        let answer = |status, name: &str, value: &str| {
            let headers = vec![(name.to_owned(), value.as_bytes().to_vec())];
            Answer::check(Response { status, headers, body: Vec::new() })
        };
        assert!(answer(401, "www-authenticate", "Bearer").is_ok());
        for (status, name, value) in [
            (101, "a", "b"),
            (99, "a", "b"),
            (600, "a", "b"),
            (200, "content-length", "5"),
            (200, "a", "b\r\nc: d"),
        ] {
            assert!(answer(status, name, value).is_err(), "{status} {name} {value}");
        }
    }
}
