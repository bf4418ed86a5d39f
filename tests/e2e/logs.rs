//! Logs that cannot be written stop nothing.

use piko_test_support::client::get;
use piko_test_support::program::{ByShell, Node, agent};
use piko_test_support::service::Service;

use crate::piko;

const NAMED: (&str, &str) = ("x-piko-endpoint", "my-endpoint");

/// The first line that could not be written once ended the process, with exit code 101.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_below_the_log_stops_neither_start_nor_requests() {
    let program = ByShell::new(piko(), "", ">/dev/full 2>&1");
    let node = Node::start(&program.path, &[], &[]);
    node.ready().await;
    let service = Service::start("one").await;
    let _agent = agent(&program.path, node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    for _ in 0..20 {
        assert_eq!(get(node.proxy, "/", &[NAMED]).await.unwrap().status, 200);
    }
    assert_eq!(node.program.log(), "", "nothing could be written");
}
