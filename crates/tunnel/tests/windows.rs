//! Readers that stop: whoever reads on is served, memory stays bounded, and long links are filled.
//! Both ends of a tunnel, over a pipe in memory; time is paused where it matters.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, SendStream};
use http::{Request, Response};
use piko_tunnel::agent_session::{AgentSession, Incoming};
use piko_tunnel::body::send_data;
use piko_tunnel::node_session::{self, Opener};
use piko_tunnel::receive::{ReceiveError, Receiver};
use piko_tunnel::{Settings, limits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

const MIB: usize = 1 << 20;

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

/// A tunnel whose two ends run in tasks: streams are opened with the first, and arrive at the second.
async fn tunnel(
    near: DuplexStream,
    far: DuplexStream,
    settings: &Settings,
) -> (Opener, mpsc::Receiver<Incoming>) {
    let (arrived, incoming) = mpsc::channel(10_000);
    let agents = settings.clone();
    tokio::spawn(async move {
        let (mut session, _control) = AgentSession::handshake(far, &agents).await.unwrap();
        while let Some(Ok(incoming)) = session.accept().await {
            let _ = arrived.send(incoming).await;
        }
    });
    let (opener, driver, control) = node_session::handshake(near, settings).await.unwrap();
    tokio::spawn(async move {
        let _control = control;
        driver.run().await
    });
    (opener, incoming)
}

async fn open(opener: &Opener, end: bool) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
    let mut sender: SendRequest<Bytes> = opener.ready().await.unwrap();
    let mut request = Request::new(());
    *request.uri_mut() = "http://service/".parse().unwrap();
    sender.send_request(request, end).unwrap()
}

/// Sends until the stream ends or nothing more is wanted, and says how much it was.
async fn send_all(mut stream: SendStream<Bytes>, mut bytes: usize) -> usize {
    let chunk = Bytes::from(vec![b'x'; 64 << 10]);
    let all = bytes;
    while bytes > 0 {
        let chunk = chunk.slice(..chunk.len().min(bytes));
        let len = chunk.len();
        if send_data(&mut stream, chunk, bytes == len).await.is_err() {
            break;
        }
        bytes -= len;
    }
    all - bytes
}

async fn read_all(receiver: &mut Receiver) -> Result<usize, ReceiveError> {
    let mut read = 0;
    while let Some(chunk) = receiver.data().await {
        read += chunk?.len();
    }
    Ok(read)
}

/// Answers every request with so many bytes.
fn serve(mut incoming: mpsc::Receiver<Incoming>, bytes: usize) {
    tokio::spawn(async move {
        while let Some(Incoming { request, mut respond }) = incoming.recv().await {
            tokio::spawn(async move {
                let _request = request;
                let stream = respond.send_response(Response::new(()), false).unwrap();
                send_all(stream, bytes).await
            });
        }
    });
}

async fn download(opener: &Opener) -> Receiver {
    let (response, _upload) = open(opener, true).await;
    opener.windows().receive(response.await.unwrap().into_body())
}

#[tokio::test(start_paused = true)]
async fn downloads_that_are_not_read_keep_nobody_waiting() {
    let (near, far) = duplex(64 << 10);
    let (opener, incoming) = tunnel(near, far, &settings()).await;
    serve(incoming, 64 * MIB);
    let mut stalled = Vec::new();
    for n in 0..200 {
        stalled.push(download(&opener).await);
        sleep(Duration::from_millis(100)).await;
        if n % 40 == 0 {
            let read =
                timeout(Duration::from_secs(60), async { read_all(&mut download(&opener).await).await });
            assert_eq!(read.await.expect("others are served").unwrap(), 64 * MIB, "with {n} stalled");
        }
    }
    assert!(opener.windows().held() <= 32 << 20, "{} bytes are held", opener.windows().held());
    assert_eq!(opener.windows().stalled(), 0, "windows got smaller instead");
}

