//! Plugins on the way of a request: heads handed over, edits applied, answers written.

use std::sync::Arc;

use bytes::Bytes;
use http::{StatusCode, header};
use piko_plugin_host::{Answer, Chain, Edit, Outcome, RequestHead, ResponseHead, Taken};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;
use smol_str::SmolStr;

use super::forwarded;
use crate::auth::{Admitted, Claims};
use crate::error::Failure;
use crate::route::{Destination, EndpointKey};

/// What is known about a request before the plugins are known.
pub(super) struct Known<'a> {
    pub(super) found: Result<Destination, Failure>,
    pub(super) authority: Option<&'a str>,
    pub(super) admitted: &'a Admitted,
}

/// What the plugins made of it.
pub(super) enum Decision {
    /// It goes on, to where it was going.
    Go(Destination, Taken),
    /// It goes on, to an endpoint that a plugin names.
    Elsewhere(EndpointKey, Taken),
    /// The client, which had asked for this endpoint, gets this answer.
    Answer(Option<EndpointKey>, Box<ResponseHeader>, Bytes),
}

/// Asks the plugins, and does what they say. Without an endpoint they may still know one.
pub(super) async fn on_request(
    chain: &Arc<Chain>,
    session: &mut Session,
    known: Known<'_>,
) -> pingora_error::Result<Decision> {
    let found = match known.found {
        Err(Failure::MissingEndpoint) => None,
        found => Some(found.map_err(Failure::into_error)?),
    };
    let head = request_head(
        session,
        found.as_ref().map(|found| &found.endpoint),
        known.authority,
        known.admitted.claims.as_ref(),
    );
    let (outcome, taken) = chain.on_request(head).await;
    match outcome {
        Outcome::Next { edits, endpoint } => {
            let request = session.req_header_mut();
            for edit in edits {
                edit_request(request, edit)?;
            }
            let endpoint = endpoint.ok_or_else(|| Failure::MissingEndpoint.into_error())?;
            // A plugin that names no tenant stays in the request's.
            let endpoint = EndpointKey::within(known.admitted.tenant.as_ref(), &endpoint);
            let endpoint = endpoint.map_err(|_| Failure::InvalidEndpoint.into_error())?;
            if endpoint.endpoint.is_wildcard() {
                return Err(Failure::InvalidEndpoint.into_error());
            }
            Ok(match found.filter(|found| found.endpoint == endpoint) {
                Some(found) => Decision::Go(found, taken),
                None => Decision::Elsewhere(endpoint, taken),
            })
        }
        Outcome::Answer(answer) => {
            let (head, body) = own_answer(answer)?;
            Ok(Decision::Answer(found.map(|found| found.endpoint), Box::new(head), body))
        }
        Outcome::Failed => Err(Failure::Plugin.into_error()),
    }
}

/// Shows the response's head to the plugins that saw its request.
pub(super) async fn on_response(
    taken: &Taken,
    response: &mut ResponseHeader,
    endpoint: Option<&EndpointKey>,
) -> pingora_error::Result<()> {
    let head = ResponseHead {
        status: response.status,
        endpoint: endpoint.map(|endpoint| endpoint.to_string().into()).unwrap_or_default(),
        headers: Arc::new(response.headers.clone()),
    };
    let Some((status, edits)) = taken.on_response(head).await else {
        return Err(Failure::Plugin.into_error());
    };
    if status != response.status {
        response.set_status(status)?;
    }
    for edit in edits {
        match edit {
            Edit::Set(name, value) => response.insert_header(name, value)?,
            Edit::Append(name, value) => drop(response.append_header(name, value)?),
            Edit::Remove(name) => drop(response.remove_header(&name)),
        }
    }
    Ok(())
}

fn request_head(
    session: &Session,
    endpoint: Option<&EndpointKey>,
    authority: Option<&str>,
    claims: Option<&Claims>,
) -> RequestHead {
    let request = session.req_header();
    // The word of a proxy that is trusted, where there is one.
    let told = request.headers.get("x-forwarded-proto").and_then(|proto| proto.to_str().ok());
    let scheme = match told {
        Some("https") => "https",
        Some("http") => "http",
        _ => forwarded::scheme(session),
    };
    let json = |claims: &Claims| serde_json::to_vec(claims.json()).unwrap_or_default();
    RequestHead {
        method: request.method.clone(),
        target: String::from_utf8_lossy(request.raw_path()).into_owned(),
        authority: authority.unwrap_or_default().to_owned(),
        scheme: scheme.to_owned(),
        client: forwarded::client(session).map(|client| client.ip()),
        claims: claims.map(|claims| json(claims).into()),
        endpoint: endpoint.map(|endpoint| SmolStr::from(endpoint.to_string())),
        headers: Arc::new(request.headers.clone()),
    }
}

fn edit_request(request: &mut RequestHeader, edit: Edit) -> pingora_error::Result<()> {
    match edit {
        Edit::Set(name, value) => request.insert_header(name, value)?,
        Edit::Append(name, value) => drop(request.append_header(name, value)?),
        Edit::Remove(name) => drop(request.remove_header(&name)),
    }
    Ok(())
}

/// A plugin's answer, with framing of our own.
fn own_answer(answer: Answer) -> pingora_error::Result<(ResponseHeader, Bytes)> {
    let bodiless = matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let mut head = ResponseHeader::build(answer.status, Some(answer.headers.len() + 1))?;
    for (name, value) in &answer.headers {
        head.append_header(name, value)?;
    }
    if bodiless {
        return Ok((head, Bytes::new()));
    }
    head.insert_header(header::CONTENT_LENGTH, answer.body.len())?;
    Ok((head, answer.body))
}
