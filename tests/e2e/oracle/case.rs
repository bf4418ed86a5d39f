//! A random request, and the answer that it asks its service for.
//!
//! Text of the wire is kept as Latin-1, a character a byte, so that nothing of it is lost.

use std::fmt;

use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::{Index, select};

pub(super) type Fields = Vec<(String, String)>;

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
    Chunked(Chunks),
    /// With the connection. Answers only.
    Close,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunks {
    /// Bytes of each.
    pub(super) size: usize,
    pub(super) trailers: Fields,
    /// `Trailer` names them.
    pub(super) announced: bool,
}

/// A body; shown short.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Body(pub(super) Vec<u8>);

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = self.0.iter().fold(1u32, |sum, byte| sum.rotate_left(5) ^ u32::from(*byte));
        let first = self.0[..self.0.len().min(40)].escape_ascii();
        write!(f, "{} bytes, sum {sum:08x}: {first}", self.0.len())
    }
}

/// What a client does beside sending its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    Plain,
    /// It waits with its body until it is told to go on.
    Expect,
    /// It asks for this protocol, and speaks it if it may.
    Upgrade(&'static str),
}

/// A cut between two writes, and whether time passes there: the other end reads what is before it by itself.
pub(super) type Pace = Vec<(Index, bool)>;

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) version: Version,
    /// By a node that has no agent: it goes through another.
    pub(super) relayed: bool,
    pub(super) method: &'static str,
    pub(super) target: String,
    pub(super) fields: Fields,
    /// `Connection` names this one of them.
    pub(super) nominated: Option<Index>,
    /// It says that it wants trailers (RFC 9110, section 6.5.1).
    pub(super) te: bool,
    pub(super) manner: Manner,
    pub(super) framing: Framing,
    /// What follows a switch of protocols, where there is one.
    pub(super) body: Body,
    pub(super) pace: Pace,
    pub(super) answer: Answer,
}

/// What the service is asked to answer.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// Before it has read the request's body.
    pub(super) early: bool,
    /// By a service that speaks HTTP/1.0.
    pub(super) old: bool,
    /// 103s that come first.
    pub(super) hints: Vec<Fields>,
    pub(super) status: u16,
    pub(super) fields: Fields,
    pub(super) nominated: Option<Index>,
    pub(super) framing: Framing,
    pub(super) body: Body,
    pub(super) pace: Pace,
}

impl Case {
    /// The protocol that is switched to.
    pub(super) fn switches(&self) -> bool {
        matches!(self.manner, Manner::Upgrade(_)) && self.answer.status == 101
    }

    /// Without what a service cannot be asked, or say, over HTTP/2: a switch of protocols, and what is of one connection.
    fn for_h2_service(mut self) -> Case {
        if matches!(self.manner, Manner::Upgrade(_)) {
            self.manner = Manner::Plain;
            self.body = Body::default();
        }
        let answer = &mut self.answer;
        if answer.status == 101 {
            answer.status = 200;
        }
        (answer.early, answer.old, answer.nominated) = (false, false, None);
        self
    }
}

/// The name of a nominated field.
pub(super) fn nominated(fields: &Fields, index: Option<Index>) -> Option<&str> {
    index.filter(|_| !fields.is_empty()).map(|index| index.get(fields).0.as_str())
}

/// Names that mean nothing to anybody on the way, in any case.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "[Xx]-[A-Za-z0-9]{1,12}",
        1 => "[Xx]-[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}",
        2 => select(&["Accept", "user-agent", "Referer", "Cache-Control", "X-Request-Id", "If-None-Match"][..])
            .prop_map(str::to_owned),
        2 => select(&["Cookie", "Authorization", "Accept-Language", "Via", "Warning", "Range", "Origin"][..])
            .prop_map(str::to_owned),
    ]
}

/// Visible bytes with blanks inside; what is around a value is not part of it (RFC 9110, section 5.5).
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        1 => Just(String::new()),
        4 => "[!-~]{1,20}",
        4 => "[!-~]([ -~]{0,40})[!-~]",
        1 => "[!-~\u{80}-\u{ff}]([\t -~\u{80}-\u{ff}]{0,20})[!-~\u{80}-\u{ff}]",
        1 => "[a-z]{500,3000}",
    ]
}

fn fields() -> impl Strategy<Value = Fields> {
    // Empty cookies are none: crumbs are joined by `; `.
    let some = |fields: &Fields| !fields.iter().any(|(name, value)| name == "Cookie" && value.is_empty());
    vec((name(), value()), 0..8).prop_filter("a cookie is not empty", some)
}

fn chunked() -> impl Strategy<Value = Framing> {
    let trailers = vec(("x-t-[a-z]{1,8}", value()), 0..3);
    let size = prop_oneof![1 => 1usize..20, 3 => 20usize..9_000];
    let chunks = (size, trailers, any::<bool>());
    chunks.prop_map(|(size, trailers, announced)| Framing::Chunked(Chunks { size, trailers, announced }))
}

