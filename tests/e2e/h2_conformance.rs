//! HTTP/2 by the letter: frames that RFC 9113 and RFC 7541 forbid, or permit, and what the proxy port says to each.
//!
//! A stream error may be told as a connection error (RFC 9113, section 5.4.2), and a malformed request may be
//! answered 400 (section 8.1.1); a connection error may close the connection without GOAWAY (section 5.4.1). h2 has
//! the general `PROTOCOL_ERROR` for most connection errors, whatever their own code is: it is taken for each.

use std::net::SocketAddr;
use std::time::Duration;

use piko_test_support::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PREFACE, PRIORITIZED,
    PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame, read_frame, request,
};
use piko_test_support::program::{Node, agent};
use piko_test_support::service::Service;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::piko;

const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE: u32 = 6;
const REFUSED: u32 = 7;
const COMPRESSION: u32 = 9;
const UNKNOWN: u8 = 0xbe;
const WHOLE: u8 = END_HEADERS | END_STREAM;
const MAX_WINDOW: u32 = (1 << 31) - 1;

/// What has to come of a case.
#[derive(Clone, Copy, Debug)]
enum Want {
    /// The last request is answered by the service.
    Served,
    /// The connection ends with this code, or without a word.
    Connection(u32),
    /// The stream ends with this code, or the connection does.
    Stream(u32),
    /// The request is malformed: as a stream error of `PROTOCOL_ERROR`, or 400.
    Malformed,
}
use Want::{Connection, Malformed, Served, Stream};

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    Answer(u16),
    Reset(u32),
    GoAway(u32),
    Closed,
    Nothing,
}

impl Want {
    fn meets(self, came: Came) -> bool {
        match (self, came) {
            (Served, Came::Answer(status)) => status == 200,
            (Connection(_) | Stream(_) | Malformed, Came::Closed | Came::GoAway(PROTOCOL))
            | (Malformed, Came::Answer(400) | Came::Reset(PROTOCOL)) => true,
            (Connection(code) | Stream(code), Came::GoAway(told)) => code == told,
            (Stream(code), Came::Reset(told)) => code == told,
            _ => false,
        }
    }
}

