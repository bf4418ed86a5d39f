//! A random request, and the answer that it asks its service for.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// What the client speaks. Directly, an HTTP/2 case is asked by HTTP/1.1: it is what the service knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Http10,
    Http11,
    Http2,
}

/// How a body says where it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length,
    /// In pieces of this many bytes; with trailers.
    Chunked(usize, Vec<(String, String)>),
    /// With the connection. Answers only.
    Close,
}

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) version: Version,
    /// By a node that has no agent: it goes through another.
    pub(super) relayed: bool,
    pub(super) method: &'static str,
    pub(super) target: String,
    pub(super) fields: Vec<(String, String)>,
    pub(super) framing: Framing,
    pub(super) body: Vec<u8>,
    /// Where what is sent is cut into writes of their own.
    pub(super) pace: Vec<Index>,
    pub(super) answer: Answer,
}

/// What the service is asked to answer.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) fields: Vec<(String, String)>,
    pub(super) framing: Framing,
    pub(super) body: Vec<u8>,
}

/// Names that mean nothing to anybody on the way, in any case.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[Xx]-[A-Za-z0-9]{1,12}",
        select(&["Accept", "user-agent", "Referer", "Cache-Control", "X-Request-Id", "If-None-Match", "Range"][..])
            .prop_map(str::to_owned),
        select(&["Cookie", "Authorization", "Accept-Language", "Via", "Warning"][..]).prop_map(str::to_owned),
    ]
}

/// Visible ASCII with blanks inside; what is around a value is not part of it (RFC 9110, section 5.5).
fn value() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[!-~]{1,20}", "[!-~]([ -~]{0,40})[!-~]"]
}

fn fields() -> impl Strategy<Value = Vec<(String, String)>> {
    // Empty cookies are none: crumbs are joined by `; `.
    let some = |fields: &Vec<(String, String)>| {
        !fields.iter().any(|(name, value)| name == "Cookie" && value.is_empty())
    };
    vec((name(), value()), 0..8).prop_filter("a cookie is not empty", some)
}

fn trailers() -> impl Strategy<Value = Vec<(String, String)>> {
    vec(("x-t-[a-z]{1,8}", value()), 0..3)
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(proptest::num::u8::ANY, 0..40),
        (1usize..70_000).prop_map(|n| (0..n).map(|i| (i % 251) as u8).collect())
    ]
}

/// A path and a query as RFC 3986 has them, and what browsers send beyond it.
fn target() -> impl Strategy<Value = String> {
    "/[A-Za-z0-9._~!$&'()*+,;=:@%2F/-]{0,30}(\\?[A-Za-z0-9._~!$&'()*+,;=:@/?{}|^-]{0,30})?"
        .prop_map(|target| target.replace('%', "%25"))
}

fn framing() -> impl Strategy<Value = Framing> {
    let chunked = (1usize..9_000, trailers()).prop_map(|(piece, trailers)| Framing::Chunked(piece, trailers));
    prop_oneof![Just(Framing::None), Just(Framing::Length), chunked]
}

fn answer() -> impl Strategy<Value = Answer> {
    let status = select(&[200u16, 201, 202, 204, 206, 301, 302, 304, 400, 404, 418, 422, 500, 503][..]);
    let framing = prop_oneof![4 => framing(), 1 => Just(Framing::Close)];
    let names = "X-[A-Za-z0-9]{1,10}|Etag|Vary|Set-Cookie|Content-Type|Link|Server|Location";
    (status, vec((names, value()), 0..8), framing, body()).prop_map(|(status, fields, framing, body)| {
        let bodiless = matches!(status, 204 | 304);
        let (framing, body) = match framing {
            _ if bodiless => (Framing::None, Vec::new()),
            Framing::None => (Framing::Length, Vec::new()),
            framing => (framing, body),
        };
        Answer { status, fields, framing, body }
    })
}

pub(super) fn cases() -> impl Strategy<Value = Case> {
    let version = select(&[Version::Http10, Version::Http11, Version::Http11, Version::Http2][..]);
    let method =
        select(&["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "M-SEARCH"][..]);
    let pace = vec(any::<Index>(), 0..4);
    let way = (version, any::<bool>());
    (way, method, target(), fields(), framing(), body(), pace, answer()).prop_map(
        |((version, relayed), method, target, fields, framing, body, pace, answer)| {
            // HTTP/1.0 knows no chunks.
            let (framing, body) = match (framing, version) {
                (Framing::None, _) => (Framing::None, Vec::new()),
                (Framing::Chunked(..), Version::Http10) => (Framing::Length, body),
                (framing, _) => (framing, body),
            };
            Case { version, relayed, method, target, fields, framing, body, pace, answer }
        },
    )
}
