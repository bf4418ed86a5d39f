//! What an admin port does when it is told to (`POST`), where it asks for tokens: an order is for who may give it, and an
//! open port cannot tell.

use http::{Method, Request, StatusCode};
use tokio::sync::oneshot;

use super::answer::{Answer, error, json};
use super::order::Order;
use super::state::State;

/// Answers an order. Returns `None` if the request is none.
pub(super) async fn answer<B>(request: &Request<B>, state: &State) -> Option<Answer> {
    if *request.method() != Method::POST || request.uri().path() != "/reload" {
        return None;
    }
    if !state.auth.load().asks() {
        return Some(error(
            StatusCode::FORBIDDEN,
            "open_port",
            "this port asks for no tokens, so it takes no orders; set admin.auth, or send SIGHUP",
        ));
    }
    let (reply, told) = oneshot::channel();
    if state.orders.send(Order::Reload(reply)).await.is_err() {
        return Some(error(StatusCode::SERVICE_UNAVAILABLE, "draining", "this node is leaving"));
    }
    Some(match told.await {
        Ok(Ok(taken)) => json(&taken),
        Ok(Err(why)) => error(StatusCode::UNPROCESSABLE_ENTITY, "configuration_refused", &why),
        Err(_) => error(StatusCode::SERVICE_UNAVAILABLE, "draining", "this node is leaving"),
    })
}
