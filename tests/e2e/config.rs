//! Configuration as a user meets it: files, flags, environment, and what is said about mistakes.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use piko_test_support::client::get;
use piko_test_support::eventually;
use piko_test_support::program::{Node, Program, run};
use tokio::io::AsyncReadExt as _;

use crate::piko;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str) -> Vec<PathBuf> {
    let mut found: Vec<_> =
        std::fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    found.sort();
    assert!(!found.is_empty(), "{folder} is empty");
    found
}

fn says(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The first line of each file says where its mistake is and what is said about it.
#[test]
fn c10_c11_each_mistake_is_named_with_its_file_and_line() {
    for file in files("tests/config/invalid") {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(&file).unwrap();
        let first = text.lines().next().unwrap().strip_prefix("# line ").unwrap().to_owned();
        let (line, words) = first.split_once(": ").unwrap();
        let kind = ["agent", "forward"].into_iter().find(|kind| name.contains(&format!("/{kind}-")));
        let kind = kind.unwrap_or("server");
        let checked = run(piko(), &["config", "check", "--kind", kind, &name]);
        // The command itself says the same, and opens no port.
        let command = if kind == "forward" { &[kind, "start"][..] } else { &[kind] };
        let started = run(piko(), &[command, &["--config.path", &name]].concat());
        for output in [checked, started] {
            let said = says(&output);
            assert_eq!(output.status.code(), Some(78), "{name}: {said}");
            assert!(said.contains(&format!("{name}:{line}: ")) && said.contains(words), "{name}: {said}");
        }
    }
}

/// One start for each mistake was the only way to find them.
#[test]
fn a_check_says_all_mistakes_each_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server.yaml");
    let text = "\
proxy:
  bind_addr: nowhere
  timeout: 10
  tiemout: 1s
  auth:
    hmac_secret_key: short
upstream:
  tenants:
    - {id: a, auth: {hmac_secret_key: short}}
    - id: b
      auth: {hmac_secret_key: 0123456789abcdef0123456789abcdef}
    - {id: b, auth: {hmac_secret_key: 0123456789abcdef0123456789abcdef}}
cluster:
  secret: short
  gossip: {bind_addr: ':8003', max_packet_size: 1}
adnim: {}
";
    std::fs::write(&file, text).unwrap();
    let output = run(piko(), &["config", "check", file.to_str().unwrap()]);
    let said = says(&output);
    assert_eq!(output.status.code(), Some(78), "{said}");
    for (line, words) in [
        (2, "proxy.bind_addr: "),
        (3, "proxy.timeout: "),
        (4, "proxy.tiemout: unknown key; did you mean `timeout`?"),
        (6, "proxy.auth.hmac_secret_key: has 5 bytes"),
        (9, "upstream.tenants[0].auth.hmac_secret_key: has 5 bytes"),
        (12, "upstream.tenants[2].id: \"b\" is there twice"),
        (14, "cluster.secret: "),
        (15, "cluster.gossip.max_packet_size: "),
        (16, "adnim: unknown key; did you mean `admin`?"),
    ] {
        let start = format!("error: config: {}:{line}: {words}", file.display());
        assert!(said.lines().any(|told| told.starts_with(&start)), "{start}\n{said}");
    }
    // What only follows from those is not told: an open gossip port has its secret, but a short one.
    let told = said.lines().filter(|line| line.starts_with("error: ")).count();
    assert!(said.ends_with(": 9 mistakes\n") && told == 9, "{said}");
}

