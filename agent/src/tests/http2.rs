//! Services that speak HTTP/2: informational answers, bodies that break off on either side, early answers.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response};
use piko_tunnel::limits::MAX_INFORMATIONAL;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{Tunnel, head, read};

/// A service that does what the path says, and tells how each request's body ended.
struct Service {
    addr: String,
    ends: UnboundedReceiver<Result<usize, Option<Reason>>>,
    _task: AbortOnDropHandle<()>,
}

impl Service {
    async fn start() -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = format!("h2c://{}", listener.local_addr().unwrap());
        let (told, ends) = unbounded_channel();
        let task = async move {
            let mut tasks = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let told = told.clone();
                tasks.spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    let mut answers = tokio::task::JoinSet::new();
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        let told = told.clone();
                        answers.spawn(async move {
                            let _ = told.send(answer(request, respond).await);
                        });
                    }
                });
            }
        };
        Service { addr, ends, _task: AbortOnDropHandle::new(tokio::spawn(task)) }
    }

    async fn end_of_body(&mut self) -> Result<usize, Option<Reason>> {
        timeout(Duration::from_secs(20), self.ends.recv()).await.expect("within 20 s").unwrap()
    }
}

fn status(status: u16) -> Response<()> {
    let link = ("link", "a");
    Response::builder()
        .status(status)
        .header(link.0, link.1)
        .header("x-piko-error", "forged")
        .body(())
        .unwrap()
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<usize, Option<Reason>> {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    match path.as_str() {
        "/hints" => {
            respond.send_informational(status(100)).unwrap();
            for _ in 0..2 * MAX_INFORMATIONAL {
                respond.send_informational(status(103)).unwrap();
            }
        }
        "/early" => {
            let mut stream = respond.send_response(status(413), false).unwrap();
            stream.send_data("too large".into(), true).unwrap();
            // With its last handle, h2 resets it by NO_ERROR (RFC 9113, section 8.1).
            return Ok(0);
        }
        "/upload" => respond.send_informational(status(103)).unwrap(),
        "/breaks" => {
            let mut stream = respond.send_response(status(200), false).unwrap();
            stream.send_data("half".into(), false).unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream.send_reset(Reason::CANCEL);
            return Ok(0);
        }
        _ => {}
    }
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data.map_err(|e| e.reason())?;
        length += data.len();
        let _ = body.flow_control().release_capacity(data.len());
    }
    let mut stream = respond.send_response(status(200), false).unwrap();
    stream.send_data("ok".into(), true).unwrap();
    Ok(length)
}

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://client.example{path}")).body(()).unwrap()
}

#[tokio::test]
async fn early_hints_of_an_http2_service_reach_the_node_clean_and_not_without_end() {
    let service = Service::start().await;
    let tunnel = Tunnel::open(&[format!("e/{}", service.addr)]).await;
    let get = Request::get("http://client.example/hints").body(()).unwrap();
    let (mut answer, _) = tunnel.send(get, true).await;
    let mut seen = Vec::new();
    let last = poll_fn(|cx| {
        while let Poll::Ready(Some(Ok(hint))) = answer.poll_informational(cx) {
            seen.push(hint);
        }
        Pin::new(&mut answer).poll(cx)
    });
    let last = timeout(Duration::from_secs(20), last).await.expect("within 20 s").unwrap();
    assert_eq!((seen.len(), last.status().as_u16()), (MAX_INFORMATIONAL, 200));
    for hint in &seen {
        assert_eq!((hint.status().as_u16(), hint.headers().len()), (103, 1), "{hint:?}");
        assert_eq!(hint.headers()["link"], "a");
    }
}

/// hyper's client took this reset for the end.
#[tokio::test]
async fn an_answer_that_is_reset_does_not_look_whole() {
    let service = Service::start().await;
    let tunnel = Tunnel::open(&[format!("e/{}", service.addr)]).await;
    let answer = tunnel.get("/breaks").await;
    assert_eq!((answer.status, answer.body.as_str(), answer.whole), (200, "half", false));
    // Its connection serves on.
    assert_eq!(tunnel.get("/ok").await.body, "ok");
}

#[tokio::test]
async fn an_answer_before_the_end_of_its_request_is_read_whole() {
    let service = Service::start().await;
    let tunnel = Tunnel::open(&[format!("e/{}", service.addr)]).await;
    let (answer, mut stream) = tunnel.send(post("/early"), false).await;
    stream.send_data("the first of many".into(), false).unwrap();
    let answer = read(answer).await;
    assert_eq!((answer.status, answer.body.as_str(), answer.whole), (413, "too large", true));
    assert_eq!(tunnel.get("/ok").await.body, "ok");
}

#[tokio::test]
async fn a_service_sees_that_a_body_broke_off() {
    let mut service = Service::start().await;
    let tunnel = Tunnel::open(&[format!("e/{}", service.addr)]).await;
    let (mut answer, mut stream) = tunnel.send(post("/upload"), false).await;
    stream.send_data("half".into(), false).unwrap();
    // The service has it: of a request that is still queued nothing would come.
    poll_fn(|cx| answer.poll_informational(cx)).await.unwrap().unwrap();
    stream.send_reset(Reason::CANCEL);
    drop(answer);
    assert_eq!(service.end_of_body().await, Err(Some(Reason::CANCEL)));
    // One that ends is whole, and its answer, too.
    let (answer, mut stream) = tunnel.send(post("/upload"), false).await;
    stream.send_data("whole".into(), true).unwrap();
    assert_eq!(head(answer).await.status(), 200);
    assert_eq!(service.end_of_body().await, Ok(5));
}

/// Requests beyond what the service takes at once wait for their turn.
#[tokio::test]
async fn more_requests_than_the_service_takes_at_once_are_all_answered() {
    let service = Service::start().await;
    let tunnel = Tunnel::open(&[format!("e/{}", service.addr)]).await;
    let mut open = Vec::new();
    for _ in 0..150 {
        open.push(tunnel.send(post("/upload"), false).await);
    }
    for (answer, mut stream) in open {
        stream.send_data("x".into(), true).unwrap();
        assert_eq!(read(answer).await.body, "ok");
    }
}
