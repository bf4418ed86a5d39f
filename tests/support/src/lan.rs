//! Hosts of one machine: a network namespace each, on a switch in a namespace of its own. Nothing of it is
//! reachable from outside, and dropping it takes it all away.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::program::{Program, run};

/// Some hosts on a switch.
pub struct Lan {
    name: String,
    hosts: usize,
}

impl Lan {
    /// Hosts 1 to `hosts`, or why there can be none: this needs root and `ip`.
    pub fn make(hosts: usize) -> Result<Lan, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("piko{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
        let lan = Lan { name, hosts };
        let switch = lan.switch();
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])?;
        for host in 1..=hosts {
            let namespace = lan.namespace(host);
            let port = format!("port{host}");
            ip(&["netns", "add", &namespace])?;
            ip(&[
                "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns",
                &namespace,
            ])?;
            ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", &namespace, "addr", "add", &format!("{}/24", lan.address(host)), "dev", "eth0"])?;
            ip(&["-n", &namespace, "link", "set", "eth0", "up"])?;
            ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
        }
        Ok(lan)
    }

    /// A host's address on the switch.
    pub fn address(&self, host: usize) -> String {
        format!("10.213.7.{host}")
    }

    /// Starts a program on a host.
    pub fn start(&self, host: usize, program: &Path, args: &[&str]) -> Program {
        // `ip` becomes the program, so its process is the program's.
        let words = self.words(host, program, args);
        Program::start(Path::new("ip"), &words)
    }

    /// Runs a program on a host to its end.
    pub fn run(&self, host: usize, program: &Path, args: &[&str]) -> Output {
        let words = self.words(host, program, args);
        run(Path::new("ip"), &words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn words(&self, host: usize, program: &Path, args: &[&str]) -> Vec<String> {
        let program = program.display().to_string();
        let namespace = self.namespace(host);
        let start = ["netns", "exec", namespace.as_str(), program.as_str()];
        start.into_iter().chain(args.iter().copied()).map(str::to_owned).collect()
    }

    /// Cuts a host off: packets are lost, nothing is closed.
    pub fn cut(&self, host: usize) {
        ip(&["-n", &self.switch(), "link", "set", &format!("port{host}"), "nomaster"])
            .expect("a link can be cut");
    }

    /// Connects it again.
    pub fn heal(&self, host: usize) {
        let switch = self.switch();
        ip(&["-n", &switch, "link", "set", &format!("port{host}"), "master", "br0"])
            .expect("a link can be healed");
    }

    fn switch(&self) -> String {
        format!("{}s", self.name)
    }

    fn namespace(&self, host: usize) -> String {
        format!("{}h{host}", self.name)
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for host in 1..=self.hosts {
            let _ = ip(&["netns", "delete", &self.namespace(host)]);
        }
        let _ = ip(&["netns", "delete", &self.switch()]);
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output().map_err(|e| format!("ip: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
    }
}
