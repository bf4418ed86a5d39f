//! `--serve DIR`: a folder as an HTTP service, behind a socket that this user alone can open.

use std::convert::Infallible;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tower_http::services::ServeDir;
use tower_service::Service as _;
use tracing::debug;

/// The agent keeps fewer connections to a service; more would be a fault of ours.
const MAX_CONNECTIONS: usize = 1024;

/// A socket in a folder of its own. Both are gone when it is dropped.
pub(super) struct Folder {
    dir: PathBuf,
    socket: PathBuf,
    served: PathBuf,
}

impl Folder {
    /// Checks the folder and makes a place for its socket.
    pub(super) fn new(served: &str) -> anyhow::Result<Folder> {
        let served = PathBuf::from(served);
        let meta = std::fs::metadata(&served).with_context(|| format!("--serve {}", served.display()))?;
        if !meta.is_dir() {
            bail!("--serve {}: that is a file; name the folder it is in", served.display());
        }
        // Others on this machine come through the tunnel or not at all: 0700.
        let dir =
            std::env::temp_dir().join(format!("piko-{}-{:08x}", std::process::id(), rand::random::<u32>()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("make {}", dir.display()))?;
        Ok(Folder { socket: dir.join("serve.sock"), dir, served })
    }

    /// The service, as a listener's `addr`.
    pub(super) fn addr(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    /// Serves until dropped.
    pub(super) async fn serve(&self) -> std::io::Result<Infallible> {
        let listener = UnixListener::bind(&self.socket)?;
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            if connections.len() >= MAX_CONNECTIONS {
                connections.join_next().await;
            }
            let (stream, _) = listener.accept().await?;
            let files = ServeDir::new(&self.served);
            let service = service_fn(move |request| {
                let mut files = files.clone();
                async move { files.call(request).await }
            });
            connections.spawn(async move {
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(e) = connection.await {
                    debug!(error = %e, "a connection to the served folder ended");
                }
            });
        }
    }

    /// What it serves.
    pub(super) fn served(&self) -> &Path {
        &self.served
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left of it holds nothing.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
