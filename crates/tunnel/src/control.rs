//! The control stream: newline-delimited JSON, the same in both directions.
//!
//! A message whose `type` this version does not know is read as [`Message::Unknown`] and ignored,
//! so both ends of one major version work together.

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
pub use piko_wire::Protocol;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::body::send_data;
use crate::limits::{CONTROL_WRITE_TIMEOUT, MAX_CONTROL_LINE};
use crate::{EndpointId, SessionError};

/// The code of [`Message::Refused`] for an endpoint that the agent's token does not permit.
pub const NOT_PERMITTED: &str = "endpoint_not_permitted";

/// One line of the control stream. Each variant's comment begins with the end that sends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// Agent: listen on an endpoint. `id` is the agent's, new for each listener of the tunnel.
    Listen {
        /// The agent's number for this listener.
        id: u64,
        /// The endpoint, within the tenant of the agent's token.
        endpoint: EndpointId,
        /// Does the service take HTTP requests or plain bytes? HTTP if it is missing.
        #[serde(default)]
        protocol: Protocol,
    },
    /// Node: the listener is registered and routable on this node.
    Listening {
        /// The number that [`Message::Listen`] gave.
        id: u64,
        /// Where clients reach the endpoint (`proxy.public_url`). For people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<String>,
        /// Where they reach all endpoints, and name this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proxy: Option<String>,
    },
    /// Node: the listener is refused.
    Refused {
        /// The number that [`Message::Listen`] gave.
        id: u64,
        /// Stable code, which agents may act on ([`NOT_PERMITTED`]).
        code: String,
        /// The reason in words, for the agent's log.
        message: String,
    },
    /// Agent: stop routing to a listener. Streams in flight go on.
    Unlisten {
        /// The number that [`Message::Listen`] gave.
        id: u64,
    },
    /// Agent: whether a listener's service works, by its probe. Without a listener, how busy the sender is:
    /// information only.
    Health {
        /// Requests in flight. Earlier versions insist on it.
        #[serde(default)]
        inflight: u64,
        /// The number that [`Message::Listen`] gave. Earlier agents leave it out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        /// What the probe found. A message without `id` has none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        healthy: Option<bool>,
    },
    /// Node: this node is leaving; connect elsewhere, then close this tunnel.
    Drain {
        /// How long the node will wait, milliseconds.
        grace_ms: u64,
    },
    /// A type of a later version: ignored.
    #[serde(other)]
    Unknown,
}

/// Both directions of the control stream.
pub struct ControlStream {
    sender: ControlSender,
    receiver: ControlReceiver,
}

/// The writing half. [`ControlSender::finish`] ends it well.
pub struct ControlSender(SendStream<Bytes>);

/// The reading half, with the beginning of a line that has not come whole.
pub struct ControlReceiver {
    stream: RecvStream,
    buffer: BytesMut,
}

impl ControlStream {
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        let receiver = ControlReceiver { stream: recv, buffer: BytesMut::new() };
        ControlStream { sender: ControlSender(send), receiver }
    }

    /// Two owners, one for each direction.
    pub fn split(self) -> (ControlSender, ControlReceiver) {
        (self.sender, self.receiver)
    }

    /// Sends one message, like [`ControlSender::send`].
    pub async fn send(&mut self, message: &Message) -> Result<(), SessionError> {
        self.sender.send(message).await
    }

    /// The next message, like [`ControlReceiver::recv`].
    pub async fn recv(&mut self) -> Result<Option<Message>, SessionError> {
        self.receiver.recv().await
    }
}

impl ControlSender {
    /// Sends one message. Not cancel safe: half a line may have been sent.
    pub async fn send(&mut self, message: &Message) -> Result<(), SessionError> {
        let mut line = serde_json::to_vec(message).map_err(SessionError::ControlMalformed)?;
        line.push(b'\n');
        match timeout(CONTROL_WRITE_TIMEOUT, send_data(&mut self.0, line.into(), false)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Some(e))) => Err(e.into()),
            Ok(Err(None)) => Err(SessionError::Closed),
            Err(_) => Err(SessionError::ControlStuck(CONTROL_WRITE_TIMEOUT)),
        }
    }
}

