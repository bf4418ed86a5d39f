//! Plugins that misbehave, files that are none, and versions that come and go under load.

use std::time::{Duration, Instant};

use piko_test_support::client::get;
use piko_test_support::eventually;
use piko_test_support::program::{Program, run};
use serde_json::{Value, json};

use crate::piko;
use crate::plugins::{component, setup, write};

#[tokio::test]
async fn whatever_a_plugin_does_its_request_is_refused_and_others_live() {
    let s =
        setup(json!([{ "name": "x", "path": component("chaos"), "endpoints": ["a"], "timeout": "50ms" }]))
            .await;
    let causes = [
        ("loop", "deadline"),
        ("trap", "trap"),
        ("memory", "memory"),
        ("big-argument", "memory"),
        ("split", "invalid"),
        ("bad-status", "invalid"),
        ("big-body", "invalid"),
    ];
    for (n, (what, cause)) in causes.into_iter().enumerate() {
        let answer = s.get("/", &[("x-piko-endpoint", "a"), ("x-chaos", what)]).await;
        assert_eq!((answer.status, answer.header("x-piko-error")), (503, "plugin_failed"), "{what}");
        assert_eq!(answer.header("retry-after"), "1", "{what}");
        let errors = &s.plugin().await["errors"];
        assert!(errors[cause].as_u64() >= Some(1), "{what} is counted as {errors}");
        let sum: u64 = errors.as_object().unwrap().values().filter_map(Value::as_u64).sum();
        assert_eq!(sum, n as u64 + 1, "{errors}");
        // Between failures it works, so the breaker stays closed.
        assert_eq!(s.get("/", &[("x-piko-endpoint", "a")]).await.status, 200, "after {what}");
        assert_eq!(s.get("/", &[("x-piko-endpoint", "b")]).await.status, 200, "{what} elsewhere");
    }
    assert_eq!(s.service.served(), 2 * causes.len(), "no refused request reached the service");
    let edits = s.get("/", &[("x-piko-endpoint", "a"), ("x-chaos", "edits")]).await.text();
    assert_eq!(edits.matches("Err(").count(), 5, "{edits}");
}

#[tokio::test]
async fn a_response_that_breaks_its_plugin_is_refused_and_not_asked_for_again() {
    let entry = |on_error| json!({ "name": "x", "path": component("chaos"), "config": "break-response", "on_error": on_error });
    let s = setup(json!([entry("deny")])).await;
    let broken = s.get("/", &[("x-piko-endpoint", "a")]).await;
    assert_eq!((broken.status, broken.header("x-piko-error")), (503, "plugin_failed"));
    assert_eq!(s.service.served(), 1, "the service did its work once");
    let s = setup(json!([entry("allow")])).await;
    let whole = s.get("/", &[("x-piko-endpoint", "a")]).await;
    assert_eq!((whole.status, whole.header("x-seen")), (200, ""), "edits are discarded");
}

#[tokio::test]
async fn allow_goes_on_without_the_plugin_and_without_its_edits() {
    let entry = json!({ "name": "x", "path": component("chaos"), "on_error": "allow" });
    let s = setup(json!([entry])).await;
    let fine = s.get("/", &[("x-piko-endpoint", "a"), ("x-chaos", "nothing")]).await;
    assert!(fine.text().contains("x-edited"), "{}", fine.text());
    let broken = s.get("/", &[("x-piko-endpoint", "a"), ("x-chaos", "trap")]).await;
    assert_eq!(broken.status, 200);
    assert!(!broken.text().contains("x-edited"), "{}", broken.text());
}

#[tokio::test]
async fn a_plugin_that_keeps_failing_is_left_alone() {
    let s = setup(json!([{ "name": "x", "path": component("chaos") }])).await;
    for _ in 0..8 {
        assert_eq!(s.get("/", &[("x-piko-endpoint", "a"), ("x-chaos", "trap")]).await.status, 503);
    }
    let status = s.plugin().await;
    assert_eq!((&status["state"], &status["errors"]["trap"]), (&json!("failing"), &json!(5)), "{status}");
    // It comes back by itself.
    s.node.routes("a", 200).await;
    assert_eq!(s.plugin().await["state"], "active");
}

