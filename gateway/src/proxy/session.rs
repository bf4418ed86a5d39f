//! One request as a session of Pingora's, for what its lifecycle and our filters ask of one.
//!
//! Bodies do not come this way: the pump uses the session's [`Exchange`], which the head's extensions carry past
//! Pingora.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use h2::Reason;
use http::HeaderMap;
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::HttpTask;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::custom::CustomMessageWrite;
use pingora_core::protocols::http::custom::server::Session;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use tokio::time::timeout;

use super::exchange::{Exchange, Piece};
use crate::error::Failure;

/// One request of a client.
pub(super) struct ClientSession {
    head: RequestHeader,
    exchange: Arc<dyn Exchange>,
    digest: Arc<Digest>,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    drain_timeout: Option<Duration>,
}

/// In a head's extensions: the lifecycle is to answer this, and nothing else.
#[derive(Clone, Copy)]
pub(super) struct Refused(pub(super) Failure);

/// A session for Pingora's lifecycle. `refused`: the head says no more than what access log and metrics show of a
/// request that is not served.
pub(super) fn new(
    mut head: RequestHeader,
    refused: Option<Failure>,
    exchange: Arc<dyn Exchange>,
    digest: Arc<Digest>,
) -> ServerSession {
    let extensions = head.extensions_mut();
    extensions.insert(exchange.clone());
    if let Some(failure) = refused {
        extensions.insert(Refused(failure));
    }
    ServerSession::new_custom(Box::new(ClientSession {
        head,
        exchange,
        digest,
        read_timeout: None,
        write_timeout: None,
        drain_timeout: None,
    }))
}

impl ClientSession {
    async fn flush(&self) -> Result<()> {
        let flushed = poll_fn(|cx| self.exchange.poll_flush(cx));
        match self.write_timeout {
            None => flushed.await,
            Some(limit) => match timeout(limit, flushed).await {
                Ok(flushed) => flushed,
                Err(_) => Error::e_explain(ErrorType::WriteTimedout, "the client does not read"),
            },
        }
    }
}

#[async_trait]
impl Session for ClientSession {
    fn req_header(&self) -> &RequestHeader {
        &self.head
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.head
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        match poll_fn(|cx| self.exchange.poll_read(cx)).await? {
            Piece::Data(data) => Ok(Some(data)),
            Piece::Trailers(_) | Piece::End => Ok(None),
        }
    }

    // What is left of a body is `Client::settle`'s to read.
    async fn drain_request_body(&mut self) -> Result<()> {
        Ok(())
    }

    async fn write_response_header(&mut self, head: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.exchange.send_head(*head, end)?;
        self.flush().await
    }

    async fn write_response_header_ref(&mut self, head: &ResponseHeader, end: bool) -> Result<()> {
        self.exchange.send_head(head.clone(), end)?;
        self.flush().await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.exchange.queue(data, end)?;
        self.flush().await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.exchange.send_end(Some(trailers))?;
        self.flush().await
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut ended = false;
        for task in tasks {
            ended |= match task {
                HttpTask::Header(head, end) => {
                    self.exchange.send_head(*head, end)?;
                    end
                }
                HttpTask::Body(data, end) | HttpTask::UpgradedBody(data, end) => {
                    self.write_body(data.unwrap_or_default(), end).await?;
                    end
                }
                HttpTask::Trailer(trailers) => {
                    self.exchange.send_end(trailers.map(|trailers| *trailers))?;
                    true
                }
                HttpTask::Done => true,
                HttpTask::Failed(error) => return Err(error),
            };
        }
        if ended {
            self.exchange.send_end(None)?;
        }
        self.flush().await?;
        Ok(ended)
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.read_timeout = timeout;
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.read_timeout
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.write_timeout
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.drain_timeout = timeout;
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.drain_timeout
    }

    fn request_summary(&self) -> String {
        format!("{} {}", self.head.method, self.head.uri.path())
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.exchange.answered()
    }

    async fn shutdown(&mut self, _code: u32, _why: &str) {
        self.exchange.abandon(Reason::INTERNAL_ERROR);
    }

    fn is_body_done(&mut self) -> bool {
        self.exchange.request_done()
    }

    async fn finish(&mut self) -> Result<()> {
        self.exchange.send_end(None)?;
        self.flush().await
    }

    fn is_body_empty(&mut self) -> bool {
        self.exchange.bytes_read() == 0 && self.exchange.request_done()
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if no_body_expected || self.is_body_done() {
            return Err(poll_fn(|cx| self.exchange.poll_gone(cx)).await);
        }
        self.read_body_bytes().await
    }

    fn body_bytes_sent(&self) -> usize {
        self.exchange.bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.exchange.bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        Some(&self.digest)
    }

    // All requests of a connection share it.
    fn digest_mut(&mut self) -> Option<&mut Digest> {
        None
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.peer_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.local_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        Bytes::new()
    }

    // The pump holds what it may have to send again.
    fn enable_retry_buffering(&mut self) {}

    fn retry_buffer_truncated(&self) -> bool {
        false
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        None
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
