//! Connections of bytes: how one that its client has left ends.

use http::Request;
use piko_test_support::{eventually, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{Tunnel, head};
use crate::config::{AgentConfig, ListenerConfig, Protocol};

/// A client that has ended its side and then goes away is noticed, however silent the service is: reads tell no more
/// of it by then, and there is nothing to write.
#[tokio::test]
async fn a_client_that_goes_after_its_end_ends_the_connection() {
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = service.local_addr().unwrap().to_string();
    let mut config = AgentConfig::default();
    config.listeners.push(ListenerConfig::new("e", addr.clone(), Protocol::Tcp));
    let mut upgrading = ListenerConfig::new("http", addr, Protocol::Http);
    upgrading.upgrades = vec!["tcp".into()];
    config.listeners.push(upgrading);
    let tunnel = Tunnel::with(config).await;
    let upgrade = Request::post("http://x/exec").header("x-piko-upgrade", "tcp");
    let upgrade = upgrade.header("x-piko-listener", "http").body(()).unwrap();
    for (request, upgraded) in [(Request::connect("e").body(()).unwrap(), false), (upgrade, true)] {
        let (answer, mut stream) = tunnel.send(request, false).await;
        let (mut far, _) = within("a connection", service.accept()).await.unwrap();
        if upgraded {
            let mut request = [0; 4096];
            within("the request", far.read(&mut request)).await.unwrap();
            far.write_all(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
                .await
                .unwrap();
        }
        let answer = head(answer).await;
        assert_eq!(answer.status(), 200);
        stream.send_data("input".into(), true).unwrap();
        let mut read = Vec::new();
        within("the client's end", far.read_to_end(&mut read)).await.unwrap();
        assert_eq!(read, b"input");
        stream.send_reset(h2::Reason::CANCEL);
        drop((answer, stream));
        // The service says nothing.
        eventually("the agent lets go", || async { tunnel.streams.tasks.is_empty().then_some(()) }).await;
    }
}