#[tokio::test]
async fn a_thousand_requests_share_eight_instances() {
    let s = setup(json!([{ "name": "x", "path": component("chaos"), "endpoints": ["a"], "max_instances": 8, "timeout": "5s" }])).await;
    let asked = (0..1000).map(|_| get(s.node.proxy, "/", &[("x-piko-endpoint", "a"), ("x-chaos", "count")]));
    let answers = futures_util::future::join_all(asked).await;
    let good =
        answers.iter().filter(|answer| answer.as_ref().is_ok_and(|answer| answer.status == 200)).count();
    assert_eq!(good, 1000);
    let instances = s.node.metric("piko_plugin_instances").await;
    assert!((1.0..=8.0).contains(&instances), "{instances}");
}

#[tokio::test]
async fn endless_loops_hold_up_nobody_else() {
    let s =
        setup(json!([{ "name": "x", "path": component("chaos"), "endpoints": ["a"], "timeout": "200ms" }]))
            .await;
    let looping = futures_util::future::join_all(
        (0..4).map(|_| get(s.node.proxy, "/", &[("x-piko-endpoint", "a"), ("x-chaos", "loop")])),
    );
    let others = async {
        let mut good = 0;
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(150) {
            good += usize::from(s.get("/", &[("x-piko-endpoint", "b")]).await.status == 200);
        }
        good
    };
    let (looped, good) = tokio::join!(looping, others);
    assert!(looped.iter().all(|answer| answer.as_ref().is_ok_and(|answer| answer.status == 503)));
    assert!(good >= 1, "requests elsewhere are served while plugins loop");
}

#[tokio::test]
async fn a_changed_file_is_taken_and_a_bad_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("plugin.wasm");
    std::fs::copy(component("chaos"), &file).unwrap();
    let s = setup(json!([{ "name": "x", "path": &file }])).await;
    let chaos = [("x-piko-endpoint", "a"), ("x-chaos", "config")];
    assert_eq!(s.get("/", &chaos).await.text(), "");
    let first = s.plugin().await["digest"].clone();

    std::fs::write(&file, b"not a component").unwrap();
    let refused = eventually("the bad file is refused", || async {
        let status = s.plugin().await;
        (status["state"] == "stale").then_some(status)
    })
    .await;
    assert_eq!((&refused["digest"], &refused["version"]), (&first, &json!(1)), "the old one stays");
    assert!(refused["refused"].as_str().unwrap().contains("no WebAssembly component"), "{refused}");
    assert_eq!(s.get("/", &chaos).await.status, 200);

    // Another plugin altogether, by rename as installers do. Its config is the one of before: none.
    std::fs::copy(component("path-router"), dir.path().join("new")).unwrap();
    std::fs::rename(dir.path().join("new"), &file).unwrap();
    eventually("its init refuses the config", || async {
        s.plugin().await["refused"]
            .as_str()
            .unwrap_or_default()
            .contains("missing field `routes`")
            .then_some(())
    })
    .await;

    // The configuration with it: SIGHUP takes both.
    let routes = json!({ "routes": [{ "path": "/", "endpoint": "b" }] });
    write(&s.dir, &json!([{ "name": "x", "path": &file, "config": routes }]));
    s.node.program.signal("HUP");
    eventually("the new version runs", || async { (s.plugin().await["version"] == 2).then_some(()) }).await;
    assert_eq!(s.get("/", &[("host", "127.0.0.1")]).await.status, 200);

    // A wrong list changes nothing.
    write(&s.dir, &json!([{ "name": "x", "path": "/nowhere.wasm" }]));
    s.node.program.signal("HUP");
    eventually("it is refused", || async { s.node.program.log().contains("nothing changed").then_some(()) })
        .await;
    assert_eq!(s.plugin().await["version"], 2);
    assert_eq!(s.get("/", &[("host", "127.0.0.1")]).await.status, 200);
}

