//! The keys of `tunnel`, the same for node and agent.

use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ByteSize, HumanDuration, Invalid};

/// What a window may be, bytes: at most 2^31-1 (RFC 9113, section 6.9.1); below 64 KiB not one frame fits.
const WINDOW: RangeInclusive<u64> = 64 << 10..=(1 << 31) - 1;

/// Windows and liveness of tunnels and peer links. Each end uses its own; they need not be equal.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TunnelConfig {
    /// Largest HTTP/2 window of one stream. It begins with 256KiB and grows up to here as the measured
    /// round trip needs; it caps one transfer at window / round-trip time (8MiB: 640 Mbit/s over 100 ms).
    pub stream_window: ByteSize,
    /// What all streams of one tunnel may hold in memory while their readers take nothing. The nearer
    /// it comes, the smaller windows get; beyond it, the streams that hold most for longest are reset.
    pub connection_window: ByteSize,
    /// A stream that holds bytes of which its reader takes none for so long is reset. A stream that is
    /// only idle lives. Readers of TCP connections and WebSockets get ten times as long. 0: no limit.
    pub stall_timeout: HumanDuration,
    /// How often the other end is asked whether it lives.
    pub ping_interval: HumanDuration,
    /// How long its answer may take before the tunnel is taken for dead.
    pub ping_timeout: HumanDuration,
}

impl Default for TunnelConfig {
    fn default() -> Self {
        TunnelConfig {
            stream_window: ByteSize(8 << 20),
            connection_window: ByteSize(32 << 20),
            stall_timeout: HumanDuration::secs(60),
            ping_interval: HumanDuration::secs(10),
            ping_timeout: HumanDuration::secs(5),
        }
    }
}

impl TunnelConfig {
    /// Checks the values of the section `tunnel`.
    ///
    /// # Errors
    /// Names the key, and what it may be.
    pub fn validate(&self) -> Result<(), Invalid> {
        for (key, size) in [
            ("tunnel.stream_window", self.stream_window),
            ("tunnel.connection_window", self.connection_window),
        ] {
            if !WINDOW.contains(&size.0) {
                return Err(Invalid::new(key, "must be from 64KiB to 2147483647"));
            }
        }
        for (key, time) in
            [("tunnel.ping_interval", self.ping_interval), ("tunnel.ping_timeout", self.ping_timeout)]
        {
            if time.get().is_zero() {
                return Err(Invalid::new(key, "must be more than 0"));
            }
        }
        Ok(())
    }
}