impl ControlSender {
    /// Ends this direction: nothing more will be said. A tunnel can end well only once both ends did,
    /// since HTTP/2 waits for its open streams.
    pub fn finish(&mut self) {
        // It fails only on a stream that has ended anyway.
        let _ = self.0.send_data(Bytes::new(), true);
    }
}

impl ControlReceiver {
    /// The next message; `None` once the peer has ended its side. Cancel safe.
    pub async fn recv(&mut self) -> Result<Option<Message>, SessionError> {
        loop {
            if let Some(line) = take_line(&mut self.buffer)? {
                return serde_json::from_slice(&line).map(Some).map_err(SessionError::ControlMalformed);
            }
            match self.stream.data().await {
                Some(data) => {
                    let data = data?;
                    self.buffer.extend_from_slice(&data);
                    // Given back at once: `take_line` bounds what is kept, so that window need not.
                    self.stream.flow_control().release_capacity(data.len())?;
                }
                None => return Ok(None),
            }
        }
    }
}

/// Takes one line off the buffer, without its newline. Empty lines are skipped.
pub(crate) fn take_line(buffer: &mut BytesMut) -> Result<Option<BytesMut>, SessionError> {
    while let Some(end) = buffer.iter().position(|&b| b == b'\n') {
        // Whole, and yet too long: refused below, like a line whose end has not come.
        if end > MAX_CONTROL_LINE {
            break;
        }
        let mut line = buffer.split_to(end + 1);
        line.truncate(end);
        if !line.is_empty() {
            return Ok(Some(line));
        }
    }
    if buffer.len() > MAX_CONTROL_LINE {
        return Err(SessionError::ControlTooLong(MAX_CONTROL_LINE));
    }
    Ok(None)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_documented_shape() {
        let listen =
            Message::Listen { id: 1, endpoint: "my-endpoint".parse().unwrap(), protocol: Protocol::Http };
        let json = r#"{"type":"listen","id":1,"endpoint":"my-endpoint","protocol":"http"}"#;
        assert_eq!(serde_json::to_string(&listen).unwrap(), json);
        assert_eq!(serde_json::from_str::<Message>(json).unwrap(), listen);
    }

    #[test]
    fn where_clients_reach_an_endpoint_is_left_out_where_nobody_knows() {
        let bare = Message::Listening { id: 1, url: None, proxy: None };
        let json = r#"{"type":"listening","id":1}"#;
        assert_eq!(serde_json::to_string(&bare).unwrap(), json, "as earlier versions say it");
        assert_eq!(serde_json::from_str::<Message>(json).unwrap(), bare);
    }

    #[test]
    fn the_health_of_a_listener_is_news_that_earlier_versions_can_read() {
        let news = Message::Health { inflight: 0, id: Some(1), healthy: Some(false) };
        let json = r#"{"type":"health","inflight":0,"id":1,"healthy":false}"#;
        assert_eq!(serde_json::to_string(&news).unwrap(), json);
        let old = Message::Health { inflight: 3, id: None, healthy: None };
        assert_eq!(serde_json::from_str::<Message>(r#"{"type":"health","inflight":3}"#).unwrap(), old);
    }

    #[test]
    fn a_type_of_a_later_version_is_unknown_not_an_error() {
        let json = r#"{"type":"resize","by":[1,2],"more":{"x":1}}"#;
        assert_eq!(serde_json::from_str::<Message>(json).unwrap(), Message::Unknown);
    }

    #[test]
    fn lines_are_taken_one_by_one_and_bounded() {
        let mut buffer = BytesMut::from(&b"\n{\"a\":1}\nhalf"[..]);
        assert_eq!(take_line(&mut buffer).unwrap().unwrap(), &b"{\"a\":1}"[..]);
        assert!(take_line(&mut buffer).unwrap().is_none());
        buffer.extend_from_slice(&vec![b'x'; MAX_CONTROL_LINE]);
        assert!(matches!(take_line(&mut buffer), Err(SessionError::ControlTooLong(_))));
    }
}
