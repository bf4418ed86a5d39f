//! Heads and bodies for `proxy/fuzz.rs`, without a connection.

use bytes::BytesMut;
use pingora_http::RequestHeader;

use super::super::exchange::Piece;
use super::super::incoming::Framing;
use super::body::Body;
use super::head::Reader;

/// Far above what a fuzzer makes.
const MOST: usize = 128 << 10;

/// A whole head, and where it ends.
pub(in crate::proxy) fn head(input: &[u8]) -> Option<(RequestHeader, usize)> {
    let mut read = BytesMut::from(input);
    let head = Reader::default().take(&mut read, MOST).ok()??;
    Some((head, input.len() - read.len()))
}

/// A whole chunked body, and what follows it.
pub(in crate::proxy) fn body(input: &[u8], step: usize) -> Option<(Vec<u8>, Vec<u8>)> {
    let (mut body, mut read, mut data) = (Body::new(Framing::Open), BytesMut::new(), Vec::new());
    let mut pieces = input.chunks(step);
    while !body.is_done() {
        match body.take(&mut read).ok()? {
            Some(Piece::Data(piece)) => data.extend_from_slice(&piece),
            Some(Piece::Trailers(_) | Piece::End) => {}
            None => read.extend_from_slice(pieces.next()?),
        }
    }
    pieces.for_each(|piece| read.extend_from_slice(piece));
    Some((data, read.to_vec()))
}
