//! What a client reads when this node could not serve its request: a failure as its row of the table says.

use bytes::Bytes;
use http::{StatusCode, Version, header};
use piko_tunnel::{grpc, headers};
use pingora_error::Result;
use pingora_http::{RequestHeader, ResponseHeader};

use crate::error::Failure;

/// The answer. A client that speaks gRPC reads its own kind of status and no JSON.
pub(super) fn reply(failure: Failure, request: &RequestHeader) -> Result<(ResponseHeader, Bytes)> {
    let reply = failure.reply();
    if let Some(content_type) = grpc::asked(&request.headers) {
        let answer = grpc::answer(content_type, reply.grpc, reply.words, reply.code);
        let mut head = ResponseHeader::from(answer.into_parts().0);
        if request.version != Version::HTTP_2 {
            // gRPC-Web, over HTTP/1.1.
            head.insert_header(header::CONTENT_LENGTH, 0)?;
        }
        return Ok((head, Bytes::new()));
    }
    let body = reply.body();
    let mut head = ResponseHeader::build(reply.status, Some(6))?;
    head.insert_header(header::CONTENT_TYPE, "application/json")?;
    head.insert_header(header::CONTENT_LENGTH, body.len())?;
    head.insert_header(headers::ERROR, reply.code)?;
    head.insert_header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")?;
    if reply.status == StatusCode::SERVICE_UNAVAILABLE {
        head.insert_header(header::RETRY_AFTER, "1")?;
    }
    if reply.status == StatusCode::UNAUTHORIZED {
        head.insert_header(header::WWW_AUTHENTICATE, "Bearer")?;
    }
    Ok((head, Bytes::from(body)))
}
