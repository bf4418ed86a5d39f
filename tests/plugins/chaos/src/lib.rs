//! Does what plugins must not do, when a request asks for it: `x-chaos: loop`. And edits responses.

use piko_plugin::{
    Plugin, Request, Response, ResponseHead, Verdict, kv, log, metrics, plugin, respond, router,
};

struct Chaos {
    config: String,
}

impl Plugin for Chaos {
    fn new(config: &str) -> Result<Self, String> {
        match config {
            "refuse" => Err("this config is refused".into()),
            "trap" => panic!("in init"),
            _ => Ok(Chaos { config: config.to_owned() }),
        }
    }

    fn on_request(&self, request: &Request) -> Verdict {
        let Some(what) = request.header("x-chaos") else { return Verdict::Next };
        let what = String::from_utf8_lossy(&what).into_owned();
        // Gone again unless the call ends well.
        request.set_header("x-edited", b"yes").expect("allowed");
        match what.as_str() {
            "loop" => loop {
                std::hint::black_box(0);
            },
            "trap" => panic!("as asked"),
            "memory" => {
                let mut all = Vec::new();
                loop {
                    all.push(std::hint::black_box(vec![1_u8; 1 << 20]));
                }
            }
            "big-argument" => {
                log::write(log::Level::Info, &"x".repeat(20 << 20));
                Verdict::Next
            }
            "bad-status" => Verdict::Respond(Response { status: 101, headers: Vec::new(), body: Vec::new() }),
            "split" => {
                let headers = vec![("x-a".to_string(), b"b\r\nset-cookie: c=d".to_vec())];
                Verdict::Respond(Response { status: 200, headers, body: Vec::new() })
            }
            "big-body" => {
                Verdict::Respond(Response { status: 200, headers: Vec::new(), body: vec![b'x'; 2 << 20] })
            }
            "config" => respond(200, self.config.clone()),
            "claims" => {
                let claims = request.claims().map(|json| String::from_utf8_lossy(&json).into_owned());
                respond(200, claims.unwrap_or_else(|| "none".into()))
            }
            "edits" => {
                let tries = [
                    request.set_header("host", b"evil"),
                    request.set_header("x-a", b"b\r\nc: d"),
                    request.set_header("transfer-encoding", b"chunked"),
                    request.set_header("x-piko-listener", b"evil"),
                    request.set_endpoint("no endpoint"),
                ];
                respond(200, format!("{tries:?}"))
            }
            "count" => {
                metrics::counter_add("counted", 1);
                respond(200, format!("{:?}", kv::increment("n", 1, None)))
            }
            "live" => {
                respond(200, format!("{:?} {}", router::endpoints("chaos", 10), router::upstreams("chaos")))
            }
            "facts" => respond(
                200,
                format!(
                    "{} {} {} {} {:?}",
                    request.method(),
                    request.path_with_query(),
                    request.authority(),
                    request.scheme(),
                    request.endpoint()
                ),
            ),
            _ => match what.strip_prefix("to ") {
                Some(endpoint) => {
                    request.set_endpoint(endpoint).expect("an endpoint");
                    Verdict::Next
                }
                None => Verdict::Next,
            },
        }
    }

    fn on_response(&self, response: &ResponseHead) {
        let _ = response.set_header("x-seen", response.status().to_string().as_bytes());
        if self.config == "break-response" {
            panic!("as asked");
        }
        let _ = response.remove_header("server");
    }
}

plugin!(Chaos);
