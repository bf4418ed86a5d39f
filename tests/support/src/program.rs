//! The real program as child processes: nodes, agents, one-off commands. Each is killed when dropped.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::{client, eventually, free_addr};

/// Lines of a process's log that a failed test shows.
const LOG_TAIL: usize = 40;

/// The program, started by a shell: `before` goes before it, `after` behind its arguments.
pub struct ByShell {
    /// The script to start.
    pub path: PathBuf,
    _dir: TempDir,
}

impl ByShell {
    /// Writes the script.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn new(binary: &Path, before: &str, after: &str) -> ByShell {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let path = dir.path().join("piko");
        let text = format!("#!/bin/sh\n{before} exec '{}' \"$@\" {after}\n", binary.display());
        std::fs::write(&path, text).expect("it can be written to");
        let runs = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&path, runs).expect("a file of ours");
        ByShell { path, _dir: dir }
    }
}

/// A running process of ours.
pub struct Program {
    child: Child,
    dir: TempDir,
}

impl Program {
    /// Starts `binary` with its output in a file.
    pub fn start(binary: &Path, args: &[String]) -> Program {
        Program::start_with(binary, args, &[])
    }

    /// Starts `binary` with more environment variables.
    pub fn start_with(binary: &Path, args: &[String], variables: &[(&str, String)]) -> Program {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let log = File::create(dir.path().join("log")).expect("it can be written to");
        let both = log.try_clone().expect("a file can be shared");
        let child = Command::new(binary)
            .args(args)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(both)
            .stderr(log)
            .spawn()
            .expect("the program starts");
        Program { child, dir }
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal by name: `TERM`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -s {name} failed");
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    pub async fn ended(&mut self, what: &str) -> ExitStatus {
        let child = &mut self.child;
        eventually(what, || {
            let ended = child.try_wait().expect("a child can be waited for");
            async move { ended }
        })
        .await
    }

    /// Resident memory, bytes.
    pub fn rss(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let first = log.lines().count().saturating_sub(LOG_TAIL);
            let tail: Vec<_> = log.lines().skip(first).collect();
            eprintln!("--- end of the log of process {} ---\n{}", self.pid(), tail.join("\n"));
        }
    }
}

/// Runs a command to its end.
pub fn run(binary: &Path, args: &[&str]) -> Output {
    Command::new(binary).args(args).stdin(Stdio::null()).output().expect("the program starts")
}

/// A node.
pub struct Node {
    /// Its process.
    pub program: Program,
    /// For clients.
    pub proxy: SocketAddr,
    /// For agents.
    pub upstream: SocketAddr,
    /// For status.
    pub admin: SocketAddr,
    /// For membership.
    pub gossip: SocketAddr,
    /// For other nodes.
    pub peer: SocketAddr,
    binary: PathBuf,
    args: Vec<String>,
    /// Lines of its earlier processes' access logs about answers of 500 and above.
    errors: Vec<String>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.errors.is_empty() {
            eprintln!("--- errors before the last start of {} ---\n{}", self.proxy, self.errors.join("\n"));
        }
    }
}

impl Node {
    /// Starts a node on free ports that joins `join`; returns at once. A bind address in `more` is taken instead.
    pub fn start(binary: &Path, join: &[SocketAddr], more: &[&str]) -> Node {
        Node::start_with(binary, join, more, &[])
    }

    /// The same with more environment variables, which a restart does without.
    pub fn start_with(
        binary: &Path,
        join: &[SocketAddr],
        more: &[&str],
        variables: &[(&str, String)],
    ) -> Node {
        let [proxy, upstream, admin, gossip, peer] = std::array::from_fn(|_| free_addr());
        let join: Vec<_> = join.iter().map(ToString::to_string).collect();
        let mut args: Vec<String> = vec!["server".into()];
        let mut flag = |name: &str, value: String| {
            let flag = format!("--{name}=");
            if !more.iter().any(|given| given.starts_with(&flag)) {
                args.push(flag + &value);
            }
        };
        flag("proxy.bind-addr", proxy.to_string());
        flag("upstream.bind-addr", upstream.to_string());
        flag("admin.bind-addr", admin.to_string());
        flag("cluster.gossip.bind-addr", gossip.to_string());
        flag("cluster.peer.bind-addr", peer.to_string());
        if !join.is_empty() {
            flag("cluster.join", join.join(","));
        }
        args.extend(more.iter().map(ToString::to_string));
        let program = Program::start_with(binary, &args, variables);
        Node {
            program,
            proxy,
            upstream,
            admin,
            gossip,
            peer,
            binary: binary.to_owned(),
            args,
            errors: Vec::new(),
        }
    }

