//! A node that opens and resets streams without end: the agent's tasks come to run in between.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use piko_test_support::http2::{END_HEADERS, HEADERS, PREFACE, RST_STREAM, SETTINGS, block, frame};
use piko_tunnel::agent_session::AgentSession;
use piko_tunnel::handshake::CONTROL_PATH;
use piko_tunnel::{Settings, limits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, WriteHalf, duplex, split};

const CANCEL: [u8; 4] = 8u32.to_be_bytes();
fn head(method: &str, path: &str) -> Vec<u8> {
    block(&[(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path)])
}

/// The agent's end of a tunnel whose node has opened and reset so many streams, all at once.
async fn flooded(streams: usize) -> (AgentSession<DuplexStream>, WriteHalf<DuplexStream>) {
    let settings = Settings {
        stream_window: 1 << 20,
        connection_window: 16 << 20,
        stall_timeout: None,
        ping_interval: Duration::from_secs(10),
        ping_timeout: Duration::from_secs(5),
        stalled: std::sync::Arc::default(),
    };
    // The pipe holds the whole flood, as a socket's buffers on both sides hold megabytes of it.
    let (near, far) = duplex(8 << 20);
    let (mut read, mut write) = split(near);
    tokio::spawn(async move { while read.read(&mut [0; 65_536]).await.is_ok_and(|n| n > 0) {} });
    let begun =
        [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, END_HEADERS, 1, &head("POST", CONTROL_PATH))];
    write.write_all(&begun.concat()).await.unwrap();
    let (session, _control) = AgentSession::handshake(far, &settings).await.unwrap();
    let get = head("GET", "/");
    let flood = (0..streams).flat_map(|n| {
        let stream = 3 + 2 * u32::try_from(n).unwrap();
        [frame(HEADERS, END_HEADERS, stream, &get), frame(RST_STREAM, 0, stream, &CANCEL)].concat()
    });
    let flood: Vec<u8> = flood.collect();
    assert!(flood.len() < 8 << 20);
    write.write_all(&flood).await.unwrap();
    (session, write)
}

/// One thread, so that a loop that never pauses is seen: nothing else would run.
#[tokio::test]
async fn tasks_of_streams_that_were_reset_do_not_pile_up() {
    let streams = limits::MAX_PENDING_RESETS - 1;
    let (mut session, _open) = flooded(streams).await;
    let most = Arc::new(AtomicUsize::new(0));
    let (running, seen) = (Arc::new(AtomicUsize::new(0)), most.clone());
    let accepting = tokio::spawn(async move {
        for _ in 0..streams {
            let mut incoming = session.accept().await.unwrap().unwrap();
            let running = running.clone();
            seen.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
            tokio::spawn(async move {
                poll_fn(|cx| incoming.respond.poll_reset(cx)).await.unwrap();
                running.fetch_sub(1, SeqCst);
            });
        }
    });
    accepting.await.unwrap();
    let most = most.load(SeqCst);
    assert!(most <= 1_000, "{most} tasks at once");
}

#[tokio::test]
async fn more_resets_at_once_than_streams_may_be_open_end_the_tunnel() {
    let (mut session, _open) = flooded(2 * limits::MAX_PENDING_RESETS).await;
    assert!(matches!(session.accept().await, Some(Err(_))));
}
