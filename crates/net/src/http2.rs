//! A watch on an HTTP/2 connection of a client: what its frames cost, and whether it is idle.
//!
//! h2 bounds what one frame can do, and counts resets; it does not count frames that ask for nothing. A client
//! that sends PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty DATA or unknown frames without end keeps a core
//! busy for ever (RFC 9113, section 10.5). Here each of them costs one of a budget, which requests, bodies and
//! time fill up again. Only the nine bytes of frame headers are read, both ways; payloads are passed over.

use std::collections::HashSet;

use tokio::time::Instant;

use crate::count::Reason;

/// The client's connection preface (RFC 9113, section 3.4), and how it is told from HTTP/1.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Control frames that a client may send at once, bytes of each at most a frame header and some words: a
/// browser sends some ten, then about one for each response.
const CONTROL_BURST: u32 = 1_000;
/// Control frames a second for nothing: pings of an idle connection and answers to ours.
const CONTROL_PER_SECOND: u32 = 20;
/// What a request earns: its priority, window updates, cancellation.
const REQUEST_EARNS: u32 = 10;
/// What a DATA frame to the client earns: two window updates and a ping that measures the round trip.
const DATA_OUT_EARNS: u32 = 3;
/// What a DATA frame from the client earns, if it carries as much as [`REAL_DATA`].
const DATA_IN_EARNS: u32 = 1;
/// Bytes from which on a DATA frame is worth its header.
const REAL_DATA: u32 = 256;
/// Requests that a client may begin and take back before an answer, at once and each second: a proxy in front
/// of many impatient people does so, at most as often as they click (CVE-2023-44487).
const RESET_BURST: u32 = 1_000;
/// Requests of that kind a second, in the long run: see [`RESET_BURST`].
const RESETS_PER_SECOND: u32 = 100;

const HEADER_LEN: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Why a connection is told to go (RFC 9113, section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    NoError = 0,
    EnhanceYourCalm = 11,
}

/// The watch on one connection.
#[derive(Debug)]
pub(crate) struct Watch {
    inbound: Frames,
    outbound: Frames,
    control: Budget,
    resets: Budget,
    /// Streams with a request that was not answered to its end.
    open: HashSet<u32>,
    last_stream: u32,
    /// Since when the rest of a header block is awaited.
    block: Option<Instant>,
}

/// The nine bytes before a payload (RFC 9113, section 4.1).
#[derive(Debug, Clone, Copy)]
struct Frame {
    len: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Watch {
    pub(crate) fn new() -> Watch {
        Watch {
            // The preface comes before a client's first frame, and is none.
            inbound: Frames { skip: PREFACE.len() as u32, ..Frames::default() },
            outbound: Frames::default(),
            control: Budget::new(CONTROL_BURST, CONTROL_PER_SECOND),
            resets: Budget::new(RESET_BURST, RESETS_PER_SECOND),
            open: HashSet::new(),
            last_stream: 0,
            block: None,
        }
    }

    /// Takes note of bytes from the client. An error says which flood it is.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        let Watch { inbound, control, resets, open, last_stream, block, .. } = self;
        let mut verdict = Ok(());
        inbound.feed(bytes, |frame| {
            let mut spend = |budget: &mut Budget, reason| {
                if verdict.is_ok() && !budget.take() {
                    verdict = Err(reason);
                }
            };
            let whole = frame.flags & END_HEADERS != 0;
            match frame.kind {
                DATA if frame.len >= REAL_DATA => control.give(DATA_IN_EARNS),
                // A small piece (an event, a keystroke) is free. An empty one that ends nothing costs, below.
                DATA if frame.len > 0 || frame.flags & END_STREAM != 0 => {}
                HEADERS if frame.stream > *last_stream => {
                    *last_stream = frame.stream;
                    open.insert(frame.stream);
                    control.give(REQUEST_EARNS);
                    *block = (!whole).then(Instant::now);
                }
                HEADERS => {
                    *block = (!whole).then(Instant::now);
                    spend(control, Reason::ControlFlood);
                }
                CONTINUATION => {
                    if whole {
                        *block = None;
                    }
                    spend(control, Reason::ControlFlood);
                }
                RST_STREAM if open.remove(&frame.stream) => spend(resets, Reason::ResetFlood),
                _ => spend(control, Reason::ControlFlood),
            }
        });
        verdict
    }

