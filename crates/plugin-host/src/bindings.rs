//! The contract as Rust, generated from `wit/plugin.wit`.
#![allow(missing_docs, unreachable_pub)]

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "imports",
    with: {
        "piko:plugin/http.request": crate::handles::RequestRes,
        "piko:plugin/http.response-head": crate::handles::ResponseRes,
    },
});
