//! What the contract's resources are on this side: nothing, since a call sees one request and one response.

/// The handle of the request. A call sees exactly one, so there is nothing to look up by it.
#[allow(unreachable_pub, reason = "the generated bindings export it again")]
pub struct RequestRes;
/// The handle of the response.
#[allow(unreachable_pub, reason = "as above")]
pub struct ResponseRes;
