//! Informational answers of services: passed on, clean and not without end.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use http::{HeaderMap, Request};
use piko_tunnel::limits::MAX_INFORMATIONAL;

use super::Tunnel;
use super::recorder::Recorder;

/// The informational heads of an answer, and its final status.
async fn heads(kind: &str) -> (Vec<(u16, HeaderMap)>, u16) {
    let service = Recorder::start().await;
    let tunnel = Tunnel::open(&[format!("e/{}", service.addr)]).await;
    let get = Request::get(format!("http://client.example/{kind}/")).body(()).unwrap();
    let (mut answer, _) = tunnel.send(get, true).await;
    let mut seen = Vec::new();
    let last = poll_fn(|cx| {
        while let Poll::Ready(Some(Ok(hint))) = answer.poll_informational(cx) {
            seen.push((hint.status().as_u16(), hint.headers().clone()));
        }
        Pin::new(&mut answer).poll(cx)
    });
    let last = tokio::time::timeout(std::time::Duration::from_secs(20), last).await;
    let status = last.expect("an answer within 20 s").unwrap().status().as_u16();
    (seen, status)
}

#[tokio::test]
async fn early_hints_reach_the_node() {
    let (seen, status) = heads("hints").await;
    assert_eq!(status, 200);
    let [(103, fields)] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!(fields["link"], "a");
}

/// A 100 is the node's to say, what belongs to the hop or to us is left out, and a node takes only so many.
#[tokio::test]
async fn hints_are_clean_and_not_without_end() {
    let (seen, status) = heads("hundred").await;
    assert_eq!((seen.len(), status), (MAX_INFORMATIONAL, 200));
    for (status, fields) in &seen {
        assert_eq!((*status, fields.len()), (103, 1), "{fields:?}");
        assert_eq!(fields["link"], "a");
    }
}
