//! WebSockets, other upgrades and TCP connections: after the 101, bytes both ways until both ends are done.

use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::ResponseFuture;
use http::{HeaderValue, StatusCode, header};
use piko_tunnel::body::send_data;
use piko_tunnel::doubt::Waiting;
use piko_tunnel::handshake::{self, TCP_UPGRADE_TOKEN};
use piko_tunnel::headers;
use piko_tunnel::progress::Progress;

use super::attempt::Attempt;
use super::broken::Broken;
use super::download::{Download, Next};
use super::exchange::Piece;
use super::frames::{Frames, GOING_AWAY};
use super::incoming::{Carrier, Upgrade};
use super::outgoing;
use crate::error::Failure;

/// How long one direction of a WebSocket may outlive the other: its closing handshake (RFC 6455, section 7).
const LINGER: Duration = Duration::from_secs(10);
/// How long a TCP connection, or one of another protocol, that one side has ended may be silent the other way: the
/// output of a command may outlive its input.
const HALF_CLOSED_SILENCE: Duration = Duration::from_secs(600);

/// Waits for the service's word, then moves bytes. Any answer but an upgrade passes like any other.
pub(super) async fn run(
    attempt: &Attempt<'_, '_>,
    upgrade: &Upgrade,
    response: (ResponseFuture, Waiting),
    (mut stream, asked_with): (SendStream<Bytes>, Vec<Bytes>),
) -> Result<(), Broken> {
    let progress = Progress::default();
    let mut unsent = asked_with.len();
    let sending = async {
        for piece in asked_with {
            if send_data(&mut stream, piece, false).await.is_err() {
                // Why, its answer tells.
                break;
            }
            progress.touch();
            unsent -= 1;
        }
        attempt.client.gone().await
    };
    let answer = tokio::select! {
        biased;
        answer = attempt.answer_head(response, &progress) => answer?,
        gone = sending => return Err(Broken::Client(gone)),
    };
    let (parts, body) = answer.into_parts();
    let Some((protocol, accept)) = taken(attempt, upgrade, &parts) else {
        drop(stream);
        return attempt.pass(parts, body).await;
    };
    if unsent > 0 {
        // The client's bytes would be taken for the rest of the request's body.
        return Err(Broken::last(Failure::BadAnswer));
    }
    let mut head = outgoing::switching(parts, protocol, accept).map_err(Broken::last)?;
    attempt.begin(&mut head)?;
    attempt.response_hook(&mut head).await?;
    attempt.recognise(&mut head)?;
    if head.status != StatusCode::SWITCHING_PROTOCOLS {
        // A plugin may refuse what the service took; then there is nothing to switch to.
        return Err(Broken::last(Failure::Plugin));
    }
    // How long it stays open says nothing about how much its service has to do.
    attempt.rest();
    let client = attempt.client;
    client.queue_head(head, false).map_err(Broken::Client)?;
    client.flush(attempt.gateway.timeouts.write).await.map_err(Broken::Client)?;
    splice(attempt, upgrade, stream, Download::new(body)).await
}

/// The protocol that was switched to, and the answer to a WebSocket's key where this node gives it.
fn taken(
    attempt: &Attempt<'_, '_>,
    upgrade: &Upgrade,
    answer: &http::response::Parts,
) -> Option<(HeaderValue, Option<HeaderValue>)> {
    if answer.status != StatusCode::OK {
        return None;
    }
    match upgrade {
        Upgrade::Service(_) => Some((answer.headers.get(headers::UPGRADED)?.clone(), None)),
        Upgrade::Tcp(_, Carrier::Bytes) => Some((HeaderValue::from_static(TCP_UPGRADE_TOKEN), None)),
        Upgrade::Tcp(_, Carrier::Messages) => {
            let key = attempt.client.head().headers.get(header::SEC_WEBSOCKET_KEY);
            Some((HeaderValue::from_static("websocket"), key.and_then(handshake::websocket_accept)))
        }
    }
}

/// Copies both ways. Each side's end is passed on as such; then the other direction has its time. A WebSocket that
/// this node, or what is behind it, cuts off ends with a close frame: see [`GOING_AWAY`].
async fn splice(
    attempt: &Attempt<'_, '_>,
    upgrade: &Upgrade,
    mut stream: SendStream<Bytes>,
    mut body: Download,
) -> Result<(), Broken> {
    body.be_patient();
    let client = attempt.client;
    let write = attempt.gateway.timeouts.write;
    let moved = Progress::default();
    let up = async {
        loop {
            match client.read(None).await.map_err(Broken::Client)? {
                Piece::Data(data) => {
                    moved.touch();
                    let sent = send_data(&mut stream, data, false).await;
                    sent.map_err(|_| Broken::last(Failure::BrokeOff))?;
                }
                Piece::Trailers(_) | Piece::End => {
                    // It fails only on a stream that has ended already.
                    let _ = stream.send_data(Bytes::new(), true);
                    return Ok(());
                }
            }
        }
    };
    // Of any other protocol nothing is known: a frame of ours would be taken for its bytes.
    let messages = match upgrade {
        Upgrade::Tcp(_, carrier) => *carrier == Carrier::Messages,
        Upgrade::Service(protocols) => headers::has_token(protocols, "websocket"),
    };
    let down = async {
        let mut frames = Frames::default();
        loop {
            let next = tokio::select! {
                biased;
                // In the middle of a frame there is nothing to be said yet.
                () = attempt.gateway.farewell.cancelled(), if !messages || frames.is_border() => None,
                next = body.next() => Some(next),
            };
            let (data, end) = match next {
                Some(Ok(Next::Data(data, end))) => (data, end),
                Some(Ok(Next::End(_))) => break,
                cut => {
                    if messages && frames.is_border() {
                        client.queue(GOING_AWAY, false).map_err(Broken::Client)?;
                        client.flush(write).await.map_err(Broken::Client)?;
                    }
                    let Some(Err(error)) = cut else { break };
                    return Err(Broken::body(error));
                }
            };
            moved.touch();
            if messages {
                frames.pass(&data);
            }
            client.queue(data, false).map_err(Broken::Client)?;
            client.flush(write).await.map_err(Broken::Client)?;
            if end {
                break;
            }
        }
        client.close_write().await;
        Ok(())
    };
    tokio::pin!(up, down);
    let silence = if messages { LINGER } else { HALF_CLOSED_SILENCE };
    // How an upgraded connection ends is no failure: both sides have seen it.
    tokio::select! {
        ended = &mut up => {
            ended?;
            moved.touch();
            moved.within(Some(silence), down).await.unwrap_or(Ok(()))
        }
        ended = &mut down => {
            ended?;
            moved.touch();
            moved.within(Some(silence), up).await.unwrap_or(Ok(()))
        }
    }
}