fn body() -> impl Strategy<Value = Body> {
    let patterned = |n: usize| (0..n).map(|i| (i % 251) as u8).collect();
    prop_oneof![
        10 => vec(any::<u8>(), 0..40),
        10 => (1usize..70_000).prop_map(patterned),
        1 => (200_000usize..500_000).prop_map(patterned),
    ]
    .prop_map(Body)
}

fn pace() -> impl Strategy<Value = Pace> {
    vec((any::<Index>(), proptest::bool::weighted(0.3)), 0..4)
}

/// A path and a query as RFC 3986 has them, what browsers send beyond it, and what no URI may have.
fn target() -> impl Strategy<Value = String> {
    let utf8 = |text: String| text.bytes().map(char::from).collect::<String>();
    prop_oneof![
        5 => "/[A-Za-z0-9._~!$&'()*+,;=:@/-]{0,30}(\\?[A-Za-z0-9._~!$&'()*+,;=:@/?{}|^-]{0,30})?",
        3 => "/([a-z/.]|%[0-9A-Fa-f]{2}|%|[<>\"`{}|\\\\^\\[\\]]){0,20}(\\?([a-z&=]|%[0-9A-Fa-f]{2}|[<>\"`']){0,20})?",
        1 => "/[a-z/äöü€\u{1f600}<>]{0,10}(\\?[a-zäöü€\"=]{0,10})?".prop_map(utf8),
        1 => "/[a-z/<\"\u{80}-\u{ff}]{0,10}(\\?[a-z<\"\u{80}-\u{ff}]{0,10})?",
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    let status = select(&[200u16, 201, 202, 204, 206, 301, 302, 304, 400, 404, 413, 418, 422, 500, 503][..]);
    let framing = prop_oneof![2 => Just(Framing::Length), 2 => chunked(), 1 => Just(Framing::Close)];
    let names = "X-[A-Za-z0-9]{1,10}|Etag|Vary|Set-Cookie|Content-Type|Link|Server|Location|Date";
    let hints = vec(vec(("Link|X-[A-Z]{1,3}", value()), 0..3), 0..3);
    let hints = prop_oneof![4 => Just(Vec::new()), 1 => hints];
    let manner = (proptest::bool::weighted(0.15), proptest::bool::weighted(0.1), hints);
    let head = (status, vec((names, value()), 0..8), weighted(0.1, any::<Index>()));
    (manner, head, framing, body(), pace()).prop_map(
        |((early, old, hints), (status, fields, nominated), framing, body, pace)| {
            let (framing, body) = match framing {
                _ if status == 204 => (Framing::None, Body::default()),
                // HTTP/1.0 knows no chunks.
                Framing::Chunked(_) if old || status == 304 => (Framing::Length, body),
                Framing::Close if status == 304 => (Framing::None, Body::default()),
                framing => (framing, body),
            };
            let hints = if old { Vec::new() } else { hints };
            Answer { early, old, hints, status, fields, nominated, framing, body, pace }
        },
    )
}

fn manner() -> impl Strategy<Value = Manner> {
    prop_oneof![
        12 => Just(Manner::Plain),
        1 => Just(Manner::Expect),
        2 => select(&["websocket", "custom/1.0", "Foo"][..]).prop_map(Manner::Upgrade),
    ]
}

pub(super) fn cases_for_h2_services() -> impl Strategy<Value = Case> {
    cases().prop_map(Case::for_h2_service)
}

pub(super) fn cases() -> impl Strategy<Value = Case> {
    let version = select(&[Version::Http10, Version::Http11, Version::Http11, Version::Http2][..]);
    let method =
        select(&["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "M-SEARCH"][..]);
    let head = (method, target(), fields(), weighted(0.1, any::<Index>()), any::<bool>());
    let framing = prop_oneof![Just(Framing::None), Just(Framing::Length), chunked()];
    let way = (version, any::<bool>(), manner(), any::<bool>());
    (way, head, framing, body(), pace(), answer()).prop_map(
        |(way, (method, target, fields, nominated, te), framing, body, pace, mut answer)| {
            let (version, relayed, manner, switches) = way;
            let manner = match manner {
                Manner::Upgrade(_) if version != Version::Http11 || method == "HEAD" => Manner::Plain,
                Manner::Expect if version != Version::Http11 => Manner::Plain,
                manner => manner,
            };
            if matches!(manner, Manner::Upgrade(_)) {
                answer.early = false;
                answer.status = if switches && !answer.old { 101 } else { answer.status };
            }
            let (framing, body) = match (framing, version) {
                _ if answer.status == 101 => (Framing::None, body),
                (Framing::None, _) => (Framing::None, Body::default()),
                _ if matches!(manner, Manner::Upgrade(_)) => (Framing::None, Body::default()),
                // HTTP/1.0 knows no chunks.
                (Framing::Chunked(_), Version::Http10) => (Framing::Length, body),
                (framing, _) => (framing, body),
            };
            // Connections of HTTP/2 are named by nothing in a message.
            let nominated = nominated.filter(|_| version != Version::Http2);
            Case {
                version,
                relayed,
                method,
                target,
                fields,
                nominated,
                te,
                manner,
                framing,
                body,
                pace,
                answer,
            }
        },
    )
}
