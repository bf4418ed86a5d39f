//! What a node is told to do by its admin port, and what it tells of it.

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

/// What the program is to do with its node.
#[derive(Debug)]
pub enum Order {
    /// Read the configuration again, and tell what came of it.
    Reload(oneshot::Sender<Reloaded>),
}

/// What came of a configuration that was read again.
pub type Reloaded = Result<Taken, String>;

/// A configuration that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// Plugins that were loaded anew.
    pub loaded_plugins: usize,
    /// Keys that have changed and need a restart.
    pub needs_restart: Vec<String>,
}

/// Where orders go. One waits at most: whoever gives them waits for what comes of them.
pub(crate) fn channel() -> (mpsc::Sender<Order>, mpsc::Receiver<Order>) {
    mpsc::channel(1)
}
