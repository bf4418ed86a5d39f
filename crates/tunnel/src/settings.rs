//! What both ends of a tunnel agree on by configuration: windows and liveness.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use piko_bootstrap::config::TunnelConfig;

use crate::limits;

/// Windows and liveness of one tunnel. Each end uses its own; they need not be equal.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Largest HTTP/2 window of one stream, bytes: it grows up to here as the measured round trip
    /// needs. Caps one stream at window / round-trip time.
    pub stream_window: u32,
    /// How much the streams of one tunnel may hold unread together, bytes.
    pub connection_window: u32,
    /// How long a stream may hold bytes of which its reader takes none. With `None`, as long as there is room.
    pub stall_timeout: Option<Duration>,
    /// How often a PING is sent on a tunnel.
    pub ping_interval: Duration,
    /// How long its answer may take before the tunnel is taken for dead.
    pub ping_timeout: Duration,
    /// Counts the streams that were cut off on all tunnels of these settings, because they held bytes that nobody read.
    pub stalled: Arc<AtomicU64>,
}

impl From<&TunnelConfig> for Settings {
    fn from(config: &TunnelConfig) -> Self {
        Settings {
            // The configuration's check keeps both below 2^31.
            stream_window: config.stream_window.0 as u32,
            connection_window: config.connection_window.0 as u32,
            stall_timeout: config.stall_timeout.on(),
            ping_interval: config.ping_interval.into(),
            ping_timeout: config.ping_timeout.into(),
            stalled: Arc::default(),
        }
    }
}

impl Settings {
    /// The largest window of a stream: four of them fit into what the tunnel may hold.
    pub(crate) fn max_window(&self) -> u32 {
        self.stream_window.min(self.connection_window / 4).max(limits::STREAM_FLOOR)
    }

    /// The h2 client a node (or a node's peer link) runs on a tunnel.
    pub(crate) fn client(&self) -> h2::client::Builder {
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .max_concurrent_streams(0)
            // Until the other end's SETTINGS say how many it takes.
            .initial_max_send_streams(limits::MAX_STREAMS as usize)
            .initial_window_size(limits::START_WINDOW.min(self.max_window()))
            .initial_connection_window_size(limits::CONNECTION_WINDOW)
            .max_frame_size(limits::MAX_FRAME)
            .max_header_list_size(limits::MAX_HEADER_LIST)
            .max_send_buffer_size(limits::MAX_SEND_BUFFER)
            .data_frame_budget(limits::MAX_SMALL_FRAMES);
        builder
    }

    /// The h2 server an agent (or a node's peer port) runs on a tunnel.
    ///
    /// The peer is a node, which resets a stream whenever a client hangs up: the rapid-reset guard
    /// meant for browsers would let a few impatient clients end the whole tunnel, so it is off.
    pub(crate) fn server(&self) -> h2::server::Builder {
        let mut builder = h2::server::Builder::new();
        builder
            .max_concurrent_streams(limits::MAX_STREAMS)
            .max_pending_accept_reset_streams(limits::MAX_PENDING_RESETS)
            .max_concurrent_reset_streams(limits::MAX_REMEMBERED_RESETS)
            .max_local_error_reset_streams(None)
            .initial_window_size(limits::START_WINDOW.min(self.max_window()))
            .initial_connection_window_size(limits::CONNECTION_WINDOW)
            .max_frame_size(limits::MAX_FRAME)
            .max_header_list_size(limits::MAX_HEADER_LIST)
            .max_send_buffer_size(limits::MAX_SEND_BUFFER)
            .data_frame_budget(limits::MAX_SMALL_FRAMES);
        builder
    }
}