    /// Takes note of bytes to the client.
    pub(crate) fn wrote(&mut self, bytes: &[u8]) {
        let Watch { outbound, control, resets, open, .. } = self;
        outbound.feed(bytes, |frame| {
            match frame.kind {
                DATA if frame.len > 0 => control.give(DATA_OUT_EARNS),
                // Answered: only requests that are taken back before their answer make the attack.
                HEADERS => resets.give(1),
                _ => {}
            }
            let ends = matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0;
            if ends || frame.kind == RST_STREAM {
                open.remove(&frame.stream);
            }
        });
    }

    /// Has the client asked for anything yet?
    pub(crate) fn has_begun(&self) -> bool {
        self.last_stream > 0
    }

    /// Is no request under way?
    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// Since when the rest of a header block is awaited. Returns `None` when none is.
    pub(crate) fn half_a_head(&self) -> Option<Instant> {
        self.block
    }

    /// The frame that tells the client to go. Returns `None` in the middle of another frame, where it cannot be
    /// written.
    pub(crate) fn goaway(&self, code: Code, words: &str) -> Option<Vec<u8>> {
        if !self.outbound.at_boundary() {
            return None;
        }
        let len = 8 + words.len() as u32;
        let mut frame = Vec::with_capacity(HEADER_LEN + len as usize);
        frame.extend_from_slice(&len.to_be_bytes()[1..]);
        // GOAWAY, no flags, stream 0 (RFC 9113, section 6.8).
        frame.extend_from_slice(&[7, 0, 0, 0, 0, 0]);
        frame.extend_from_slice(&self.last_stream.to_be_bytes());
        frame.extend_from_slice(&(code as u32).to_be_bytes());
        frame.extend_from_slice(words.as_bytes());
        Some(frame)
    }
}

/// Finds frame headers in a stream of bytes, however it is cut.
#[derive(Debug, Default)]
struct Frames {
    /// Bytes of a payload still to come.
    skip: u32,
    header: [u8; HEADER_LEN],
    have: usize,
}

impl Frames {
    fn feed(&mut self, mut bytes: &[u8], mut frame: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = bytes.len().min(self.skip as usize);
                self.skip -= skipped as u32;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = bytes.len().min(HEADER_LEN - self.have);
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEADER_LEN {
                let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.header;
                let len = u32::from_be_bytes([0, l0, l1, l2]);
                self.have = 0;
                self.skip = len;
                frame(Frame { len, kind, flags, stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]) });
            }
        }
    }

    fn at_boundary(&self) -> bool {
        self.skip == 0 && self.have == 0
    }
}

/// So many at once, so many a second, and what is earned.
#[derive(Debug)]
struct Budget {
    left: u32,
    most: u32,
    per_second: u32,
    filled: Instant,
}

impl Budget {
    fn new(most: u32, per_second: u32) -> Budget {
        Budget { left: most, most, per_second, filled: Instant::now() }
    }

    fn give(&mut self, earned: u32) {
        self.left = self.left.saturating_add(earned).min(self.most);
    }