/// What a file says of this machine is compared with it: as a warning, or as a mistake where it is for this machine.
#[test]
fn a_check_looks_at_files_ports_and_names() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    assert!(run(piko(), &["cert", "new", "node", "--dir", &at("certs")]).status.success());
    assert!(run(piko(), &["cert", "new", "other", "--dir", &at("certs")]).status.success());
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = format!(
        "proxy:\n  bind_addr: {}\n  tls: {{cert: {}, key: {}}}\nupstream:\n  bind_addr: 127.0.0.1:0\n  tls:\n    \
         cert: {}\n    key: /does/not/exist\nadmin: {{bind_addr: 127.0.0.1:0}}\ncluster:\n  insecure: true\n  \
         join: [no-such-name.invalid]\n  gossip: {{bind_addr: 127.0.0.1:0}}\n  peer: {{bind_addr: 127.0.0.1:0}}\n",
        held.local_addr().unwrap(),
        at("certs/node.pem"),
        at("certs/other-key.pem"),
        at("certs/node.pem"),
    );
    let file = at("server.yaml");
    std::fs::write(&file, text).unwrap();
    let elsewhere = run(piko(), &["config", "check", &file]);
    let said = says(&elsewhere);
    assert!(elsewhere.status.success() && !said.contains("in use"), "{said}");
    let place = format!("warning: config: {file}");
    assert!(said.contains(&format!("{place}:8: upstream.tls.key: cannot read /does/not/exist")), "{said}");
    let here = run(piko(), &["config", "check", "--live", &file]);
    let said = says(&here);
    assert_eq!(here.status.code(), Some(78), "{said}");
    for words in [
        ":2: proxy.bind_addr: cannot listen on 127.0.0.1:",
        ":3: proxy.tls: certificate and key: ",
        ":8: upstream.tls.key: cannot read",
    ] {
        assert!(said.contains(&format!("error: config: {file}{words}")), "{words}: {said}");
    }
    assert!(
        said.contains(&format!("{place}:12: cluster.join: no-such-name.invalid has no address")),
        "{said}"
    );

    let twice = at("twice.yaml");
    std::fs::write(&twice, "admin: {bind_addr: '127.0.0.1:8000'}\n").unwrap();
    let output = run(piko(), &["config", "check", &twice]);
    assert_eq!(output.status.code(), Some(78), "two ports are one on any machine");
    assert!(says(&output).contains(":1: admin.bind_addr: 127.0.0.1:8000 is proxy.bind_addr (:8000), too"));

    let unset = at("unset.yaml");
    std::fs::write(&unset, "log:\n  level: info\nadmin: {advertise_addr: \"${PIKO_TEST_UNSET}\"}\n").unwrap();
    let said = says(&run(piko(), &["config", "check", "--expand-env", &unset]));
    assert!(said.contains("line 3: ${PIKO_TEST_UNSET}: PIKO_TEST_UNSET is not set"), "{said}");
}

#[test]
fn what_a_command_runs_with_is_printed_with_its_origin_and_without_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.yaml");
    std::fs::write(&file, "connect:\n  url: http://me:hunter2@gateway:8001\nendpoints: [a/localhost:1]\n")
        .unwrap();
    let mut command = Command::new(piko());
    command
        .args(["config", "print", "--effective", "agent", "--", "--timeout=7s", "--config.path"])
        .arg(&file);
    let output = command.env("PIKO_CONNECT_TOKEN", "s3cret").output().unwrap();
    assert!(output.status.success(), "{}", says(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let place = file.display();
    for line in [
        format!("  url: \"http://***@gateway:8001\"  # {place}:2"),
        "  token: \"********\"  # PIKO_CONNECT_TOKEN".to_owned(),
        "timeout: 7s  # --timeout".to_owned(),
        format!("endpoints: [\"a/localhost:1\"]  # {place}:3"),
        "grace_period: 1m".to_owned(),
    ] {
        assert!(text.lines().any(|told| told == line), "{line}\n{text}");
    }
    assert!(!text.contains("hunter2") && !text.contains("s3cret"), "{text}");
}

#[test]
fn c1_c2_c4_c6_c8_good_files_are_good() {
    let all = ["tests/config/valid", "config", "config/examples", "docs/demo/config"].map(files).concat();
    for file in all.iter().filter(|file| !file.ends_with("prometheus.yaml")) {
        let name = file.display().to_string();
        let output = run(piko(), &["config", "check", "--expand-env", &name]);
        assert!(output.status.success(), "{name}: {}", says(&output));
    }
}

#[test]
fn shipped_files_say_every_key_with_its_default() {
    for kind in ["server", "agent", "forward"] {
        let printed = run(piko(), &["config", "print", kind]);
        let shipped = std::fs::read_to_string(root().join(format!("config/{kind}.yaml"))).unwrap();
        let printed = String::from_utf8(printed.stdout).unwrap();
        assert_eq!(printed, shipped, "run: piko config print {kind} > config/{kind}.yaml");
        let schema = run(piko(), &["config", "schema", kind]);
        let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).unwrap();
        assert_eq!(schema["additionalProperties"], false, "editors should mark unknown keys");
    }
}

#[test]
fn a_number_of_threads_that_is_none_is_named() {
    for command in [&["server"][..], &["agent", "http", "my-endpoint", "1"]] {
        for wrong in ["two", "0"] {
            let output =
                Command::new(piko()).args(command).env("TOKIO_WORKER_THREADS", wrong).output().unwrap();
            let said = says(&output);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("TOKIO_WORKER_THREADS") && said.contains("above 0"), "{said}");
        }
    }
}

