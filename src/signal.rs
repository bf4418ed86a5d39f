//! SIGTERM and SIGINT: the first asks to leave well, the second to leave at once. SIGHUP: reload.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Two tokens, cancelled by the first and the second signal.
#[derive(Debug, Clone)]
pub(crate) struct Shutdown {
    /// Cancelled by the first signal: leave well.
    pub(crate) first: CancellationToken,
    /// Cancelled by the second: leave at once.
    pub(crate) second: CancellationToken,
}

/// Listens for SIGTERM and SIGINT from now on.
pub(crate) fn shutdown() -> Shutdown {
    let tokens = Shutdown { first: CancellationToken::new(), second: CancellationToken::new() };
    let (first, second) = (tokens.first.clone(), tokens.second.clone());
    let (term, int) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    // Lives as long as the process: there is nobody to await it.
    tokio::spawn(async move {
        let (Ok(mut term), Ok(mut int)) = (term, int) else {
            tracing::error!("cannot listen for signals; stop this process with SIGKILL");
            return;
        };
        for token in [first, second] {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            token.cancel();
        }
    });
    tokens
}

/// Listens for SIGHUP from now on.
///
/// # Errors
/// If the system does not let us.
pub(crate) fn hangup() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}