#[tokio::test]
async fn a_node_without_plugins_takes_its_first_and_a_bad_one_does_no_harm() {
    let s = setup(json!([])).await;
    assert_eq!(s.get("/", &[("x-piko-endpoint", "a")]).await.status, 200);
    for n in 1..=2 {
        write(&s.dir, &json!([{ "name": "x", "path": "/nowhere.wasm" }]));
        s.node.program.signal("HUP");
        eventually("it is refused", || async {
            (s.node.program.log().matches("nothing changed").count() == n).then_some(())
        })
        .await;
    }
    write(&s.dir, &json!([{ "name": "x", "path": component("chaos"), "config": "first" }]));
    s.node.program.signal("HUP");
    let chaos = [("x-piko-endpoint", "a"), ("x-chaos", "config")];
    eventually("the plugin runs", || async { (s.get("/", &chaos).await.text() == "first").then_some(()) })
        .await;
    write(&s.dir, &json!([]));
    s.node.program.signal("HUP");
    eventually("and is gone again", || async { (s.get("/", &chaos).await.text() != "first").then_some(()) })
        .await;
}

#[tokio::test]
async fn reloads_under_load_lose_no_request() {
    let s = setup(json!([{ "name": "x", "path": component("chaos"), "config": "0" }])).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let load = async {
        let (mut good, mut bad) = (0, 0);
        while !stop.is_cancelled() {
            let answer = get(s.node.proxy, "/", &[("x-piko-endpoint", "a")]).await;
            let fine = answer.is_ok_and(|answer| answer.status == 200);
            *if fine { &mut good } else { &mut bad } += 1;
        }
        (good, bad)
    };
    let reloads = async {
        for n in 2..=20 {
            write(&s.dir, &json!([{ "name": "x", "path": component("chaos"), "config": n.to_string() }]));
            s.node.program.signal("HUP");
            eventually("it is reloaded", || async { (s.plugin().await["version"] == n).then_some(()) }).await;
        }
        stop.cancel();
    };
    let ((good, bad), ()) = tokio::join!(load, reloads);
    assert!(good > 0 && bad == 0, "{good} good, {bad} bad");
}