#[tokio::test(start_paused = true)]
async fn uploads_that_are_not_read_keep_nobody_waiting() {
    let (near, far) = duplex(64 << 10);
    let (opener, mut incoming) = tunnel(near, far, &settings()).await;
    let mut deaf = Vec::new();
    for _ in 0..40 {
        let (_response, upload) = open(&opener, false).await;
        tokio::spawn(send_all(upload, 64 * MIB));
        deaf.push((incoming.recv().await.unwrap(), _response));
        sleep(Duration::from_millis(100)).await;
    }
    let (_response, upload) = open(&opener, false).await;
    let sent = tokio::spawn(send_all(upload, 64 * MIB));
    let mut request = incoming.recv().await.unwrap().request.into_body();
    let read = timeout(Duration::from_secs(60), read_all(&mut request)).await;
    assert_eq!(read.expect("others are served").unwrap(), 64 * MIB);
    assert_eq!(sent.await.unwrap(), 64 * MIB);
}

#[tokio::test(start_paused = true)]
async fn the_stream_that_holds_most_for_longest_is_cut_off_when_the_budget_is_used_up() {
    let (near, far) = duplex(64 << 10);
    let settings = Settings { connection_window: 1 << 20, ..settings() };
    let (opener, incoming) = tunnel(near, far, &settings).await;
    serve(incoming, 64 * MIB);
    // It holds a whole window, and has for longest.
    let mut worst = download(&opener).await;
    sleep(Duration::from_secs(60)).await;
    let told = worst.stalled();
    // Slow, but reading: it may hold as much.
    let mut slow = download(&opener).await;
    let reading = tokio::spawn(async move {
        while let Some(chunk) = slow.data().await {
            chunk?;
            sleep(Duration::from_secs(1)).await;
        }
        Ok::<_, ReceiveError>(())
    });
    let mut others = Vec::new();
    while opener.windows().stalled() == 0 {
        assert!(others.len() < 200, "nobody was ever cut off");
        others.push(download(&opener).await);
        sleep(Duration::from_secs(2)).await;
    }
    timeout(Duration::from_secs(1), told.wait()).await.expect("its owner is told");
    let error = worst.data().await.unwrap().unwrap_err();
    assert!(error.is_stalled() && error.reset_reason() == Reason::ENHANCE_YOUR_CALM, "{error}");
    assert!(!reading.is_finished(), "a slow reader is none that stalled");
    // Not everybody: three quarters of the budget may be held.
    assert!(opener.windows().stalled() < others.len() as u64 / 2);
}

#[tokio::test(start_paused = true)]
async fn a_stall_has_a_limit_but_silence_has_none() {
    let (near, far) = duplex(64 << 10);
    let settings = Settings { stall_timeout: Some(Duration::from_secs(60)), ..settings() };
    let (opener, mut incoming) = tunnel(near, far, &settings).await;
    let mut served = Vec::new();
    let mut ask = async |bytes: usize| {
        let (response, _upload) = open(&opener, true).await;
        let mut respond = incoming.recv().await.unwrap().respond;
        let stream = respond.send_response(Response::new(()), false).unwrap();
        let receiver = opener.windows().receive(response.await.unwrap().into_body());
        let mut stream = stream;
        stream.send_data(vec![0; bytes].into(), false).unwrap();
        served.push((stream, respond));
        receiver
    };
    let (mut stalled, mut bytes, mut events) = (ask(1000).await, ask(1000).await, ask(10).await);
    bytes.be_patient();
    assert_eq!(events.data().await.unwrap().unwrap().len(), 10);
    let silent = timeout(Duration::from_secs(100), events.data()).await;
    assert!(silent.is_err(), "an idle event stream lives");
    assert!(stalled.data().await.unwrap().unwrap_err().is_stalled());
    assert_eq!(bytes.data().await.unwrap().unwrap().len(), 1000, "a pager may pause for ten minutes");
    // The sender learns of it as soon as the owner lets go.
    drop(stalled);
    let (stream, _respond) = &mut served[0];
    let reset = timeout(Duration::from_secs(1), poll_fn(|cx| stream.poll_reset(cx))).await;
    assert_eq!(reset.unwrap().unwrap(), Reason::CANCEL);
    let _ = timeout(Duration::from_millis(1), bytes.data()).await;
}

#[tokio::test(start_paused = true)]
async fn one_stream_fills_a_link_of_100_ms() {
    let (near, far) = delayed(Duration::from_millis(50)).await;
    let (opener, incoming) = tunnel(near, far, &settings()).await;
    serve(incoming, 128 * MIB);
    let start = Instant::now();
    assert_eq!(read_all(&mut download(&opener).await).await.unwrap(), 128 * MIB);
    let rate = (128 * MIB * 8) as f64 / start.elapsed().as_secs_f64() / 1e6;
    assert!(rate >= 200.0, "{rate:.0} Mbit/s");
}

