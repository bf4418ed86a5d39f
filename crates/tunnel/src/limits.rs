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
/// Bytes one stream may queue in h2 before its sender waits.
pub const MAX_SEND_BUFFER: usize = 1 << 20;
/// Streams open at once on one tunnel.
pub const MAX_STREAMS: u32 = 10_000;
/// Streams reset before they were accepted. A node resets one for each client that hangs up.
pub const MAX_PENDING_RESETS: usize = 100_000;
/// Reset streams remembered so that frames already on the way are not an error.
pub const MAX_REMEMBERED_RESETS: usize = 1_000;
/// Handshake, from the first byte to the control stream.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Request head of a handshake, bytes.
pub const MAX_HANDSHAKE_HEAD: usize = 32 << 10;
/// Writing one control message: a peer that does not read for this long is dead.
pub const CONTROL_WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest endpoint name, bytes: two DNS labels.
pub const MAX_ENDPOINT_LEN: usize = 128;
/// How long opening a stream may wait for a free slot on the tunnel.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