type Case = (&'static str, Want, Vec<u8>);

/// Sends the frames on a connection of their own. An answer of 200 is the outcome only where one is wanted: before
/// an error it may come as well.
async fn outcome(addr: SocketAddr, want: Want, frames: &[u8]) -> Came {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // The node may have closed after the first of the frames.
    let _ = stream.write_all(frames).await;
    let read = async {
        while let Some(frame) = read_frame(&mut stream).await {
            match frame.kind {
                GOAWAY => return Came::GoAway(frame.word(4)),
                RST_STREAM if frame.word(0) != 0 => return Came::Reset(frame.word(0)),
                HEADERS => match status(&frame.payload) {
                    200 if !matches!(want, Served) => {}
                    status => return Came::Answer(status),
                },
                _ => {}
            }
        }
        Came::Closed
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.unwrap_or(Came::Nothing)
}

/// The status of a header block, of those that HPACK's static table has (RFC 7541, appendix A); 0 for another.
fn status(block: &[u8]) -> u16 {
    let first = block.iter().find(|byte| **byte & 0xe0 != 0x20 && **byte & 0x80 != 0);
    match first {
        Some(0x88) => 200,
        Some(0x8c) => 400,
        Some(0x8e) => 500,
        _ => 0,
    }
}

async fn all_of(cases: Vec<Case>) {
    let node = Node::start(piko(), &[], &[]);
    let service = Service::start("one").await;
    node.ready().await;
    let _agent = agent(piko(), node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    let mut wrong = Vec::new();
    for (name, want, frames) in cases {
        let begun = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frames].concat();
        let came = outcome(node.proxy, want, &begun).await;
        if !want.meets(came) {
            wrong.push(format!("{name}: {want:?} wanted, {came:?} came"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    node.routes("my-endpoint", 200).await;
}

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, WHOLE, stream, &request("GET", &[]))
}

fn post(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &request("POST", &[]))
}

fn setting(id: u8, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&[0, id], &value.to_be_bytes()[..]].concat())
}

fn grow(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

fn join(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.concat()
}

/// RFC 9113, sections 4 to 5.3.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_and_streams() {
    let open = frame(HEADERS, END_STREAM, 1, &request("GET", &[]));
    let reset = frame(RST_STREAM, 0, 1, &8u32.to_be_bytes());
    let itself = 1u32.to_be_bytes();
    let on_itself = [&itself[..], &[255], &request("GET", &[])].concat();
    let many: Vec<Vec<u8>> = (0..150).map(|n| post(2 * n + 1)).collect();
    all_of(vec![
        ("3.4 a request", Served, get(1)),
        ("4.1 an unknown frame", Served, join(&[frame(UNKNOWN, 255, 0, b"?"), get(1)])),
        ("4.1 the reserved bit", Served, join(&[frame(PING, 0, 1 << 31, &[0; 8]), get(1)])),
        ("4.2 DATA too large", Stream(FRAME_SIZE), join(&[post(1), frame(DATA, 0, 1, &[0; 16_385])])),
        ("4.2 HEADERS too large", Connection(FRAME_SIZE), frame(HEADERS, WHOLE, 1, &[0; 16_385])),
        (
            "4.3 PRIORITY within a block",
            Connection(PROTOCOL),
            join(&[open.clone(), frame(PRIORITY, 0, 1, &[0; 5])]),
        ),
        ("4.3 HEADERS within a block", Connection(PROTOCOL), join(&[open.clone(), get(3)])),
        ("5.1 DATA, idle", Connection(PROTOCOL), frame(DATA, END_STREAM, 1, b"x")),
        ("5.1 RST_STREAM, idle", Connection(PROTOCOL), reset.clone()),
        ("5.1 WINDOW_UPDATE, idle", Connection(PROTOCOL), grow(1, 1)),
        ("5.1 CONTINUATION, idle", Connection(PROTOCOL), frame(CONTINUATION, 4, 1, &[])),
        ("5.1 DATA, half closed", Stream(STREAM_CLOSED), join(&[get(1), frame(DATA, 1, 1, b"x")])),
        ("5.1 HEADERS, half closed", Stream(STREAM_CLOSED), join(&[get(1), get(1)])),
        ("5.1 DATA, reset", Stream(STREAM_CLOSED), join(&[post(1), reset.clone(), frame(DATA, 1, 1, b"x")])),
        ("5.1 HEADERS, reset", Stream(STREAM_CLOSED), join(&[post(1), reset, get(1)])),
        ("5.1.1 an even stream", Connection(PROTOCOL), get(2)),
        ("5.1.2 too many streams", Stream(REFUSED), join(&many)),
        ("5.3.1 HEADERS on itself", Stream(PROTOCOL), frame(HEADERS, WHOLE | PRIORITIZED, 1, &on_itself)),
        (
            "6.10 CONTINUATION",
            Served,
            join(&[
                open.clone(),
                frame(CONTINUATION, 0, 1, &[]),
                frame(CONTINUATION, END_HEADERS, 1, &block(&[("a", "b")])),
            ]),
        ),
        ("6.10 CONTINUATION, late", Connection(PROTOCOL), join(&[post(1), frame(CONTINUATION, 4, 1, &[])])),
        ("6.10 CONTINUATION, other", Connection(PROTOCOL), join(&[open, frame(CONTINUATION, 4, 3, &[])])),
    ])
    .await;
}

/// RFC 9113, section 6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_of_frames() {
    all_of(vec![
        ("6.1 DATA, no stream", Connection(PROTOCOL), frame(DATA, 0, 0, b"x")),
        ("6.1 padding", Connection(PROTOCOL), join(&[post(1), frame(DATA, PADDED, 1, &[9, 0])])),
        ("6.2 HEADERS, no stream", Connection(PROTOCOL), get(0)),
        ("6.2 padding", Connection(PROTOCOL), frame(HEADERS, WHOLE | PADDED, 1, &[99, 0x82])),
        ("6.3 PRIORITY, no stream", Connection(PROTOCOL), frame(PRIORITY, 0, 0, &[0; 5])),
        ("6.3 PRIORITY, length", Stream(FRAME_SIZE), frame(PRIORITY, 0, 1, &[0; 4])),
        ("6.4 RST_STREAM, no stream", Connection(PROTOCOL), frame(RST_STREAM, 0, 0, &[0; 4])),
        (
            "6.4 RST_STREAM, length",
            Connection(FRAME_SIZE),
            join(&[post(1), frame(RST_STREAM, 0, 1, &[0; 3])]),
        ),
        ("6.5 an ACK that says something", Connection(FRAME_SIZE), frame(SETTINGS, 1, 0, &[0; 6])),
        ("6.5 SETTINGS of a stream", Connection(PROTOCOL), frame(SETTINGS, 0, 1, &[])),
        ("6.5 SETTINGS, length", Connection(FRAME_SIZE), frame(SETTINGS, 0, 0, &[0; 3])),
        ("6.5.2 ENABLE_PUSH", Connection(PROTOCOL), setting(2, 2)),
        ("6.5.2 INITIAL_WINDOW_SIZE", Connection(FLOW_CONTROL), setting(4, 1 << 31)),
        ("6.5.2 MAX_FRAME_SIZE, low", Connection(PROTOCOL), setting(5, 16_383)),
        ("6.5.2 MAX_FRAME_SIZE, high", Connection(PROTOCOL), setting(5, 1 << 24)),
        ("6.5.2 an unknown one", Served, join(&[setting(0xfe, 1), get(1)])),
        ("6.6 PUSH_PROMISE", Connection(PROTOCOL), frame(PUSH_PROMISE, 4, 1, &[0, 0, 0, 2])),
        ("6.7 PING of a stream", Connection(PROTOCOL), frame(PING, 0, 1, &[0; 8])),
        ("6.7 PING, length", Connection(FRAME_SIZE), frame(PING, 0, 0, &[0; 6])),
        ("6.8 GOAWAY of a stream", Connection(PROTOCOL), frame(GOAWAY, 0, 1, &[0; 8])),
        ("6.9 by nothing", Connection(PROTOCOL), grow(0, 0)),
        ("6.9 a stream by nothing", Stream(PROTOCOL), join(&[post(1), grow(1, 0)])),
        ("6.9 length", Connection(FRAME_SIZE), frame(WINDOW_UPDATE, 0, 0, &[0; 3])),
        ("6.9.1 too wide", Connection(FLOW_CONTROL), join(&[grow(0, MAX_WINDOW), grow(0, MAX_WINDOW)])),
        ("6.9.1 a stream, too wide", Stream(FLOW_CONTROL), join(&[post(1), grow(1, MAX_WINDOW)])),
    ])
    .await;
}

