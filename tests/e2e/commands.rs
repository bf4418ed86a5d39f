//! What the command line says of itself, and its exit codes.

use std::process::{Command, Stdio};

use piko_test_support::program::{Node, run};
use piko_test_support::{eventually, free_addr};

use crate::piko;

#[test]
fn completions_are_words_that_shells_take() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(piko(), &["completions", shell]);
        assert!(output.status.success(), "{shell}");
        let words = String::from_utf8(output.stdout).unwrap();
        assert!(words.contains("forward") && words.contains("proxy.bind-addr"), "{shell}");
        if shell == "bash" {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("piko");
            std::fs::write(&file, words).unwrap();
            // Sourced, and asked as bash does at a Tab after `piko st`.
            let script = format!(
                "source '{}' && COMP_WORDS=(piko st) COMP_CWORD=1 && _piko piko st piko && echo \"${{COMPREPLY[@]}}\"",
                file.display()
            );
            let said = Command::new("bash").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "status", "{said:?}");
        }
    }
    assert_eq!(run(piko(), &["completions", "tcsh"]).status.code(), Some(2));
}

#[test]
fn each_command_has_a_man_page() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man1");
    assert!(run(piko(), &["man", folder.to_str().unwrap()]).status.success());
    for (page, says) in [
        ("piko.1", "tunnelling"),
        ("piko-server.1", "proxy.bind"),
        ("piko-status-cluster-nodes.1", "forward"),
        ("piko-agent-http.1", "ENDPOINT"),
    ] {
        let text = std::fs::read_to_string(folder.join(page)).unwrap();
        assert!(text.contains(".TH") && text.replace("\\-", "-").contains(says), "{page}: {text}");
    }
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(run(piko(), &["man", file.to_str().unwrap()]).status.code(), Some(1));
}

#[test]
fn who_cannot_be_reached_is_told_apart_from_other_failures() {
    let nobody = free_addr();
    let status = run(piko(), &["status", "cluster", "nodes", "--server.url", &format!("http://{nobody}")]);
    assert_eq!(status.status.code(), Some(69), "{status:?}");
    let agent = run(
        piko(),
        &[
            "agent",
            "--endpoints=a/localhost:1",
            &format!("--connect.url=http://{nobody}"),
            "--connect.timeout=1s",
        ],
    );
    assert_eq!(agent.status.code(), Some(69), "{agent:?}");
    let log = String::from_utf8_lossy(&agent.stderr);
    assert!(
        log.contains("\"tries\":1,") && log.contains("trying again in "),
        "each try has its number: {log}"
    );
}

/// A node's and an agent's files of Piko in Go, as docs/migrate-from-piko.md has them.
#[test]
fn an_old_configuration_is_written_in_todays_words() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old.yaml"), dir.path().join("new.yaml"));
    let text = "proxy:\n  gateway_timeout: 15s\nauth:\n  token_hmac_secret_key: 0123456789abcdef0123456789abcdef\n\
                gossip:\n  bind_addr: 127.0.0.1:8003\nusage:\n  disable: true\n";
    std::fs::write(&old, text).unwrap();
    let (old, new) = (old.to_str().unwrap(), new.to_str().unwrap());
    let output = run(piko(), &["migrate", old, "--out", new]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("renamed: proxy.gateway_timeout is proxy.timeout now"), "{said}");
    assert!(said.contains(&format!("left out: config: {old}:7: usage: unknown key")), "{said}");
    let written = std::fs::read_to_string(new).unwrap();
    for line in ["  timeout: 15s", "    hmac_secret_key: 0123456789abcdef0123456789abcdef"] {
        assert!(written.lines().any(|told| told == line), "{line}\n{written}");
    }
    let checked = run(piko(), &["config", "check", "--kind", "server", new]);
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn a_unit_is_written_once_its_configuration_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("agent.yaml"), "endpoints: [nonsense]\n").unwrap();
    let install = || {
        run(
            piko(),
            &["service", "install", "agent", "--unit-dir", &at(""), "--config.path", &at("agent.yaml")],
        )
    };
    let refused = install();
    assert_eq!(refused.status.code(), Some(78), "{refused:?}");
    assert!(!dir.path().join("piko-agent.service").exists());
    std::fs::write(at("agent.yaml"), "endpoints: [a/localhost:1]\n").unwrap();
    let done = install();
    assert!(done.status.success(), "{done:?}");
    let unit = std::fs::read_to_string(at("piko-agent.service")).unwrap();
    let line = format!("ExecStart={} agent --config.path {}\n", piko().display(), at("agent.yaml"));
    assert!(unit.contains(&line), "{unit}");
    assert!(run(piko(), &["service", "uninstall", "agent", "--unit-dir", &at("")]).status.success());
    assert!(!dir.path().join("piko-agent.service").exists());
}

/// As `piko completions bash | head -1` does it.
#[test]
fn a_reader_that_has_had_enough_is_no_failure() {
    let mut child =
        Command::new(piko()).args(["completions", "bash"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn what_is_not_permitted_is_told_apart_from_other_failures() {
    let key = "--auth.hmac-secret-key=0123456789abcdef0123456789abcdef";
    let node = Node::start(piko(), &[], &[&key.replace("--", "--admin."), &key.replace("--", "--upstream.")]);
    let url = format!("http://{}", node.admin);
    eventually("the admin port refuses", || async {
        let status = run(piko(), &["status", "cluster", "nodes", "--server.url", &url]);
        (status.status.code() == Some(77)).then_some(())
    })
    .await;
    let url = format!("--connect.url=http://{}", node.upstream);
    let agent = run(piko(), &["agent", "--endpoints=a/localhost:1", &url]);
    assert_eq!(agent.status.code(), Some(77), "{agent:?}");
}

/// 130 flags once stood in one list, each beside a column of its own.
#[test]
fn help_has_headings_and_fits_a_terminal() {
    for command in ["server", "agent"] {
        let output = Command::new(piko()).args([command, "--help"]).env("COLUMNS", "100").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        for heading in ["Options:", "Security:", "Listen:", "Logs:", "Limits and timeouts:"] {
            assert!(help.lines().any(|line| line == heading), "{command} has no {heading}\n{help}");
        }
        let (_, options) = help.split_once("\nOptions:").unwrap();
        let plain =
            options.lines().take_while(|line| !line.is_empty()).filter(|line| line.contains("--")).count();
        assert!(plain <= 4, "{plain} flags of {command} have no heading:{options}");
        let long = help.lines().filter(|line| line.chars().count() > 100).count();
        assert_eq!(long, 0, "lines of {command} are longer than the terminal is wide");
    }
}
