//! A plugin for Piko: says hello to requests for /hello, and lets all others pass with a header.

wit_bindgen::generate!({ path: "wit", world: "request-plugin" });

use exports::piko::plugin::{lifecycle, request_hook};
use piko::plugin::http::Request;
use piko::plugin::types::{Response, Verdict};

struct Plugin;

impl lifecycle::Guest for Plugin {
    fn init(_config: String) -> Result<(), String> {
        Ok(())
    }
}

impl request_hook::Guest for Plugin {
    fn on_request(request: &Request) -> Verdict {
        if request.path_with_query() == "/hello" {
            let body = b"hello from x\n".to_vec();
            return Verdict::Respond(Response { status: 200, headers: Vec::new(), body });
        }
        match request.set_header("x-plugin", b"x") {
            Ok(()) => Verdict::Next,
            Err(e) => panic!("x-plugin: {e:?}"),
        }
    }
}

export!(Plugin);