/// RFC 9113, section 8.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages() {
    let with = |more: &[(&str, &str)]| frame(HEADERS, WHOLE, 1, &request("GET", more));
    let only = |fields: &[(&str, &str)]| frame(HEADERS, WHOLE, 1, &block(fields));
    let (method, scheme, path) = ((":method", "GET"), (":scheme", "http"), (":path", "/"));
    let sized = frame(HEADERS, END_HEADERS, 1, &request("POST", &[("content-length", "1")]));
    let trailers = |flags, fields: &[(&str, &str)]| {
        join(&[post(1), frame(DATA, 0, 1, b"x"), frame(HEADERS, flags, 1, &block(fields))])
    };
    all_of(vec![
        ("8.1 trailers", Served, trailers(WHOLE, &[("a", "b")])),
        ("8.1 HEADERS in the middle", Malformed, trailers(END_HEADERS, &[("a", "b")])),
        // h2 drops it, and the service never sees it: no error, and no harm.
        ("8.1 a pseudo-header as trailer", Served, trailers(WHOLE, &[method])),
        ("8.1.1 more than its length", Malformed, join(&[sized.clone(), frame(DATA, 1, 1, b"xx")])),
        ("8.1.1 less than its length", Malformed, join(&[sized.clone(), frame(DATA, 1, 1, b"")])),
        ("8.1.1 more, in two", Malformed, join(&[sized, frame(DATA, 0, 1, b"x"), frame(DATA, 1, 1, b"x")])),
        ("8.2 upper case", Malformed, with(&[("X-A", "b")])),
        ("8.2.2 Connection", Malformed, with(&[("connection", "keep-alive")])),
        ("8.2.2 Transfer-Encoding", Malformed, with(&[("transfer-encoding", "chunked")])),
        ("8.2.2 TE", Malformed, with(&[("te", "trailers, deflate")])),
        ("8.2.2 TE: trailers", Served, with(&[("te", "trailers")])),
        ("8.3 an unknown one", Malformed, with(&[(":test", "a")])),
        ("8.3 a response's", Malformed, with(&[(":status", "200")])),
        ("8.3 after a field", Malformed, only(&[method, scheme, ("a", "b"), path])),
        ("8.3.1 an empty path", Malformed, only(&[method, scheme, (":path", "")])),
        ("8.3.1 no method", Malformed, only(&[scheme, path])),
        ("8.3.1 no scheme", Malformed, only(&[method, path])),
        ("8.3.1 no path", Malformed, only(&[method, scheme])),
        ("8.3.1 two methods", Malformed, with(&[method])),
        ("8.3.1 two schemes", Malformed, with(&[scheme])),
        ("8.3.1 two paths", Malformed, with(&[path])),
    ])
    .await;
}

/// RFC 7541.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_compression() {
    let after = |bytes: &[u8]| frame(HEADERS, WHOLE, 1, &[&request("GET", &[]), bytes].concat());
    let wrong = Connection(COMPRESSION);
    all_of(vec![
        ("4.2 a table size in the middle", wrong, after(&[0x20])),
        ("5.2 padding of more than 7 bits", wrong, after(&[0, 0x82, 0x1f, 0xff, 1, b'a'])),
        ("5.2 a string that is cut", wrong, after(&[0, 9, b'a'])),
        ("6.1 index 0", wrong, after(&[0x80])),
        ("6.1 an index of nothing", wrong, after(&[0xff, 0x10])),
        ("6.3 a table too large", wrong, frame(HEADERS, WHOLE, 1, &[0x3f, 0xff, 0xff, 0xff, 0x07])),
    ])
    .await;
}
