//! Upgrades that are asked for with a body, as `docker exec` does: its options are the body, and the command's streams
//! follow the 101.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use piko_test_support::client::{get, raw};
use piko_test_support::program::{Node, agent, cluster};
use piko_test_support::within;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::piko;

/// What a service read: the number of its connection, a request line, and the body's length.
type Requests = Arc<Mutex<Vec<(usize, String, usize)>>>;

/// A service that behaves as dockerd does: it reads the options whole before it answers. Below `/exec/known` it
/// switches, prompts unless it is to be quiet, and gives the input back when that has ended; anything else is answered
/// by 404 on a connection that it keeps, whatever was asked for.
async fn dockerd() -> (SocketAddr, Requests, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let requests = Requests::default();
    let record = requests.clone();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let record = record.clone();
            connections.spawn(async move { drop(connection(stream, number, &record).await) });
        }
    });
    (addr, requests, AbortOnDropHandle::new(task))
}

async fn connection(stream: TcpStream, number: usize, record: &Requests) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let field = |name: &str| {
            let field = |line: &str| {
                let (known, value) = line.split_once(": ")?;
                known.eq_ignore_ascii_case(name).then(|| value.to_owned())
            };
            head.lines().find_map(field)
        };
        let length = field("content-length").map_or(0, |length| length.parse().unwrap());
        let mut options = vec![0; length];
        stream.read_exact(&mut options).await?;
        let line = head.lines().next().unwrap_or_default().to_owned();
        record.lock().push((number, line.clone(), length));
        if !line.contains("/exec/known") {
            stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone").await?;
            continue;
        }
        let protocol = field("upgrade").unwrap_or_default();
        let raw = "Content-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: ";
        let prompt = if line.contains("/quiet") { "" } else { "$ " };
        let answer = format!("HTTP/1.1 101 UPGRADED\r\n{raw}{protocol}\r\n\r\n{prompt}");
        stream.write_all(answer.as_bytes()).await?;
        let mut input = Vec::new();
        stream.read_to_end(&mut input).await?;
        stream.write_all(&input).await?;
        return Ok(());
    }
}

fn head(path: &str, protocol: &str, framing: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nx-piko-endpoint: docker\r\nContent-Type: application/json\r\n\
         Connection: Upgrade\r\nUpgrade: {protocol}\r\n{framing}\r\n\r\n"
    )
}

#[tokio::test]
async fn docker_exec_works_over_one_node_and_two() {
    let nodes = cluster(piko(), 2, &[]).await;
    let [near, far] = &nodes[..] else { unreachable!("there are two") };
    let (addr, requests, _task) = dockerd().await;
    let _agent = agent(piko(), near.upstream, &format!("docker/{addr}"), &[]);
    near.routes("docker", 404).await;
    far.routes("docker", 404).await;
    let options = r#"{"Detach":false,"Tty":false}"#;
    let large = "o".repeat(64 << 10);
    let half = options.len() / 2;
    let chunks = format!(
        "{half:x}\r\n{}\r\n{half:x}\r\n{}\r\n0\r\nx-sum: 1\r\n\r\n",
        &options[..half],
        &options[half..]
    );
    for (node, framing, body, length) in [
        (near, format!("Content-Length: {}", options.len()), options, options.len()),
        (far, format!("Content-Length: {}", options.len()), options, options.len()),
        (near, "Transfer-Encoding: chunked".into(), chunks.as_str(), options.len()),
        (far, "Transfer-Encoding: chunked".into(), chunks.as_str(), options.len()),
        (far, format!("Content-Length: {}", large.len()), large.as_str(), large.len()),
        (near, "Transfer-Encoding: chunked".into(), "0\r\n\r\n", 0),
    ] {
        let mut client = TcpStream::connect(node.proxy).await.unwrap();
        client.write_all(head("/exec/known/start", "tcp", &framing).as_bytes()).await.unwrap();
        // The body in two parts, then what docker sends only when it has the 101.
        let (one, two) = body.split_at(body.len() / 2);
        client.write_all(one.as_bytes()).await.unwrap();
        tokio::task::yield_now().await;
        client.write_all(two.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n$ ") {
            let read = within("the 101", client.read_buf(&mut answer)).await.unwrap();
            assert!(read > 0, "{framing}: {}", String::from_utf8_lossy(&answer));
        }
        let answer = String::from_utf8_lossy(&answer).to_lowercase();
        assert!(answer.starts_with("http/1.1 101") && answer.contains("upgrade: tcp"), "{framing}: {answer}");
        client.write_all(b"echo hello").await.unwrap();
        client.shutdown().await.unwrap();
        let mut output = String::new();
        within("the output", client.read_to_string(&mut output)).await.unwrap();
        assert_eq!(output, "echo hello", "{framing}");
        let read = requests.lock().last().cloned().unwrap();
        assert_eq!((read.1.as_str(), read.2), ("POST /exec/known/start HTTP/1.1", length), "{framing}");
    }
}

