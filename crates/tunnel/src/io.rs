//! The byte stream below a session: TCP, TLS, or WebSocket messages.

use tokio::io::{AsyncRead, AsyncWrite};

/// Any byte stream a session can run on.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for T {}

/// A byte stream whose kind does not matter any more.
pub type BoxIo = Box<dyn Io>;
