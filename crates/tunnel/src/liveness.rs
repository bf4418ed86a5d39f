//! PING in one direction: is the other end still there?

use h2::{Ping, PingPong};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use crate::{SessionError, Settings};

/// Pings until an answer is late, and says so. Never ends on a healthy tunnel.
pub(crate) async fn watch(mut pings: PingPong, settings: &Settings) -> SessionError {
    let mut ticks = interval_at(Instant::now() + settings.ping_interval, settings.ping_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match timeout(settings.ping_timeout, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => return SessionError::Http2(e),
            Err(_) => return SessionError::Dead(settings.ping_timeout),
        }
    }
}
