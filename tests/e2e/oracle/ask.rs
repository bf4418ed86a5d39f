//! The clients: a case over HTTP/1, and over HTTP/2.

use std::future::{pending, poll_fn};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::SendRequest;
use http::uri::{self, Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::carried;
use super::case::{Body, Case, Fields, Framing, Manner, Version, nominated};
use super::wire::{self, Error, Reader, Seen, bytes, framed, head, paced, text};

const HOST: &str = "oracle.example:8000";

/// Of a connection, bytes. h2 counts 256 of them for each frame that waits, and ends a connection that has no room for
/// more: a body of single bytes, whose reader is late, is no attack here.
pub(super) const WINDOW: u32 = 1 << 28;

/// Fields of a request that are there in every version.
fn named(case: &Case) -> Fields {
    let mut fields = vec![("X-Piko-Endpoint".to_owned(), "oracle".to_owned())];
    fields.extend(case.fields.iter().cloned());
    fields.push(("X-Answer".into(), "as ordered".into()));
    if case.te {
        fields.push(("TE".into(), "trailers".into()));
    }
    fields
}

/// Sends the request by HTTP/1, and reads the answer. `again`: the connection has to serve another request after it.
pub(super) async fn by_1(to: SocketAddr, case: &Case, again: bool) -> Result<Seen, Error> {
    let version = u8::from(case.version != Version::Http10);
    let mut fields = vec![("Host".to_owned(), HOST.to_owned())];
    fields.extend(named(case));
    let mut connection = Vec::new();
    if case.version == Version::Http10 {
        connection.push("close");
    }
    if let Manner::Upgrade(protocol) = case.manner {
        connection.push("Upgrade");
        fields.push(("Upgrade".into(), protocol.into()));
        if protocol == "websocket" {
            fields.push(("Sec-WebSocket-Key".into(), "dGhlIHNhbXBsZSBub25jZQ==".into()));
            fields.push(("Sec-WebSocket-Version".into(), "13".into()));
        }
    }
    if case.manner == Manner::Expect {
        fields.push(("Expect".into(), "100-continue".into()));
    }
    connection.extend(nominated(&case.fields, case.nominated));
    if !connection.is_empty() {
        fields.push(("Connection".into(), connection.join(", ")));
    }
    let line = format!("{} {} HTTP/1.{version}", case.method, case.target);
    let head = head(&line, &fields, &case.framing, case.body.0.len());
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.split();
    let mut reader = Reader::new(read);
    let bodiless = case.method == "HEAD";
    if case.switches() {
        paced(&mut write, &head, &case.pace).await?;
        let mut seen = reader.answer(bodiless).await?;
        let sending = async {
            paced(&mut write, &case.body.0, &case.pace).await?;
            write.shutdown().await
        };
        let (sent, rest) = tokio::join!(sending, reader.rest());
        sent?;
        seen.body = Body(rest?);
        return Ok(seen);
    }
    let mut whole = framed(&case.framing, &case.body.0);
    if case.manner == Manner::Expect && case.framing != Framing::None {
        paced(&mut write, &head, &case.pace).await?;
        if !reader.goes_on().await? {
            return reader.answer(bodiless).await;
        }
    } else {
        whole = [head, whole].concat();
    }
    let seen = {
        // An answer may come before the request's end; the rest of it is refused, then.
        let sending = async {
            let _ = paced(&mut write, &whole, &case.pace).await;
            pending().await
        };
        tokio::select! {
            seen = reader.answer(bodiless) => seen?,
            () = sending => return Err("sending has no end of its own".into()),
        }
    };
    if again {
        let next = format!("GET /again HTTP/1.1\r\nHost: {HOST}\r\nX-Piko-Endpoint: oracle\r\n\r\n");
        let next = async {
            write.write_all(next.as_bytes()).await?;
            reader.answer(false).await
        };
        let next = next.await.map_err(|error| format!("the next request on its connection: {error}"))?;
        if next.line != "200" {
            return Err(format!("the next request on its connection reads {next:?}").into());
        }
    }
    if !reader.left().is_empty() {
        return Err(format!("more than an answer came: {}", reader.left().escape_ascii()).into());
    }
    Ok(seen)
}

/// The same by HTTP/2.
pub(super) async fn by_2(to: SocketAddr, case: &Case) -> Result<Seen, Error> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut builder = h2::client::Builder::new();
    let (client, connection) = builder.initial_connection_window_size(WINDOW).handshake(stream).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let mut headers = map(&named(case))?;
    match &case.framing {
        Framing::Length => _ = headers.insert("content-length", case.body.0.len().into()),
        Framing::Chunked(chunks) if chunks.announced && !chunks.trailers.is_empty() => {
            headers.insert("trailer", wire::names(&chunks.trailers).parse()?);
        }
        _ => {}
    }
    let end = case.framing == Framing::None;
    let mut client = client.ready().await?;
    let (mut answer, send) =
        client.send_request(request(case.method, &carried(&case.target), headers)?, end)?;
    let sending = async {
        if !end {
            // A stream that takes no more has its answer, or breaks it.
            let _ = send_body(send, case).await;
        }
        pending().await
    };
    let reading = async {
        let mut hints = Vec::new();
        while let Some(hint) = poll_fn(|cx| answer.poll_informational(cx)).await {
            let hint = hint?;
            if hint.status() == 103 {
                hints.push(list(hint.headers()));
            }
        }
        let (parts, mut body) = answer.await?.into_parts();
        let line = parts.status.as_str().to_owned();
        let mut seen = Seen { hints, line, fields: list(&parts.headers), ..Seen::default() };
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            seen.body.0.extend_from_slice(&data);
        }
        seen.trailers = body.trailers().await?.as_ref().map(list).unwrap_or_default();
        Ok::<_, Error>(seen)
    };
    let seen = tokio::select! {
        seen = reading => seen?,
        () = sending => return Err("sending has no end of its own".into()),
    };
    let next = next_by_2(client).await;
    next.map_err(|error| format!("the next request on its connection: {error}"))?;
    Ok(seen)
}

