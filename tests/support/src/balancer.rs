//! The shipped files of `config/examples/balancers` on free ports, in front of nodes on free ports.

use std::net::SocketAddr;
use std::path::Path;

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::program::{Node, Program};
use crate::{eventually, free_addr};

/// A running balancer: its two ports.
pub struct Balancer {
    _program: Program,
    _dir: TempDir,
    /// For clients.
    pub proxy: SocketAddr,
    /// For agents.
    pub upstream: SocketAddr,
}

impl Balancer {
    /// HAProxy with `file`.
    pub async fn haproxy(file: &Path, nodes: &[Node]) -> Balancer {
        let listen = |addr: SocketAddr| format!("bind {addr}\n");
        let run = |at: &str| vec!["-db".to_owned(), "-f".to_owned(), at.to_owned()];
        Balancer::start("/usr/sbin/haproxy", file, nodes, ["bind :8000\n", "bind :8001\n"], listen, run).await
    }

    /// Caddy with `file`.
    pub async fn caddy(file: &Path, nodes: &[Node]) -> Balancer {
        let listen = |addr: SocketAddr| format!("\nhttp://:{} {{\n\tbind {}\n", addr.port(), addr.ip());
        let run = |at: &str| ["run", "--adapter", "caddyfile", "--config", at].map(str::to_owned).into();
        Balancer::start("/usr/bin/caddy", file, nodes, ["\n:8000 {\n", "\n:8001 {\n"], listen, run).await
    }

    async fn start(
        program: &str,
        file: &Path,
        nodes: &[Node],
        listens: [&str; 2],
        listen: impl Fn(SocketAddr) -> String,
        run: impl Fn(&str) -> Vec<String>,
    ) -> Balancer {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let (proxy, upstream) = (free_addr(), free_addr());
        let mut text = std::fs::read_to_string(file).expect("the shipped configuration is there");
        for (n, node) in nodes.iter().enumerate() {
            for (port, addr) in [(8000, node.proxy), (8001, node.upstream)] {
                let server = format!("piko-{}:{port}", n + 1);
                assert!(text.contains(&server), "{server} is missing in {}", file.display());
                text = text.replace(&server, &addr.to_string());
            }
        }
        for (from, addr) in listens.into_iter().zip([proxy, upstream]) {
            assert!(text.contains(from), "{from:?} is missing in {}", file.display());
            text = text.replace(from, &listen(addr));
        }
        let at = dir.path().join("file");
        std::fs::write(&at, text).expect("it can be written to");
        let home = dir.path().display().to_string();
        let homes = ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"].map(|name| (name, home.clone()));
        assert!(Path::new(program).exists(), "{program} is missing; tools/setup test installs it");
        let running = Program::start_with(Path::new(program), &run(&at.display().to_string()), &homes);
        for addr in [proxy, upstream] {
            eventually("the balancer listens", || async { TcpStream::connect(addr).await.ok() }).await;
        }
        Balancer { _program: running, _dir: dir, proxy, upstream }
    }
}