    /// Takes one. The clock is read only when nothing is left.
    fn take(&mut self) -> bool {
        if self.left == 0 {
            let now = Instant::now();
            let earned = now.duration_since(self.filled).as_millis() * u128::from(self.per_second) / 1000;
            // `filled` stays as it is, so that fractions of a frame add up.
            if earned == 0 {
                return false;
            }
            self.filled = now;
            self.give(u32::try_from(earned).unwrap_or(u32::MAX));
        }
        self.left -= 1;
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::time::Duration;

    use piko_test_support::http2::{PING, frame};

    use super::*;

    fn begun() -> Watch {
        let mut watch = Watch::new();
        watch.read(PREFACE).unwrap();
        watch.read(&frame(4, 0, 0, &[])).unwrap();
        watch
    }

    fn first_refused(watch: &mut Watch, frame: &[u8]) -> Option<(usize, Reason)> {
        (0..100_000).find_map(|n| watch.read(frame).err().map(|reason| (n, reason)))
    }

    #[tokio::test(start_paused = true)]
    async fn floods_of_every_control_frame_are_cut() {
        for kind in [2, 4, PING, 8, 0x10, 0xfe] {
            let cut = first_refused(&mut begun(), &frame(kind, 0, 0, &[0; 8]));
            assert_eq!(cut, Some((CONTROL_BURST as usize - 1, Reason::ControlFlood)), "frame type {kind}");
        }
        let mut watch = begun();
        watch.read(&frame(HEADERS, END_HEADERS, 1, b"x")).unwrap();
        let (n, reason) = first_refused(&mut watch, &frame(DATA, 0, 1, &[])).unwrap();
        assert!(n <= CONTROL_BURST as usize && reason == Reason::ControlFlood, "empty DATA");
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_client_and_a_patient_one_earn_their_control_frames() {
        let mut watch = begun();
        for n in 0..10_000u32 {
            watch.read(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, b"x")).unwrap();
            for _ in 0..5 {
                watch.read(&frame(8, 0, 0, &[0; 4])).unwrap();
            }
            watch.wrote(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, b"x"));
        }
        // A large download: two window updates for each DATA frame.
        for _ in 0..10_000 {
            watch.wrote(&frame(DATA, 0, 20_001, &[0; 64]));
            watch.read(&frame(8, 0, 0, &[0; 4])).unwrap();
            watch.read(&frame(8, 0, 20_001, &[0; 4])).unwrap();
        }
        let mut patient = begun();
        for _ in 0..10_000 {
            tokio::time::advance(Duration::from_millis(100)).await;
            patient.read(&frame(PING, 0, 0, &[0; 8])).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rapid_resets_are_cut_and_honest_ones_cost_nothing() {
        let mut watch = begun();
        let pair = |n: u32| {
            let mut both = frame(HEADERS, END_HEADERS, 2 * n + 1, b"x");
            both.extend(frame(RST_STREAM, 0, 2 * n + 1, &[0; 4]));
            both
        };
        let cut = (0..100_000).find_map(|n| watch.read(&pair(n)).err().map(|reason| (n, reason)));
        assert_eq!(cut, Some((RESET_BURST, Reason::ResetFlood)));
        // Answered to its end, or begun to be: nobody's loss.
        let mut watch = begun();
        for n in 0..50_000 {
            watch.read(&frame(HEADERS, END_HEADERS, 2 * n + 1, b"x")).unwrap();
            watch.wrote(&frame(HEADERS, END_HEADERS, 2 * n + 1, b"x"));
            watch.read(&frame(RST_STREAM, 0, 2 * n + 1, &[0; 4])).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn frames_are_found_however_the_bytes_are_cut() {
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(4, 0, 0, &[0; 6]));
        bytes.extend(frame(HEADERS, 0, 1, &[7; 300]));
        bytes.extend(frame(CONTINUATION, END_HEADERS, 1, &[7; 3]));
        for at in 1..40 {
            let mut watch = Watch::new();
            for piece in bytes.chunks(at) {
                watch.read(piece).unwrap();
            }
            assert!(watch.has_begun() && !watch.is_idle() && watch.half_a_head().is_none());
            assert_eq!(watch.control.left, CONTROL_BURST - 1, "in pieces of {at}");
            watch.wrote(&frame(HEADERS, END_HEADERS, 1, b"abc"));
            let (first, rest) = (frame(DATA, END_STREAM, 1, b"abc"), 10);
            watch.wrote(&first[..rest]);
            assert_eq!(watch.goaway(Code::NoError, ""), None, "in the middle of a frame");
            watch.wrote(&first[rest..]);
            assert!(watch.is_idle());
            let goaway = watch.goaway(Code::EnhanceYourCalm, "calm").unwrap();
            assert_eq!(goaway, frame(7, 0, 0, b"\0\0\0\x01\0\0\0\x0bcalm"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_head_is_known_until_its_end() {
        let mut watch = begun();
        watch.read(&frame(HEADERS, 0, 1, b"x")).unwrap();
        let since = watch.half_a_head().unwrap();
        tokio::time::advance(Duration::from_secs(5)).await;
        watch.read(&frame(CONTINUATION, 0, 1, b"x")).unwrap();
        assert_eq!(watch.half_a_head(), Some(since), "more of it does not start the clock anew");
        watch.read(&frame(CONTINUATION, END_HEADERS, 1, b"x")).unwrap();
        assert_eq!(watch.half_a_head(), None);
    }
}
