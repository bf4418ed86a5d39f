//! Logs that cannot be written stop nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use piko_test_support::client::get;
use piko_test_support::program::{Node, agent};
use piko_test_support::service::Service;

use crate::piko;

const NAMED: (&str, &str) = ("x-piko-endpoint", "my-endpoint");

/// The program with an stderr that is always full, as a disk may be.
fn with_full_stderr(dir: &Path) -> PathBuf {
    let script = dir.join("piko");
    let text = format!("#!/bin/sh\nexec '{}' \"$@\" >/dev/full 2>&1\n", piko().display());
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script
}

/// The first line that could not be written once ended the process, with exit code 101.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_below_the_log_stops_neither_start_nor_requests() {
    let dir = tempfile::tempdir().unwrap();
    let program = with_full_stderr(dir.path());
    let node = Node::start(&program, &[], &[]);
    node.ready().await;
    let service = Service::start("one").await;
    let _agent = agent(&program, node.upstream, &format!("my-endpoint/{}", service.addr), &[]);
    node.routes("my-endpoint", 200).await;
    for _ in 0..20 {
        assert_eq!(get(node.proxy, "/", &[NAMED]).await.unwrap().status, 200);
    }
    assert_eq!(node.program.log(), "", "nothing could be written");
}
