//! What a client reads when this node could not serve its request: a failure as its row of the table says.

use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, Version, header};
use piko_tunnel::{grpc, headers};
use pingora_error::Result;
use pingora_http::{RequestHeader, ResponseHeader};

use super::pages::Pages;
use crate::error::Failure;

/// The answer. A client that speaks gRPC reads its own kind of status and no JSON, a browser a page. `gone`: for how
/// long the endpoint has had no upstream.
pub(super) fn reply(
    failure: Failure,
    gone: Option<Duration>,
    request: &RequestHeader,
    pages: &Pages,
) -> Result<(ResponseHeader, Bytes)> {
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
    let mut head = ResponseHeader::build(reply.status, Some(8))?;
    let body = match pages.of_node(reply.code, &request.headers) {
        Some(page) => page.settle(&mut head)?,
        None => {
            let body = Bytes::from(reply.body(gone, request.headers.get(headers::REQUEST_ID)));
            head.insert_header(header::CONTENT_TYPE, "application/json")?;
            head.insert_header(header::CONTENT_LENGTH, body.len())?;
            head.insert_header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")?;
            body
        }
    };
    head.insert_header(headers::ERROR, reply.code)?;
    if reply.status == StatusCode::SERVICE_UNAVAILABLE {
        head.insert_header(header::RETRY_AFTER, "1")?;
    }
    if reply.status == StatusCode::UNAUTHORIZED {
        head.insert_header(header::WWW_AUTHENTICATE, "Bearer")?;
    }
    Ok((head, body))
}
