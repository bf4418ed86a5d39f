//! A program that serves an endpoint itself: its HTTP server is on a port of this machine, and the agent inside the
//! program keeps a tunnel to a node.
//!
//! `cargo run -p piko-agent --example embed -- http://localhost:8001 my-endpoint`, with a node on this machine, then
//! `curl http://localhost:8000 -H "x-piko-endpoint: my-endpoint"`. Ctrl-C ends it.

use std::convert::Infallible;
use std::error::Error;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use piko_agent::config::AgentConfig;
use piko_agent::{Agent, Event};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let node = args.next().unwrap_or_else(|| "http://localhost:8001".to_owned());
    let endpoint = args.next().unwrap_or_else(|| "my-endpoint".to_owned());

    // Only this machine reaches the service; everybody else comes through the tunnel.
    let service = TcpListener::bind(("127.0.0.1", 0)).await?;
    let mut config = AgentConfig::default();
    config.connect.url = node;
    config.endpoints = vec![format!("{endpoint}/{}", service.local_addr()?)];
    // Checks the configuration, and says which key is wrong. Nothing is dialled yet.
    let agent = Agent::new(config)?;

    let serving = tokio::spawn(serve(service));
    let leave = CancellationToken::new();
    let ctrl_c = tokio::spawn({
        let leave = leave.clone();
        async move {
            // Where no signal can be had, the program is ended from outside.
            if tokio::signal::ctrl_c().await.is_ok() {
                leave.cancel();
            }
        }
    });
    // Returns when it has left well: no new requests, and those under way are answered.
    let ended = agent.run(leave, |event| report(&event)).await;
    ctrl_c.abort();
    serving.abort();
    Ok(ended?)
}

#[allow(clippy::print_stdout, reason = "an example talks to a person")]
fn report(event: &Event) {
    println!("{event:?}");
}

async fn serve(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let answer = service_fn(|_| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"from within the program\n"))))
        });
        let connection =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
        tokio::spawn(connection);
    }
}
