//! A small HTTP/1.1 client: one connection a request, everything that came back.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

/// No request of a test takes longer, unless the test says so.
const WITHIN: Duration = Duration::from_secs(20);

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// A header as text; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Anything that can go wrong.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// `GET`
pub async fn get(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Answer, Error> {
    send(addr, "GET", path, headers, Bytes::new()).await
}

/// Any method, with a body of known length.
pub async fn send(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Result<Answer, Error> {
    let exchange = async {
        let stream = TcpStream::connect(addr).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header("host", addr.to_string());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let exchange = async {
            let response = sender.send_request(request.body(Full::new(body))?).await?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
        };
        tokio::pin!(connection);
        tokio::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            ended = &mut connection => {
                ended?;
                exchange.await
            }
        }
    };
    tokio::time::timeout(WITHIN, exchange).await?
}

/// Sends bytes as they are and reads until the other end closes or `WITHIN` is over.
pub async fn raw(addr: SocketAddr, bytes: &[u8]) -> Result<String, Error> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(bytes).await?;
    let mut answer = Vec::new();
    let mut chunk = vec![0; 65_536];
    let reading = async {
        loop {
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(n) => answer.extend_from_slice(&chunk[..n]),
            }
        }
    };
    let _ = tokio::time::timeout(WITHIN, reading).await;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// `GET` over HTTP/2 with prior knowledge, to the host in `url`.
pub async fn get_h2(addr: SocketAddr, url: &str, headers: &[(&str, &str)]) -> Result<Answer, Error> {
    let mut request = Request::get(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send_h2(addr, request.body(())?, None).await
}

/// Any request over HTTP/2. Trailers are added to the headers.
pub async fn send_h2(addr: SocketAddr, request: Request<()>, body: Option<Bytes>) -> Result<Answer, Error> {
    let exchange = async {
        let stream = TcpStream::connect(addr).await?;
        let (sender, connection) = h2::client::handshake(stream).await?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let (answer, mut stream) = sender.ready().await?.send_request(request, body.is_none())?;
        if let Some(body) = body {
            stream.send_data(body, true)?;
        }
        let (mut parts, mut stream) = answer.await?.into_parts();
        let mut body = Vec::new();
        while let Some(data) = stream.data().await {
            let data = data?;
            stream.flow_control().release_capacity(data.len())?;
            body.extend_from_slice(&data);
        }
        parts.headers.extend(stream.trailers().await?.unwrap_or_default());
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body: body.into() })
    };
    tokio::time::timeout(WITHIN, exchange).await?
}