async fn next_by_2(client: SendRequest<Bytes>) -> Result<(), Error> {
    let headers = map(&vec![("X-Piko-Endpoint".into(), "oracle".into())])?;
    let next = client.ready().await?.send_request(request("GET", "/again", headers)?, true)?.0.await?;
    if next.status() == 200 { Ok(()) } else { Err(format!("{next:?}").into()) }
}

async fn send_body(mut send: SendStream<Bytes>, case: &Case) -> Result<(), Error> {
    let size = if let Framing::Chunked(chunks) = &case.framing { chunks.size } else { 10_000 };
    let mut sent = 0;
    for chunk in case.body.0.chunks(size) {
        send.send_data(Bytes::copy_from_slice(chunk), false)?;
        let before = sent;
        sent += chunk.len();
        let cut = |(at, waits): &(proptest::sample::Index, bool)| {
            *waits && (before..sent).contains(&at.index(case.body.0.len()))
        };
        if case.pace.iter().any(cut) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::task::yield_now().await;
    }
    match &case.framing {
        Framing::Chunked(chunks) if !chunks.trailers.is_empty() => {
            send.send_trailers(map(&chunks.trailers)?)?;
        }
        _ => send.send_data(Bytes::new(), true)?,
    }
    Ok(())
}

fn request(method: &str, target: &str, headers: HeaderMap) -> Result<Request<()>, Error> {
    let mut parts = uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::from_static(HOST));
    parts.path_and_query = Some(PathAndQuery::from_maybe_shared(Bytes::from(bytes(target)))?);
    let mut request = Request::builder().method(method).uri(Uri::from_parts(parts)?).body(())?;
    *request.headers_mut() = headers;
    Ok(request)
}

pub(super) fn map(fields: &Fields) -> Result<HeaderMap, Error> {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.append(HeaderName::try_from(name)?, HeaderValue::from_bytes(&bytes(value))?);
    }
    Ok(map)
}

pub(super) fn list(map: &HeaderMap) -> Fields {
    map.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect()
}
