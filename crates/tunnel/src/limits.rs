//! Every limit on what the other end of a tunnel can make us hold or wait for, with its reason.

use std::time::Duration;

/// Longest control message, bytes: an endpoint name and a sentence fit many times over.
pub const MAX_CONTROL_LINE: usize = 64 << 10;
/// Most listeners on one tunnel: far above any agent seen, far below what hurts a node.
pub const MAX_LISTENERS: usize = 10_000;
/// Header list of one message, bytes. h2 ends the *connection* when a block is over four times its
/// limit, so nodes refuse larger requests (431) and agents larger responses (502) before they get here.
pub const MAX_HEADER_LIST: u32 = 256 << 10;
/// Headers of one message that a node or agent passes on: what leaves room under [`MAX_HEADER_LIST`].
pub const MAX_MESSAGE_HEADERS: usize = 128 << 10;
/// Largest HTTP/2 frame we accept, bytes. 64 KiB measured best; larger ones gain nothing.
pub const MAX_FRAME: u32 = 64 << 10;
/// Bytes one stream may queue in h2 before its sender waits: what a socket takes at once, and no more,
/// since on a tunnel that stands still every upload holds as much.
pub const MAX_SEND_BUFFER: usize = 256 << 10;
/// Window of the connection, bytes: the most HTTP/2 knows (RFC 9113, section 6.9.1), so that it is
/// never the limit. What streams hold is bounded by `tunnel.connection_window` (see `windows.rs`).
pub const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// A stream's window before anything was measured, bytes: no limit in one data centre, and twenty of
/// them still are little.
pub const START_WINDOW: u32 = 256 << 10;
/// A stream's window when others hold nearly all a tunnel may, bytes: one frame still fits.
pub const STREAM_FLOOR: u32 = 16 << 10;
/// A stream that holds bytes and whose reader took nothing for so long has stalled: it may be cut off
/// when the tunnel needs room. Readers on the slowest links take a frame more often.
pub const STALLED_AFTER: Duration = Duration::from_secs(5);
/// Readers of byte streams (TCP, WebSocket) may pause this many times `tunnel.stall_timeout`: someone
/// may sit before a pager, and no protocol above repeats what is lost.
pub const BYTES_PATIENCE: u64 = 10;
/// Overhead of small DATA frames that wait in h2, bytes, as h2 counts it (256 less the frame's own): beyond it h2
/// ends the whole tunnel. Its default is half the connection's window, a GiB here. Some 260,000 single bytes reach it,
/// 2.6 MB with their frame headers; [`GATHER_AFTER`] is far less, so no sender gets there.
pub const MAX_SMALL_FRAMES: usize = 64 << 20;
/// Frames below this, bytes, are joined with their neighbours when they wait for a reader: a stream that nobody reads
/// then holds at most its window, however small its frames are. Copying larger ones would save nothing.
pub const SMALL_FRAME: usize = 1 << 10;
/// Bytes from which on joined frames are a piece of their own, so that a pile need not be copied as it grows.
pub const JOINED_PIECE: usize = 16 << 10;
/// What waits is gathered when this much was received since the last time: at most some 52,000 frames of single bytes,
/// and as many as one turn of the connection brings. See [`GATHER_EVERY`] as well.
pub const GATHER_AFTER: u64 = 512 << 10;
/// What waits is gathered at most this often. A pass looks at each stream: on a busy tunnel, every half MiB
/// would be thousands of passes a second. h2 reads far less than a quarter of [`MAX_SMALL_FRAMES`] in this time.
pub const GATHER_EVERY: Duration = Duration::from_millis(10);
/// Streams open at once on one tunnel.
pub const MAX_STREAMS: u32 = 10_000;
/// Requests that a node sends on one tunnel at once, at most. Streams beyond [`MAX_STREAMS`] wait in h2, without a word and
/// without an end. The tenth between the two is for the control stream, for nodes' questions, and for requests that
/// come at the same moment and all take the last place.
pub const MAX_REQUESTS: u32 = MAX_STREAMS / 10 * 9;
/// Streams reset before they were accepted. A node resets one for each client that hangs up: all that were
/// open may be, at once.
pub const MAX_PENDING_RESETS: usize = MAX_STREAMS as usize;
/// Reset streams remembered so that frames already on the way are not an error.
pub const MAX_REMEMBERED_RESETS: usize = 1_000;
/// Handshake, from the first byte to the control stream.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Request head of a handshake, bytes.
pub const MAX_HANDSHAKE_HEAD: usize = 32 << 10;
/// Writing one control message: a peer that does not read for this long is dead.
pub const CONTROL_WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Lanes of one bundle: each costs a node some 25 KiB, and the largest machines have no use for more.
pub const MAX_LANES: usize = 16;
/// Body of a request for an upgrade, bytes. Node and agent each hold it whole before they act on it. `docker exec`
/// announces a command's options in some hundred; an environment or a long command line fits.
pub const MAX_UPGRADE_BODY: usize = 64 << 10;
/// How long a stream whose body broke off lives on, so that what was sent before can leave: h2 drops data that waits
/// when a stream is reset. A connection's task writes at its next turn.
pub const LAST_FRAMES: Duration = Duration::from_millis(20);
/// Informational heads passed before the final one. Heads have no flow control, and each begins the wait for the
/// next anew: a service that sends them without end would hold its request for ever. One or two are usual.
pub const MAX_INFORMATIONAL: usize = 16;
