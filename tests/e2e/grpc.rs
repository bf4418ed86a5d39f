//! gRPC: HTTP/2 at both ends, messages both ways at once, and the status in the trailers.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use piko_test_support::program::{agent, cluster};
use piko_test_support::{eventually, within};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::piko;

/// Echoes each message as it comes, and ends with `grpc-status`. HTTP/2 only, as gRPC services are.
async fn service() -> (std::net::SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            connections.spawn(http2.serve_connection(TokioIo::new(stream), service_fn(echo)));
        }
    });
    (addr, AbortOnDropHandle::new(task))
}

async fn echo(
    request: Request<Incoming>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = hyper::Error>>, std::convert::Infallible> {
    assert_eq!(request.headers()["te"], "trailers");
    let frames = futures_util::stream::unfold(Some(request.into_body()), |body| async {
        let mut body = body?;
        match body.frame().await {
            Some(frame) => Some((frame, Some(body))),
            None => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                Some((Ok(Frame::trailers(trailers)), None))
            }
        }
    });
    let mut response = Response::new(StreamBody::new(Box::pin(frames)));
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    Ok(response)
}

#[tokio::test]
async fn a_call_streams_both_ways_and_ends_with_its_status_over_two_nodes() {
    let nodes = cluster(piko(), 2, &[]).await;
    let (addr, _service) = service().await;
    let config = tempfile::tempdir().unwrap();
    let file = config.path().join("agent.yaml");
    std::fs::write(&file, format!("listeners: [{{endpoint_id: rpc, addr: 'h2c://{addr}'}}]\n")).unwrap();
    let words = ["agent", "start", "--config.path", &file.display().to_string(), "--connect.url"];
    let url = format!("http://{}", nodes[0].upstream);
    let words: Vec<_> = words.into_iter().chain([url.as_str()]).map(str::to_owned).collect();
    let _agent = piko_test_support::program::Program::start(piko(), &words);
    for node in &nodes {
        let call = async || {
            let stream = TcpStream::connect(node.proxy).await.ok()?;
            let (client, connection) = h2::client::handshake(stream).await.ok()?;
            let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
            let request = Request::post("http://rpc.example.com/echo.Echo/Stream")
                .header("te", "trailers")
                .header("content-type", "application/grpc")
                .body(())
                .ok()?;
            let (response, mut send) = client.ready().await.ok()?.send_request(request, false).ok()?;
            send.send_data(Bytes::from_static(b"first"), false).ok()?;
            let response = response.await.ok().filter(|response| response.status() == 200)?;
            let mut body = response.into_body();
            // Each answer is there before the next message is sent.
            let mut seen = vec![body.data().await?.ok()?];
            send.send_data(Bytes::from_static(b"second"), true).ok()?;
            while let Some(data) = body.data().await {
                seen.push(data.ok()?);
            }
            Some((seen.concat(), body.trailers().await.ok()??))
        };
        let (echoed, trailers) = within("the call ends", eventually("the endpoint is routable", call)).await;
        assert_eq!(echoed, b"firstsecond");
        assert_eq!(trailers["grpc-status"], "0");
    }
}

#[tokio::test]
async fn an_http_1_service_is_none_for_h2c() {
    let node = &cluster(piko(), 1, &[]).await[0];
    let service = piko_test_support::service::Service::start("one").await;
    let _agent = agent(piko(), node.upstream, &format!("rpc/h2c://{}", service.addr), &[]);
    node.routes("rpc", 502).await;
}