#[test]
fn what_is_no_plugin_is_named_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let wat = |name: &str, text: &str| file(name, &wat::parse_str(text).unwrap());
    let wasi = r#"(component (import "wasi:cli/environment@0.2.0" (instance)))"#;
    let newer = r#"(component (import "piko:plugin/kv@0.2.0" (instance)))"#;
    let other = r#"(component (import "acme:host/api" (instance)))"#;
    let misfit = r#"(component (import "piko:plugin/kv@0.1.0" (instance (export "get" (func)))))"#;
    let chaos = |more: Value| {
        let mut entry = json!({ "name": "x", "path": component("chaos") });
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        entry
    };
    let at = |path: std::path::PathBuf| json!({ "name": "x", "path": path });
    let cases = [
        (at("/nowhere.wasm".into()), "/nowhere.wasm cannot be read: No such file"),
        (at(file("text", b"hello")), "is no WebAssembly component"),
        (at(wat("core", "(module)")), "is a core WebAssembly module, not a component"),
        (at(wat("empty", "(component)")), "exports no piko:plugin/lifecycle@0.1.0; it exports nothing"),
        (
            at(wat("wasi", wasi)),
            "imports wasi:cli/environment@0.2.0, which no plugin gets; plugins have no WASI",
        ),
        (at(wat("newer", newer)), "this node speaks piko:plugin/…@0.1.0"),
        (at(wat("other", other)), "imports acme:host/api, which no plugin gets; they get piko:plugin/{types"),
        (at(wat("misfit", misfit)), "exports no piko:plugin/lifecycle"),
        (chaos(json!({ "sha256": "0".repeat(64) })), "but the configuration wants 000000"),
        (chaos(json!({ "config": "refuse" })), "refuses its config: this config is refused"),
        (chaos(json!({ "config": "trap" })), "fails in init: wasm trap"),
        (chaos(json!({ "memory": "64KiB" })), "asked for more memory than 65536 bytes"),
        (
            chaos(json!({ "config": { "a": 1 }, "path": component("api-key") })),
            "refuses its config: unknown field `a`",
        ),
        (chaos(json!({ "timeout": "0s" })), "plugins[0].timeout: must be more than 0"),
        (chaos(json!({ "name": "a b" })), "plugins[0].name: has 1 to 64"),
        (chaos(json!({ "on_error": "maybe" })), "unknown variant `maybe`"),
        (chaos(json!({ "endpoint": "a" })), "unknown key; did you mean `endpoints`?"),
    ];
    for (entry, words) in cases {
        let config = write(&dir, &json!([entry]));
        let output = run(piko(), &["server", &config, "--proxy.bind-addr=127.0.0.1:0"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{entry}: {said}");
        assert!(said.contains(words), "{entry}: wanted {words:?}, got: {said}");
    }
}

#[tokio::test]
async fn compiled_plugins_are_kept_and_damage_is_noticed() {
    let s = setup(json!([{ "name": "x", "path": component("chaos") }])).await;
    let cache = s.dir.path().join("cache");
    let kept: Vec<_> = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    std::fs::write(&kept[0], b"damaged").unwrap();
    let config = format!("--config.path={}", s.dir.path().join("piko.yaml").display());
    let any = ["proxy", "upstream", "admin", "cluster.gossip", "cluster.peer"]
        .map(|p| format!("--{p}.bind-addr=127.0.0.1:0"));
    let args = [vec!["server".into(), config], any.to_vec()].concat();
    let again = Program::start(piko(), &args);
    eventually("it starts all the same", || async { again.log().contains("node started").then_some(()) })
        .await;
    assert!(std::fs::metadata(&kept[0]).unwrap().len() > 1000, "compiled anew");
}

#[test]
fn authors_can_check_try_and_measure_without_a_node() {
    let says = |args: &[&str], code: i32| {
        let output = run(piko(), &[&["plugin"], args].concat());
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        text
    };
    let (keys, routes) = (component("api-key"), component("path-router"));
    let (keys, routes) = (keys.to_str().unwrap(), routes.to_str().unwrap());
    let checked = says(&["check", keys], 0);
    assert!(checked.contains("fits piko:plugin@0.1.0") && checked.contains("on-request"), "{checked}");
    assert!(says(&["check", "Cargo.toml"], 78).contains("is no WebAssembly component"));
    let config = "{routes: [{path: /a, endpoint: x, only_if_live: true}]}";
    let run = ["run", routes, "--config", config, "--request", "GET /a/b", "--live", "x"];
    assert!(says(&run, 0).contains("endpoint: x (set by the plugin)"));
    let answered =
        says(&["run", keys, "--config", "{keys: [{key: k, tenant: t}]}", "-H", "x-api-key: wrong"], 0);
    assert!(answered.contains("verdict: respond 401") && answered.contains("unknown API key"), "{answered}");
    let refused = says(&["run", keys], 1);
    assert_eq!(refused.matches("missing field `keys`").count(), 1, "said once: {refused}");
    assert!(says(&["bench", routes, "--config", config], 0).contains("pooled"));
}

#[test]
fn new_makes_a_folder_and_overwrites_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let new = |args: &[&str]| {
        let mut command = std::process::Command::new(piko());
        command.args(["plugin", "new"]).args(args).current_dir(&dir).output().unwrap()
    };
    for lang in ["rust", "c", "js", "python"] {
        let made = new(&[&format!("my-{lang}"), "--lang", lang]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let folder = dir.path().join(format!("my-{lang}"));
        assert!(folder.join("wit/plugin.wit").exists() && folder.join("README.md").exists());
        let readme = std::fs::read_to_string(folder.join("README.md")).unwrap();
        assert!(readme.contains(&format!("my_{lang}.wasm")) && !readme.contains("{{"), "{readme}");
    }
    let again = new(&["my-rust"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("there already; nothing was changed"));
    assert!(!new(&["../x"]).status.success() && !new(&["My_Plugin"]).status.success());
}