/// A service that declines keeps its connection. What is next on it must be a request of somebody's, whole.
#[tokio::test]
async fn what_follows_a_declined_upgrade_with_a_body_is_nobodys_request() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let (addr, requests, _task) = dockerd().await;
    let listeners = tempfile::tempdir().unwrap();
    let file = listeners.path().join("agent.yaml");
    let some = format!("listeners: [{{endpoint_id: docker, addr: '{addr}', upgrades: [spdy]}}]\n");
    std::fs::write(&file, some).unwrap();
    let args = ["agent".into(), format!("--config.path={}", file.display())];
    let url = format!("--connect.url=http://{}", node.upstream);
    let _agent = piko_test_support::program::Program::start(piko(), &[&args[..], &[url]].concat());
    node.routes("docker", 404).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\nx-piko-endpoint: docker\r\n\r\n";
    // The listener permits the one and not the other, whose request goes on without its upgrade.
    for protocol in ["SPDY/3.1", "tcp"] {
        let framing = format!("Content-Length: {}", smuggled.len());
        let first = requests.lock().len();
        let request = head("/exec/missing/start", protocol, &framing) + smuggled;
        let (answer, victim) = tokio::join!(raw(node.proxy, request.as_bytes()), async {
            get(node.proxy, "/victim", &[("x-piko-endpoint", "docker")]).await
        });
        let answer = answer.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404"), "{protocol}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{protocol}: {answer}");
        assert_eq!(victim.unwrap().status, 404);
        for n in 0..5 {
            let path = format!("/next-{n}");
            assert_eq!(get(node.proxy, &path, &[("x-piko-endpoint", "docker")]).await.unwrap().status, 404);
        }
        let read: Vec<_> = requests.lock()[first..].to_vec();
        let upgrade = read.iter().find(|(_, line, _)| line.contains("missing")).unwrap().clone();
        assert_eq!(upgrade.2, smuggled.len(), "{protocol}: {read:?}");
        assert!(!read.iter().any(|(_, line, _)| line.contains("smuggled")), "{protocol}: {read:?}");
        assert_eq!(read.len(), 7, "{protocol}: {read:?}");
        if protocol == "SPDY/3.1" {
            let again = read.iter().filter(|(number, ..)| *number == upgrade.0).count();
            assert_eq!(again, 1, "a connection that an upgrade was tried on serves nobody else: {read:?}");
        }
    }
}

#[tokio::test]
async fn what_is_too_much_before_an_upgrade_is_refused() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    let (addr, requests, _task) = dockerd().await;
    let _agent = agent(piko(), node.upstream, &format!("docker/{addr}"), &[]);
    node.routes("docker", 404).await;
    let before = requests.lock().len();
    let (most, more) = (64 << 10, 100);
    let chunk =
        format!("{:x}\r\n{}\r\n{more:x}\r\n", most, "o".repeat(most)) + &"o".repeat(more) + "\r\n0\r\n\r\n";
    for (framing, body) in [
        (format!("Content-Length: {}", most + more), "o".repeat(most + more)),
        ("Transfer-Encoding: chunked".into(), chunk),
    ] {
        let answer = raw(node.proxy, (head("/exec/known/start", "tcp", &framing) + &body).as_bytes()).await;
        let answer = answer.unwrap();
        assert!(answer.starts_with("HTTP/1.1 413"), "{framing}: {answer}");
        assert!(answer.contains("upgrade_body_too_large"), "{framing}: {answer}");
    }
    assert_eq!(requests.lock().len(), before, "nothing of it reached the service");
}

/// A node that leaves half-closes it: a WebSocket's close frame would be input for the command, or its output.
#[tokio::test]
async fn a_leaving_node_says_nothing_of_its_own_in_a_protocol_it_does_not_know() {
    let node = Node::start(piko(), &[], &["--grace-period=1s"]);
    node.ready().await;
    let (addr, _requests, _task) = dockerd().await;
    let _agent = agent(piko(), node.upstream, &format!("docker/{addr}"), &[]);
    node.routes("docker", 404).await;
    let mut client = TcpStream::connect(node.proxy).await.unwrap();
    // Nothing has come: as far as bytes tell, a frame could begin here.
    client.write_all(head("/exec/known/quiet", "tcp", "Content-Length: 0").as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        assert!(client.read_buf(&mut seen).await.unwrap() > 0, "it ended before it had begun");
    }
    node.program.signal("TERM");
    let mut rest = Vec::new();
    within("the node ends it", client.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"");
}
