//! Every limit and wait between agent and services, with its reason: those of ours, and those of hyper, h2 and rustls
//! that would hold otherwise.
//!
//! Left as they are, since they fit: Happy Eyeballs begins the other family after 300 ms (RFC 8305); rustls
//! bounds its own buffers (64 KiB of plaintext) and handshake messages (64 KiB); 16 KiB are read of an HTTP/2 frame's header
//! table (RFC 9113, 6.5.2: 4 KiB). WebSockets of clients are bytes here: no limit on messages.

use std::time::Duration;

use piko_tunnel::limits::{MAX_HEADER_LIST, MAX_MESSAGE_HEADERS, MAX_STREAMS};

/// A new connection, TLS included. TCP's own limit is two minutes; a listener's `timeout` may be longer, or none.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams served at once, over all tunnels and lanes. Those that a node resets count until their tasks have
/// noticed, so a node that opens and resets without end cannot fill the memory.
pub(crate) const MAX_SERVED: usize = 2 * MAX_STREAMS as usize;
/// Header fields of one response: as many as fit into [`MAX_MESSAGE_HEADERS`] at 33 bytes for the smallest, so
/// that bytes are the limit. hyper's own is 100, which pages with many cookies and links pass.
pub(crate) const MAX_FIELDS: usize = MAX_MESSAGE_HEADERS / 32;
/// The same for a service that has not sent more so far: hyper clears a place for each field before every response,
/// and [`MAX_FIELDS`] of them took an eighth of an agent's time.
pub(crate) const USUAL_FIELDS: usize = 256;
/// A response head, and what is read at once of a body, bytes. hyper's own is 400 KiB.
pub(crate) const MAX_BUFFER: usize = MAX_HEADER_LIST as usize;
/// What one response of an HTTP/2 service may have on the way, bytes. hyper's own is 2 MiB; with the tunnel's window
/// behind it, this much fills it again in time.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
/// HTTP/2's largest: responses that nobody reads must not hold up the others. Streams are the limit.
pub(crate) const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Streams on a connection to an HTTP/2 service before it has said how many it takes: what RFC 9113 (section 6.5.2) asks
/// each to take at least. h2 would begin any number, and be refused some.
pub(crate) const FIRST_STREAMS: usize = 100;
/// How long an HTTP/2 service with requests under way may be silent before it is asked whether it lives. h2 does not by
/// itself: a connection that died without a word would take every new request until TCP gives up, a quarter of an
/// hour later.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How often the same silence is asked about again: gRPC servers take more as an attack (see `alive.rs`).
pub(crate) const PATIENT_INTERVAL: Duration = Duration::from_secs(305);
/// How long its answer may take.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a service may take to read the rest of a request that it has answered already.
pub(crate) const REST_OF_UPLOAD: Duration = Duration::from_secs(10);
/// How long the body of a request for an upgrade may take through the tunnel: the node has all of it before it asks.
pub(crate) const UPGRADE_BODY_TIME: Duration = Duration::from_secs(30);
/// How long one direction of a WebSocket may outlive the other: its closing handshake (RFC 6455, section 7).
pub(crate) const LINGER: Duration = Duration::from_secs(10);
/// How much earlier than announced an idle connection is left: the service's clock started before ours.
pub(crate) const IDLE_MARGIN: Duration = Duration::from_secs(1);
/// How long a logged in connection waits for its client's next request: long enough to read a page. The node does
/// not tell when a client has gone, and a login that was lost is asked for again by the service.
pub(crate) const LOGGED_IN_IDLE: Duration = Duration::from_secs(60);
