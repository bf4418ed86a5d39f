//! The shipped `docs/demo/config/nginx.conf` on free ports, in front of nodes on free ports.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::program::Node;
use crate::{eventually, free_addr};

/// A running NGINX: its three ports.
pub struct Nginx {
    child: Child,
    _dir: TempDir,
    /// For clients.
    pub proxy: SocketAddr,
    /// For agents.
    pub upstream: SocketAddr,
    /// For status.
    pub admin: SocketAddr,
}

impl Nginx {
    /// Starts it with `conf`, whose `piko-N:800x` and `listen 800x` become these nodes' and free ports.
    pub async fn start(conf: &Path, nodes: &[Node]) -> Nginx {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let [proxy, upstream, admin] = std::array::from_fn(|_| free_addr());
        let mut text = std::fs::read_to_string(conf).expect("the shipped configuration is there");
        for (n, node) in nodes.iter().enumerate() {
            for (port, addr) in [(8000, node.proxy), (8001, node.upstream), (8002, node.admin)] {
                let server = format!("piko-{}:{port}", n + 1);
                assert!(text.contains(&server), "{server} is missing in {}", conf.display());
                text = text.replace(&server, &addr.to_string());
            }
        }
        assert!(!text.contains("piko-"), "more servers in {} than nodes", conf.display());
        for (port, addr) in [(8000, proxy), (8001, upstream), (8002, admin)] {
            text = text.replace(&format!("listen {port};"), &format!("listen {addr};"));
        }
        let at = dir.path();
        let mut head = format!("daemon off; pid {0}/pid; error_log {0}/error.log;\n", at.display());
        // Started as root it would give its workers another user, who may not write here.
        head.push_str("master_process off;\n");
        let mut folders = String::new();
        for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            folders.push_str(&format!("{name}_temp_path {}/{name};\n", at.display()));
        }
        text = text.replacen("http {", &format!("http {{\naccess_log off;\n{folders}"), 1);
        std::fs::write(at.join("nginx.conf"), head + &text).expect("it can be written to");
        let program = if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
        let child = Command::new(program)
            .arg("-c")
            .arg(at.join("nginx.conf"))
            .args(["-e", "stderr"])
            .stdin(Stdio::null())
            .spawn()
            .expect("nginx is installed; tools/setup test does that");
        let nginx = Nginx { child, _dir: dir, proxy, upstream, admin };
        eventually("nginx listens", || async { TcpStream::connect(nginx.admin).await.ok() }).await;
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
