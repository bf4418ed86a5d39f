//! Single bytes on a tunnel: a sender that trickles them to nobody costs nobody the tunnel, and one that types is read
//! byte by byte, whatever else is on the tunnel.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use piko_test_support::http2::{DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, block, frame};
use piko_tunnel::agent_session::{AgentSession, Incoming};
use piko_tunnel::handshake::CONTROL_PATH;
use piko_tunnel::node_session;
use piko_tunnel::{Settings, limits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

const ACK: u8 = 1;

fn settings() -> Settings {
    Settings {
        stream_window: 8 << 20,
        connection_window: 32 << 20,
        stall_timeout: None,
        ping_interval: Duration::from_secs(10),
        ping_timeout: Duration::from_secs(5),
        stalled: std::sync::Arc::default(),
    }
}

/// Accepts streams until the tunnel ends.
fn accepting(mut session: AgentSession<DuplexStream>) -> mpsc::Receiver<Incoming> {
    let (arrived, incoming) = mpsc::channel(100);
    tokio::spawn(async move {
        while let Some(Ok(incoming)) = session.accept().await {
            let _ = arrived.send(incoming).await;
        }
    });
    incoming
}

#[tokio::test]
async fn streams_of_single_bytes_that_nobody_reads_cost_nobody_the_tunnel() {
    // Each stream's window has room for as many. All together are far over h2's budget for the tunnel.
    const STREAMS: u32 = 4;
    const BYTES: usize = 200_000;
    assert!(BYTES < limits::START_WINDOW as usize);
    assert!(STREAMS as usize * BYTES * 255 > 3 * limits::MAX_SMALL_FRAMES);
    let (near, far) = duplex(1 << 20);
    let (mut read, mut write) = split(near);
    tokio::spawn(async move { while read.read(&mut [0; 65_536]).await.is_ok_and(|n| n > 0) {} });
    let head = |method, path| {
        block(&[(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path)])
    };
    let begun =
        [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, END_HEADERS, 1, &head("POST", CONTROL_PATH))];
    write.write_all(&begun.concat()).await.unwrap();
    let (session, _control) = AgentSession::handshake(far, &settings()).await.unwrap();
    let mut incoming = accepting(session);
    // Its window counts once its settings are acknowledged.
    write.write_all(&frame(SETTINGS, ACK, 0, &[])).await.unwrap();

    let ids = (0..STREAMS).map(|n| 3 + 2 * n);
    let mut unread = Vec::new();
    for id in ids.clone() {
        write.write_all(&frame(HEADERS, END_HEADERS, id, &head("POST", "/"))).await.unwrap();
        unread.push(incoming.recv().await.unwrap());
    }
    // In turn, so that no stream's frames come together. The last of each says which stream it is.
    for n in 0..BYTES {
        let byte = |id: u32| if n == BYTES - 1 { id as u8 } else { n as u8 };
        let round: Vec<u8> = ids.clone().flat_map(|id| frame(DATA, 0, id, &[byte(id)])).collect();
        write.write_all(&round).await.unwrap();
    }
    // The tunnel is there for others, and nothing of what was sent is lost.
    write.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 99, &head("GET", "/other"))).await.unwrap();
    let other = incoming.recv().await.expect("the tunnel lives");
    assert_eq!(other.request.uri().path(), "/other");
    for (id, mut stream) in ids.zip(unread) {
        let (mut bytes, mut pieces) = (Vec::new(), 0);
        while bytes.len() < BYTES {
            bytes.extend_from_slice(&stream.request.body_mut().data().await.unwrap().unwrap());
            pieces += 1;
        }
        let sent: Vec<u8> = (0..BYTES - 1).map(|n| n as u8).chain([id as u8]).collect();
        assert!(bytes == sent, "stream {id} is whole and in order");
        assert!(pieces < BYTES / 2, "{pieces} pieces: most were joined while they waited");
    }
}

#[tokio::test(start_paused = true)]
async fn one_who_types_is_read_byte_by_byte_and_never_cut() {
    const BYTES: u32 = 3_000;
    let (near, far) = duplex(64 << 10);
    let agents = tokio::spawn(async move {
        let (session, control) = AgentSession::handshake(far, &settings()).await.unwrap();
        (accepting(session), control)
    });
    let (opener, driver, _control) = node_session::handshake(near, &settings()).await.unwrap();
    tokio::spawn(driver.run());
    let (mut incoming, _agents_control) = agents.await.unwrap();
    let mut open = async || {
        let mut sender = opener.ready().await.unwrap();
        let asked = sender.send_request(Request::get("http://service/").body(()).unwrap(), true).unwrap();
        let Incoming { mut respond, .. } = incoming.recv().await.unwrap();
        let stream = respond.send_response(Response::new(()), false).unwrap();
        (opener.windows().receive(asked.0.await.unwrap().into_body()), stream, respond)
    };
    let (mut typed, mut keys, _respond) = open().await;
    let (mut loud, mut noise, _respond) = open().await;
    // What else is on the tunnel has it gather small frames all the time, between two bytes as well.
    let noise = tokio::spawn(async move {
        let chunk = Bytes::from(vec![0; 64 << 10]);
        while piko_tunnel::body::send_data(&mut noise, chunk.clone(), false).await.is_ok() {
            sleep(Duration::from_millis(1)).await;
        }
    });
    let hearing = tokio::spawn(async move { while let Some(Ok(_)) = loud.data().await {} });
    // It waits all the time, also while streams are gathered.
    let (send, mut read) = mpsc::channel(1);
    let reading = tokio::spawn(async move {
        for _ in 0..BYTES {
            send.send(typed.data().await.unwrap().unwrap()).await.unwrap();
        }
        typed
    });
    for n in 0..BYTES {
        keys.send_data(vec![n as u8].into(), false).unwrap();
        let read = timeout(Duration::from_secs(1), read.recv()).await;
        assert_eq!(read.expect("its reader is woken").unwrap(), [n as u8][..]);
        // Longer than it is between two rounds of gathering.
        sleep(Duration::from_millis(if n % 2 == 0 { 5 } else { 25 })).await;
    }
    let mut typed = reading.await.unwrap();
    // A reader that pauses for minutes gets what was typed meanwhile.
    for n in 0..BYTES {
        keys.send_data(vec![n as u8].into(), false).unwrap();
        sleep(Duration::from_millis(50)).await;
    }
    let mut late = Vec::new();
    while late.len() < BYTES as usize {
        late.extend_from_slice(&typed.data().await.unwrap().unwrap());
    }
    assert_eq!(late, (0..BYTES).map(|n| n as u8).collect::<Vec<_>>());
    assert_eq!(opener.windows().stalled(), 0, "nobody was cut");
    noise.abort();
    hearing.abort();
}
