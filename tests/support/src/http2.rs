//! HTTP/2 by the frame (RFC 9113, section 4.1), for peers that do what no library would.

#![allow(missing_docs, reason = "types and flags of frames have the names of RFC 9113, section 6")]

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What a client sends first (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
/// The flag of HEADERS that have a priority.
pub const PRIORITIZED: u8 = 32;

/// One frame.
///
/// # Panics
/// If the payload has 16 MiB or more.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).ok().filter(|length| length >> 24 == 0);
    let mut bytes = length.expect("a payload below 16 MiB").to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A frame that came.
pub struct Frame {
    pub kind: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The 32 bits of the payload that begin at this byte: the code of RST_STREAM at 0, of GOAWAY at 4.
    ///
    /// # Panics
    /// If the payload ends before.
    pub fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }
}

/// Reads the next frame, in two reads. `None`: the connection has ended.
pub async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let [l0, l1, l2, kind, ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some(Frame { kind, payload })
}

/// The header block of a request for `my-endpoint`, with more fields.
pub fn request(method: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let authority = (":authority", "my-endpoint.example");
    let own = [(":method", method), (":scheme", "http"), (":path", "/"), authority];
    block(&[&own, more].concat())
}

/// A header block of literals that are not indexed (RFC 7541, section 6.2.2).
///
/// # Panics
/// If a name or value has 128 bytes or more.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            let length = u8::try_from(text.len()).ok().filter(|length| *length < 128);
            bytes.push(length.expect("a text below 128 bytes"));
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}