#[test]
fn c12_a_file_that_cannot_be_read() {
    let output = run(piko(), &["server", "--config.path", "/does/not/exist.yaml"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(says(&output).contains("/does/not/exist.yaml: No such file"), "{}", says(&output));
    let secret = run(piko(), &["server", "--cluster.secret-file=/does/not/exist"]);
    assert_eq!(secret.status.code(), Some(78), "{}", says(&secret));
    assert!(says(&secret).contains("cluster.secret_file: /does/not/exist"), "{}", says(&secret));
}

#[test]
fn c3_wrong_flags_and_variables_are_named() {
    let flag = run(piko(), &["server", "--proxy.timeout=never"]);
    assert_eq!(flag.status.code(), Some(78));
    assert!(says(&flag).contains("--proxy.timeout: \"never\" is no duration"), "{}", says(&flag));
    let variable = Command::new(piko()).arg("server").env("PIKO_PROXY_TIMEOUT", "never").output().unwrap();
    assert_eq!(variable.status.code(), Some(78));
    assert!(says(&variable).contains("PIKO_PROXY_TIMEOUT"), "{}", says(&variable));
    let unknown = run(piko(), &["server", "--proxy.tiemout=1s"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(says(&unknown).contains("--proxy.timeout"), "{}", says(&unknown));
    let endpoint = run(piko(), &["agent", "--endpoints", "a/localhost:1,a/localhost:2"]);
    assert_eq!(endpoint.status.code(), Some(78));
    assert!(says(&endpoint).contains("two services"), "{}", says(&endpoint));
    let nothing = run(piko(), &["agent"]);
    assert_eq!(nothing.status.code(), Some(78));
    assert!(says(&nothing).contains("no listeners"), "{}", says(&nothing));
}

#[tokio::test]
async fn a_port_in_use_is_named_and_no_other_is_opened() {
    let node = Node::start(piko(), &[], &[]);
    node.ready().await;
    for (flag, key, addr) in [
        ("proxy", "proxy.bind_addr", node.proxy),
        ("upstream", "upstream.bind_addr", node.upstream),
        ("admin", "admin.bind_addr", node.admin),
        ("cluster.gossip", "cluster.gossip.bind_addr", node.gossip),
        ("cluster.peer", "cluster.peer.bind_addr", node.peer),
    ] {
        let any = ["proxy", "upstream", "admin", "cluster.gossip", "cluster.peer"];
        let mut args = vec!["server".to_owned(), format!("--{flag}.bind-addr={addr}")];
        let others = any.iter().filter(|other| **other != flag);
        args.extend(others.map(|other| format!("--{other}.bind-addr=127.0.0.1:0")));
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let output = run(piko(), &args);
        assert_eq!(output.status.code(), Some(78), "{flag}: {}", says(&output));
        let said = says(&output);
        assert!(said.contains(key) && said.contains(&addr.to_string()) && said.contains("in use"), "{said}");
    }
}

/// What a variable holds is one value: a `#` does not cut it, a line break adds no keys.
#[tokio::test]
async fn a_variable_in_a_file_is_one_value_whatever_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.yaml");
    std::fs::write(&file, "connect:\n  token: ${TOKEN}\n  url: ${URL}\nendpoints: [e/127.0.0.1:1]\n")
        .unwrap();
    for token in ["plain", "s3cret #1", "0x1F", "a: b", "@x", "p\"w"] {
        let node = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", node.local_addr().unwrap());
        let args =
            ["agent".into(), format!("--config.path={}", file.display()), "--config.expand-env".into()];
        let agent = Program::start_with(piko(), &args, &[("TOKEN", token.into()), ("URL", url)]);
        let asked = tokio::time::timeout(std::time::Duration::from_secs(20), async {
            let (mut stream, _) = node.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut head).await.unwrap();
            }
            String::from_utf8(head).unwrap()
        });
        let asked = asked.await.unwrap_or_else(|_| panic!("it dials\n{}", agent.log()));
        assert!(asked.contains(&format!("\r\nauthorization: Bearer {token}\r\n")), "{token}: {asked}");
    }
    let lines = dir.path().join("server.yaml");
    std::fs::write(&lines, "cluster:\n  node_id: ${ID}\nadmin:\n  bind_addr: ${ADDR}\n").unwrap();
    let check = |id: &str, addr: &str| {
        let mut command = Command::new(piko());
        command.args(["config", "check", "--expand-env"]).arg(&lines).env("ID", id).env("ADDR", addr);
        says(&command.output().unwrap())
    };
    let said = check("n\nproxy: {bind_addr: ':1'}", ":1");
    assert!(said.contains(":2: cluster.node_id: has at most"), "{said}");
    let said = check("n", "nowhere");
    assert!(said.contains(":4: admin.bind_addr"), "{said}");
}

/// Mistakes that stop nobody, and secrets in the wrong places.
#[test]
fn what_an_owner_ought_to_know_is_said_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "s3cret-token").unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    let agent = |args: &[&str], name: &str| {
        // A name that has no address, so that nothing is ever sent.
        let mut command = Command::new(piko());
        command.args(["agent", "--endpoints=e/127.0.0.1:1", "--connect.timeout=1ms"]).args(args);
        says(&command.env(name, "s3cret-value").output().unwrap())
    };
    let url = "--connect.url=http://user:hunter2@piko.invalid:8001";
    let file = format!("--connect.token-file={}", token.display());
    let by_file = agent(&[url, &file], "PIKO_CONECT_TOKEN");
    for words in [
        "connect.token_file: every user of this machine can read the secret in",
        "chmod o= ",
        "http://***@piko.invalid:8001 is not encrypted",
        "PIKO_CONECT_TOKEN: no such variable, so it changes nothing; did you mean PIKO_CONNECT_TOKEN?",
        "user and password in it are not sent",
    ] {
        assert!(by_file.contains(words), "{words}: {by_file}");
    }
    let typed = agent(&["--connect.url=http://127.0.0.1:1", "--connect.token=s3cret-typed"], "UNRELATED");
    assert!(typed.contains("--connect.token: every user of this machine can read arguments"), "{typed}");
    assert!(!typed.contains("not encrypted"), "on this machine: {typed}");
    let all = by_file + &typed;
    assert!(!all.contains("hunter2") && !all.contains("s3cret"), "{all}");
    let written = dir.path().join("agent.yaml");
    std::fs::write(&written, "connect: {token: s3cret}\n").unwrap();
    let check = || says(&run(piko(), &["config", "check", "--kind=agent", written.to_str().unwrap()]));
    std::fs::set_permissions(&written, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(check().contains("warning: connect.token: every user of this machine can read"), "{}", check());
    std::fs::set_permissions(&written, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(check(), "");
}

/// flag > environment > file > default, and `${VAR:default}`.
#[tokio::test]
async fn c9_what_wins() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("piko.yaml");
    let [by_file, by_env, by_flag] = std::array::from_fn(|_| piko_test_support::free_addr());
    std::fs::write(
        &file,
        "admin:\n  bind_addr: ${PIKO_TEST_ADMIN:nowhere}\nproxy: {bind_addr: '127.0.0.1:0'}\n",
    )
    .unwrap();
    for (env, flag, wins) in
        [(None, None, by_file), (Some(by_env), None, by_env), (Some(by_env), Some(by_flag), by_flag)]
    {
        let mut args: Vec<String> =
            vec!["server".into(), format!("--config.path={}", file.display()), "--config.expand-env".into()];
        for port in ["upstream", "cluster.gossip", "cluster.peer"] {
            args.push(format!("--{port}.bind-addr=127.0.0.1:0"));
        }
        args.extend(flag.map(|addr| format!("--admin.bind-addr={addr}")));
        let mut variables = vec![("PIKO_TEST_ADMIN", by_file.to_string())];
        variables.extend(env.map(|addr| ("PIKO_ADMIN_BIND_ADDR", addr.to_string())));
        let node = Program::start_with(piko(), &args, &variables);
        eventually(&format!("the admin port is {wins}\n{}", node.log()), || async {
            get(wins, "/health", &[]).await.ok()
        })
        .await;
    }
}

/// A file that people bring along from another tool is known for one, and what is made of it is good.
#[test]
fn a_file_of_another_tool_is_named_and_translated() {
    let dir = tempfile::tempdir().unwrap();
    let (frp, ours) = (dir.path().join("frpc.yaml"), dir.path().join("agent.yaml"));
    std::fs::write(&frp, "serverAddr: gateway.example\nproxies: [{name: web, type: http, localPort: 80}]\n")
        .unwrap();
    let checked = run(piko(), &["config", "check", frp.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(78));
    assert!(says(&checked).contains("a configuration of frp; `piko migrate "), "{}", says(&checked));
    let migrated = run(piko(), &["migrate", frp.to_str().unwrap(), "--out", ours.to_str().unwrap()]);
    assert!(
        migrated.status.success() && says(&migrated).contains("made of one of frp"),
        "{}",
        says(&migrated)
    );
    let checked = run(piko(), &["config", "check", "--kind", "agent", ours.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", says(&checked));
}