#[tokio::test(start_paused = true)]
async fn an_upload_fills_a_link_of_100_ms_too() {
    let (near, far) = delayed(Duration::from_millis(50)).await;
    let (opener, mut incoming) = tunnel(near, far, &settings()).await;
    let (_response, upload) = open(&opener, false).await;
    tokio::spawn(send_all(upload, 128 * MIB));
    let incoming = incoming.recv().await.unwrap();
    let start = Instant::now();
    assert_eq!(read_all(&mut incoming.request.into_body()).await.unwrap(), 128 * MIB);
    let rate = (128 * MIB * 8) as f64 / start.elapsed().as_secs_f64() / 1e6;
    assert!(rate >= 200.0, "{rate:.0} Mbit/s");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_cannot_send_takes_no_room_that_others_need() {
    // The peer's connection window is the smallest there is, and one stream's window is shut.
    let (near, far) = duplex(MIB);
    let peer = tokio::spawn(async move {
        let mut server = h2::server::Builder::new();
        server.initial_window_size(64 << 10).initial_connection_window_size(128 << 10);
        let mut connection = server.handshake::<_, Bytes>(far).await.unwrap();
        let mut shut = Vec::new();
        while let Some(accepted) = connection.accept().await {
            let (request, mut respond) = accepted.unwrap();
            if request.uri().path().ends_with("/control") {
                shut.push((respond.send_response(Response::new(()), false).unwrap(), request.into_body()));
                continue;
            }
            let stream = respond.send_response(Response::new(()), false).unwrap();
            if shut.len() == 1 {
                // Never read.
                shut.push((stream, request.into_body()));
                continue;
            }
            tokio::spawn(async move {
                let (mut stream, mut body) = (stream, request.into_body());
                while let Some(Ok(chunk)) = body.data().await {
                    body.flow_control().release_capacity(chunk.len()).unwrap();
                }
                stream.send_data(Bytes::new(), true).unwrap();
            });
        }
    });
    let (opener, driver, _control) = node_session::handshake(near, &settings()).await.unwrap();
    tokio::spawn(driver.run());
    let (shut, upload) = open(&opener, false).await;
    let shut = (shut.await.unwrap(), tokio::spawn(send_all(upload, 4 * MIB)));
    let (response, upload) = open(&opener, false).await;
    let sent = timeout(Duration::from_secs(10), send_all(upload, 4 * MIB)).await;
    assert_eq!(sent.expect("the other stream's upload goes on"), 4 * MIB);
    assert_eq!(response.await.unwrap().status(), 200);
    assert!(!shut.1.is_finished());
    peer.abort();
}

/// Two ends of a link whose bytes arrive so much later, each way; it holds any amount.
async fn delayed(delay: Duration) -> (DuplexStream, DuplexStream) {
    let (near, near_end) = duplex(256 << 10);
    let (far, far_end) = duplex(256 << 10);
    let ((mut from_near, mut to_near), (mut from_far, mut to_far)) = (split(near_end), split(far_end));
    tokio::spawn(async move { carry(&mut from_near, &mut to_far, delay).await });
    tokio::spawn(async move { carry(&mut from_far, &mut to_near, delay).await });
    (near, far)
}

async fn carry(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    delay: Duration,
) {
    let (sent, mut arriving) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            let _ = sent.send((Instant::now() + delay, buffer[..n].to_vec()));
        }
    };
    let write = async move {
        while let Some((at, data)) = arriving.recv().await {
            sleep_until(at).await;
            if to.write_all(&data).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}

#[test]
fn what_an_idle_tunnel_holds_does_not_grow() {
    // Besides these: 24 KiB of h2's own buffers, and its connection in a box.
    let most = [
        (size_of::<node_session::Driver<DuplexStream>>(), 352),
        (size_of::<AgentSession<DuplexStream>>(), 392),
        (size_of::<Opener>(), 48),
    ];
    assert!(most.iter().all(|(size, most)| size <= most), "{most:?}");
    // A stream that is read.
    assert!(size_of::<Receiver>() <= 80);
    assert!(limits::START_WINDOW as usize <= MIB / 4);
}
