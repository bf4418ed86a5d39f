//! The same service for agents that speak HTTP/2 to it.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response, header};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::ask::{WINDOW, list, map};
use super::case::{Answer, Framing, nominated};
use super::recorder::Shared;
use super::wire::{self, Error, Seen};

pub(super) async fn start(shared: Arc<Shared>) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let shared = shared.clone();
            // As over HTTP/1: a client that is gone says itself what it wanted to know.
            connections.spawn(async move {
                let _ = serve(stream, shared).await;
            });
            while connections.try_join_next().is_some() {}
        }
    });
    (addr, AbortOnDropHandle::new(task))
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) -> Result<(), Error> {
    stream.set_nodelay(true)?;
    let mut builder = h2::server::Builder::new();
    let mut connection = builder.initial_connection_window_size(WINDOW).handshake(stream).await?;
    let mut streams = JoinSet::new();
    while let Some(next) = connection.accept().await {
        let (request, respond) = next?;
        let shared = shared.clone();
        streams.spawn(async move {
            let _ = answer(request, respond, &shared).await;
        });
    }
    Ok(())
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    shared: &Shared,
) -> Result<(), Error> {
    let head = request.method() == "HEAD";
    let seen = read(request).await?;
    let Some(answer) = shared.ordered(&seen) else {
        respond.send_response(Response::new(()), true)?;
        return Ok(());
    };
    shared.hear(seen);
    send(&answer, &mut respond, head)
}

/// A request, as it would be read of HTTP/1.
async fn read(request: Request<RecvStream>) -> Result<Seen, Error> {
    let (parts, mut body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let target = wire::text(target.as_bytes());
    let mut seen = Seen { line: format!("{} {target}", parts.method), ..Seen::default() };
    if let Some(authority) = parts.uri.authority() {
        seen.fields.push(("host".into(), authority.to_string()));
    }
    seen.fields.extend(list(&parts.headers));
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        seen.body.0.extend_from_slice(&data);
    }
    seen.trailers = body.trailers().await?.as_ref().map(list).unwrap_or_default();
    Ok(seen)
}

/// What is ordered, in frames: a chunk a frame, and trailers in their own.
fn send(answer: &Answer, respond: &mut SendResponse<Bytes>, head: bool) -> Result<(), Error> {
    for hint in &answer.hints {
        let mut response = Response::builder().status(103).body(())?;
        *response.headers_mut() = map(hint)?;
        respond.send_informational(response)?;
    }
    assert!(nominated(&answer.fields, answer.nominated).is_none(), "HTTP/2 has no `Connection`");
    let mut response = Response::builder().status(answer.status).body(())?;
    *response.headers_mut() = map(&answer.fields)?;
    let (size, announced, trailers) = match &answer.framing {
        Framing::Chunked(chunks) => {
            (chunks.size, chunks.announced, Some(&chunks.trailers).filter(|all| !all.is_empty()))
        }
        _ => (10_000, false, None),
    };
    if answer.framing == Framing::Length {
        response.headers_mut().insert(header::CONTENT_LENGTH, answer.body.0.len().into());
    }
    if let Some(trailers) = trailers.filter(|_| announced) {
        response.headers_mut().insert(header::TRAILER, wire::names(trailers).parse()?);
    }
    let bodiless = head || matches!(answer.status, 204 | 304);
    let mut stream = respond.send_response(response, bodiless)?;
    if bodiless {
        return Ok(());
    }
    for chunk in answer.body.0.chunks(size) {
        stream.send_data(Bytes::copy_from_slice(chunk), false)?;
    }
    match trailers {
        Some(trailers) => stream.send_trailers(map(trailers)?)?,
        None => stream.send_data(Bytes::new(), true)?,
    }
    Ok(())
}
