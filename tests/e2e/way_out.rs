//! The proxies that companies have on the way out: HTTP, HTTPS and SOCKS 5.

use std::net::SocketAddr;
use std::sync::Arc;

use piko_test_support::eventually;
use piko_test_support::program::{Node, Program, agent};
use piko_test_support::service::Service;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::task::AbortOnDropHandle;

use crate::piko;
use crate::tls::Files;

/// A proxy that runs, and what it was asked for.
type Running = (SocketAddr, UnboundedReceiver<String>, AbortOnDropHandle<()>);

/// Serves each connection to a proxy.
async fn serve<F: Future<Output = ()> + Send + 'static>(
    one: impl Fn(TcpStream, UnboundedSender<String>) -> F + Send + 'static,
) -> Running {
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = proxy.local_addr().unwrap();
    let (asked, seen) = unbounded_channel();
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = proxy.accept().await {
            connections.spawn(one(stream, asked.clone()));
        }
    }));
    (addr, seen, task)
}

/// CONNECT only, with a password. Connects to `to`, or else where it is asked to. Tells the heads of its requests.
async fn connect(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    heads: UnboundedSender<String>,
    to: Option<SocketAddr>,
) {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        stream.read_line(&mut head).await.unwrap();
    }
    let target = head.split(' ').nth(1).unwrap().to_owned();
    let allowed = head.contains("Basic dXNlcjpwYXNzd29yZA==");
    let _ = heads.send(head);
    if !allowed {
        let _ = stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
        return;
    }
    let target = to.map_or(target, |to| to.to_string());
    let mut far = TcpStream::connect(target).await.unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut far).await;
}

async fn http_proxy(to: Option<SocketAddr>) -> Running {
    serve(move |stream, heads| connect(stream, heads, to)).await
}

/// The same behind TLS.
async fn https_proxy(files: &Files) -> Running {
    let cert = CertificateDer::from_pem_file(files.path("cert")).unwrap();
    let key = PrivateKeyDer::from_pem_file(files.path("key")).unwrap();
    let tls = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![cert], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    serve(move |stream, heads| {
        let acceptor = acceptor.clone();
        async move {
            // Of a client that does not trust it there is no more.
            if let Ok(stream) = acceptor.accept(stream).await {
                connect(stream, heads, None).await;
            }
        }
    })
    .await
}

/// RFC 1928, with a password (RFC 1929). Connects to `to`. Tells where it was asked to.
async fn socks_proxy(to: SocketAddr) -> Running {
    serve(move |mut stream, targets| async move {
        let [_, methods] = read(&mut stream).await;
        let mut offered = vec![0; usize::from(methods)];
        stream.read_exact(&mut offered).await.unwrap();
        assert!(offered.contains(&2), "{offered:?}");
        stream.write_all(&[5, 2]).await.unwrap();
        let mut login = [0; 2 + 4 + 1 + 8];
        stream.read_exact(&mut login).await.unwrap();
        if &login != b"\x01\x04user\x08password" {
            stream.write_all(&[1, 1]).await.unwrap();
            return;
        }
        stream.write_all(&[1, 0]).await.unwrap();
        let [5, 1, 0, kind] = read(&mut stream).await else { panic!("no CONNECT") };
        let host = match kind {
            1 => std::net::Ipv4Addr::from(read(&mut stream).await).to_string(),
            3 => {
                let [length] = read(&mut stream).await;
                let mut name = vec![0; usize::from(length)];
                stream.read_exact(&mut name).await.unwrap();
                String::from_utf8(name).unwrap()
            }
            other => panic!("address of kind {other}"),
        };
        let port = u16::from_be_bytes(read(&mut stream).await);
        let _ = targets.send(format!("{host}:{port}"));
        let mut far = TcpStream::connect(to).await.unwrap();
        stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut far).await;
    })
    .await
}

