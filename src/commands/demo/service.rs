//! The example service of the demo: says what it was asked.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Serves until dropped.
pub(super) async fn serve(listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                let http = hyper::server::conn::http1::Builder::new();
                connections.spawn(http.serve_connection(TokioIo::new(stream), service_fn(hello)));
            }
            // A connection that broke is the agent's to notice.
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn hello(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let from = request.headers().get("x-forwarded-for").and_then(|from| from.to_str().ok());
    let text = format!(
        "Hello from a service behind piko!\n{} {} (asked by {})\n",
        request.method(),
        request.uri(),
        from.unwrap_or("someone"),
    );
    Ok(Response::new(Full::new(Bytes::from(text))))
}