    /// What it joins from its next start on.
    pub fn join_next(&mut self, join: &[SocketAddr]) {
        self.args.retain(|arg| !arg.starts_with("--cluster.join="));
        let join: Vec<_> = join.iter().map(ToString::to_string).collect();
        self.args.push(format!("--cluster.join={}", join.join(",")));
    }

    /// Starts it again on its ports, after its end.
    pub fn restart(&mut self) {
        let log = self.program.log();
        let errors = log.lines().filter(|line| line.contains("\"status\":5"));
        self.errors.extend(errors.take(LOG_TAIL).map(str::to_owned));
        self.program = Program::start(&self.binary, &self.args);
    }

    /// Waits until `/ready` says 200.
    pub async fn ready(&self) {
        eventually("the node is ready", || async {
            let answer = client::get(self.admin, "/ready", &[]).await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
    }

    /// A status route as JSON; `Null` if it does not answer 200.
    pub async fn status(&self, path: &str) -> Value {
        match client::get(self.admin, path, &[]).await {
            Ok(answer) if answer.status == 200 => serde_json::from_slice(&answer.body).unwrap_or(Value::Null),
            _ => Value::Null,
        }
    }

    /// The statuses of all nodes it knows, sorted.
    pub async fn statuses(&self) -> Vec<String> {
        let nodes = self.status("/status/cluster/nodes").await;
        let nodes = nodes.as_array().cloned().unwrap_or_default();
        let mut all: Vec<_> = nodes.iter().filter_map(|n| n["status"].as_str().map(str::to_owned)).collect();
        all.sort();
        all
    }

    /// Its id.
    pub async fn id(&self) -> String {
        self.status("/status/cluster/nodes/local").await["id"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until requests for the endpoint are answered with `status`.
    pub async fn routes(&self, endpoint: &str, status: u16) {
        eventually(&format!("{endpoint} answers {status}"), || async {
            let answer = client::get(self.proxy, "/", &[("x-piko-endpoint", endpoint)]).await.ok()?;
            (answer.status == status).then_some(())
        })
        .await;
    }

    /// Waits until that many upstreams are connected to it.
    pub async fn upstreams(&self, count: usize) {
        eventually(&format!("{count} upstreams are connected"), || async {
            (self.metric("piko_upstreams_connected_upstreams").await == count as f64).then_some(())
        })
        .await;
    }

    /// A metric's value, summed over its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let answer = client::get(self.admin, "/metrics", &[]).await;
        let text = answer.map(|a| String::from_utf8_lossy(&a.body).into_owned()).unwrap_or_default();
        let values = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
        values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

/// Starts that many nodes, all joined to each other and ready.
pub async fn cluster(binary: &Path, nodes: usize, more: &[&str]) -> Vec<Node> {
    let mut cluster: Vec<Node> = Vec::new();
    for _ in 0..nodes {
        let join: Vec<_> = cluster.first().map(|first| first.gossip).into_iter().collect();
        let node = Node::start(binary, &join, more);
        node.ready().await;
        cluster.push(node);
    }
    for node in &cluster {
        eventually("the cluster is complete and linked", || async {
            let active = node.statuses().await.iter().filter(|s| *s == "active").count();
            (active == nodes).then_some(())
        })
        .await;
    }
    cluster
}

/// Starts an agent for `endpoint/host:port` pairs.
pub fn agent(binary: &Path, upstream: SocketAddr, endpoints: &str, more: &[&str]) -> Program {
    let mut args = vec![
        "agent".to_owned(),
        format!("--endpoints={endpoints}"),
        format!("--connect.url=http://{upstream}"),
    ];
    args.extend(more.iter().map(ToString::to_string));
    Program::start(binary, &args)
}