async fn read<const N: usize>(stream: &mut TcpStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn an_agent_gets_through_an_http_proxy_with_a_password() {
    let (addr, mut seen, _proxy) = http_proxy(None).await;
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let service = Service::start("one").await;
    let endpoint = format!("my-endpoint/{}", service.addr);
    let through = format!("--connect.proxy-url=http://user:password@{addr}");
    let through = agent(piko(), node.upstream, &endpoint, &[&through]);
    node.routes("my-endpoint", 200).await;
    let head = seen.recv().await.unwrap();
    assert!(head.starts_with(&format!("CONNECT {} HTTP/1.1", node.upstream)), "{head}");
    assert!(!through.log().contains("password"), "{}", through.log());
    let wrong = format!("--connect.proxy-url=http://user:wrong@{addr}");
    let refused = agent(piko(), node.upstream, &endpoint, &[&wrong]);
    eventually("the proxy refuses", || async { refused.log().contains("proxy").then_some(()) }).await;
    assert!(!refused.log().contains("wrong"), "{}", refused.log());
}

/// Installers and CI images set them, and the way out of a company is no other.
#[tokio::test]
async fn an_agent_takes_the_proxy_that_the_environment_names() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let service = Service::start("one").await;
    // The name has no address: only the proxy knows the way.
    let (addr, mut seen, _proxy) = http_proxy(Some(node.upstream)).await;
    let endpoint = format!("--endpoints=my-endpoint/{}", service.addr);
    // One tunnel: a second one would ask the proxy again.
    let url = "--connect.url=http://tunnel.example.invalid:8001";
    let args = ["agent", &endpoint, "--connect.tunnels=1", url].map(str::to_owned);
    let named = |no_proxy: &str| {
        let proxy = format!("http://user:password@{addr}");
        let none =
            ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "http_proxy"].map(|name| (name, String::new()));
        let mut variables = vec![("HTTP_PROXY", proxy), ("NO_PROXY", no_proxy.to_owned())];
        variables.extend(none);
        Program::start_with(piko(), &args, &variables)
    };
    let through = named("localhost,10.0.0.0/8,tunnel.example.invalid:443");
    node.routes("my-endpoint", 200).await;
    let head = seen.recv().await.unwrap();
    assert!(head.starts_with("CONNECT tunnel.example.invalid:8001 HTTP/1.1"), "{head}");
    let log = through.log();
    assert_eq!(log.matches("HTTP_PROXY").count(), 1, "{log}");
    assert!(log.contains(&addr.to_string()) && !log.contains("password"), "{log}");
    // Excepted: the agent tries by itself, and says that the name has no address.
    let alone = named("example.invalid");
    eventually("it fails", || async { alone.log().contains("failed to connect").then_some(()) }).await;
    assert!(!alone.log().contains("HTTP_PROXY") && seen.try_recv().is_err(), "{}", alone.log());
}

/// As a client of TLS, the agent knows the proxy by the system's certificates or by its own configuration's.
#[tokio::test]
async fn an_agent_gets_through_an_https_proxy_that_it_knows() {
    let files = Files::make();
    let (addr, mut seen, _proxy) = https_proxy(&files).await;
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let service = Service::start("one").await;
    let endpoint = format!("my-endpoint/{}", service.addr);
    let through = format!("--connect.proxy-url=https://user:password@{addr}");
    let known = files.flag("connect.tls.root-cas", "ca");
    let _through = agent(piko(), node.upstream, &endpoint, &[&through, &known]);
    node.routes("my-endpoint", 200).await;
    let head = seen.recv().await.unwrap();
    assert!(head.starts_with(&format!("CONNECT {} HTTP/1.1", node.upstream)), "{head}");
    let stranger = files.flag("connect.tls.root-cas", "stranger");
    let refused = agent(piko(), node.upstream, &endpoint, &[&through, &stranger]);
    eventually("the agent says whose certificate it is", || async {
        refused.log().contains(&format!("proxy https://{addr}/: certificate not accepted")).then_some(())
    })
    .await;
    assert!(!refused.log().contains("password"), "{}", refused.log());
}

#[tokio::test]
async fn an_agent_gets_through_a_socks_proxy_which_may_look_up_names() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let (addr, mut seen, _proxy) = socks_proxy(node.upstream).await;
    let service = Service::start("one").await;
    let endpoint = format!("--endpoints=my-endpoint/{}", service.addr);
    let start = |scheme: &str, host: &str, password: &str| {
        let through = format!("--connect.proxy-url={scheme}://user:{password}@{addr}");
        let url = format!("--connect.url=http://{host}:8001");
        let args = ["agent", &endpoint, "--connect.tunnels=1", &url, &through].map(str::to_owned);
        Program::start_with(piko(), &args, &[])
    };
    for (scheme, host, target) in [
        ("socks5h", "tunnel.example.invalid", "tunnel.example.invalid:8001"),
        ("socks5", "localhost", "127.0.0.1:8001"),
    ] {
        let through = start(scheme, host, "password");
        node.routes("my-endpoint", 200).await;
        assert_eq!(seen.recv().await.unwrap(), target);
        assert!(!through.log().contains("password"), "{}", through.log());
        drop(through);
        node.routes("my-endpoint", 502).await;
    }
    let alone = start("socks5", "tunnel.example.invalid", "password");
    eventually("it says what would do", || async { alone.log().contains("socks5h://").then_some(()) }).await;
    let wrong = start("socks5h", "tunnel.example.invalid", "pass-w0rd");
    eventually("it is refused", || async { wrong.log().contains("credentials").then_some(()) }).await;
    assert!(!wrong.log().contains("pass-w0rd") && seen.try_recv().is_err(), "{}", wrong.log());
}
