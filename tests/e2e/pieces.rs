//! Bodies in small pieces: they arrive whole and in order, none waits for the next, and none costs others their tunnel.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Request;
use piko_test_support::client::raw;
use piko_test_support::program::{agent, cluster};
use piko_test_support::service::Service;
use piko_test_support::within;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::piko;

/// How a service frames its pieces.
#[derive(Clone, Copy, Debug)]
enum Framing {
    Chunked,
    Length,
    Close,
}

/// Of all sizes around those that are gathered.
fn pieces() -> Vec<Vec<u8>> {
    let size = |n: usize| [1, 2, 7, 157, 1_000, 1_023, 1_024, 1_025, 20_000, 3][n % 10];
    (0..60).map(|n| (0..size(n)).map(|at| ((n * 31 + at * 7) % 251) as u8).collect()).collect()
}

/// Answers `/` by nothing, and any other path by the pieces in the framing that it names. `go`: the next piece is
/// written for each message; without one, all are written at once.
async fn service(go: Option<mpsc::Receiver<()>>) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut go = go;
        while let Ok((stream, _)) = listener.accept().await {
            // A client that is gone is the test's own affair.
            let _ = serve(stream, &mut go).await;
        }
    });
    (addr, AbortOnDropHandle::new(task))
}

async fn serve(mut stream: TcpStream, go: &mut Option<mpsc::Receiver<()>>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let framing = match head.split(|byte| *byte == b' ').nth(1) {
        Some(b"/chunked") => Framing::Chunked,
        Some(b"/length") => Framing::Length,
        Some(b"/close") => Framing::Close,
        _ => {
            return stream
                .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                .await;
        }
    };
    let pieces = pieces();
    let framed = match framing {
        Framing::Chunked => "transfer-encoding: chunked\r\n".to_owned(),
        Framing::Length => format!("content-length: {}\r\n", pieces.concat().len()),
        Framing::Close => String::new(),
    };
    stream.write_all(format!("HTTP/1.1 200 OK\r\nconnection: close\r\n{framed}\r\n").as_bytes()).await?;
    for piece in pieces {
        if let Some(go) = go {
            go.recv().await;
        }
        let piece = match framing {
            Framing::Chunked => [format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat(),
            Framing::Length | Framing::Close => piece,
        };
        stream.write_all(&piece).await?;
    }
    if let Framing::Chunked = framing {
        stream.write_all(b"0\r\n\r\n").await?;
    }
    stream.shutdown().await
}

const FRAMINGS: [Framing; 3] = [Framing::Chunked, Framing::Length, Framing::Close];

fn path(framing: Framing) -> String {
    format!("/{framing:?}").to_lowercase()
}

/// An answer's body over HTTP/2, by a client with h2's own limits. `read` is told of each piece with all bytes so far.
async fn by_2(addr: SocketAddr, framing: Framing, mut read: impl AsyncFnMut(usize)) -> Vec<u8> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::get(format!("http://pieces.example.com{}", path(framing))).body(()).unwrap();
    let (answer, _) = client.ready().await.unwrap().send_request(request, true).unwrap();
    let (mut all, mut body) = (Vec::new(), answer.await.unwrap().into_body());
    read(0).await;
    while let Some(data) = body.data().await {
        let data: Bytes = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
        read(all.len()).await;
    }
    all
}

#[tokio::test]
async fn no_piece_waits_for_the_next() {
    let nodes = cluster(piko(), 2, &[]).await;
    let (send, receive) = mpsc::channel(1);
    let (addr, _service) = service(Some(receive)).await;
    let _agent = agent(piko(), nodes[0].upstream, &format!("pieces/{addr}"), &[]);
    let ends: Vec<usize> = pieces()
        .iter()
        .scan(0, |end, piece| {
            *end += piece.len();
            Some(*end)
        })
        .collect();
    for node in &nodes {
        node.routes("pieces", 200).await;
        for framing in FRAMINGS {
            // The next piece is sent when all before it were read: one that is held would wait for ever.
            let mut asked = 0usize;
            let read = async |so_far: usize| {
                let last = asked.checked_sub(1).map_or(0, |n| ends[n]);
                if so_far == last && asked < ends.len() {
                    asked += 1;
                    send.send(()).await.unwrap();
                }
            };
            let all = within(&format!("{framing:?}"), by_2(node.proxy, framing, read)).await;
            assert_eq!(all, pieces().concat(), "{framing:?}");
        }
    }
}

#[tokio::test]
async fn pieces_that_come_at_once_arrive_whole_and_in_order() {
    let nodes = cluster(piko(), 2, &[]).await;
    let (addr, _service) = service(None).await;
    let _agent = agent(piko(), nodes[0].upstream, &format!("pieces/{addr}"), &[]);
    for node in &nodes {
        node.routes("pieces", 200).await;
        for framing in FRAMINGS {
            let all = within(&format!("{framing:?}"), by_2(node.proxy, framing, async |_| ())).await;
            assert_eq!(all, pieces().concat(), "{framing:?} over HTTP/2");
            // An HTTP/1.0 client has no chunks: what it reads is the body itself.
            let request = format!("GET {} HTTP/1.0\r\nx-piko-endpoint: pieces\r\n\r\n", path(framing));
            let mut stream = TcpStream::connect(node.proxy).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut read = Vec::new();
            within("an answer", stream.read_to_end(&mut read)).await.unwrap();
            let head = read.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
            assert_eq!(read[head + 4..], pieces().concat(), "{framing:?} over HTTP/1.0");
        }
    }
    let direct = raw(addr, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(direct.starts_with("HTTP/1.1 200"), "the service is still there: {direct}");
}

/// A frame for each chunk had h2 end the tunnel (`too_many_data_frames`), and every request on it.
#[tokio::test]
async fn an_upload_in_tiny_chunks_costs_nobody_the_tunnel() {
    const CHUNKS: usize = 400_000;
    let nodes = cluster(piko(), 2, &[]).await;
    let service = Service::start("one").await;
    let agent = agent(piko(), nodes[0].upstream, &format!("pieces/{}", service.addr), &[]);
    let body = "1\r\nx\r\n".repeat(CHUNKS);
    for node in &nodes {
        node.routes("pieces", 200).await;
        let head = "POST /upload HTTP/1.1\r\nhost: x\r\nx-piko-endpoint: pieces\r\nconnection: close\r\n";
        let request = format!("{head}transfer-encoding: chunked\r\n\r\n{body}0\r\n\r\n");
        let answer = raw(node.proxy, request.as_bytes()).await.unwrap();
        assert!(answer.contains(&format!("\"bytes\":{CHUNKS}")), "{answer}");
    }
    assert!(!agent.log().contains("disconnected"), "{}", agent.log());
}
