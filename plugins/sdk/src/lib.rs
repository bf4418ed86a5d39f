//! Makes a Rust plugin for Piko ten lines.
//!
//! ```ignore
//! use piko_plugin::{Plugin, Request, Verdict, plugin, respond};
//!
//! struct Teapot { path: String }
//!
//! impl Plugin for Teapot {
//!     fn new(text: &str) -> Result<Self, String> {
//!         Ok(Teapot { path: text.to_owned() })
//!     }
//!     fn on_request(&self, request: &Request) -> Verdict {
//!         if request.path_with_query() == self.path { respond(418, "short and stout\n") } else { Verdict::Next }
//!     }
//! }
//!
//! plugin!(Teapot);
//! ```
//!
//! Features say which hooks a plugin exports: `request` (the default), `response`, or both. The contract, with
//! all that a plugin may call, is `wit/plugin.wit`; its interfaces are modules here: [`log`], [`clock`],
//! [`metrics`], [`kv`], [`router`].

#[cfg(all(feature = "request", not(feature = "response")))]
wit_bindgen::generate!({
    path: "../../wit", world: "request-plugin", pub_export_macro: true, default_bindings_module: "piko_plugin",
});
#[cfg(all(feature = "response", not(feature = "request")))]
wit_bindgen::generate!({
    path: "../../wit", world: "response-plugin", pub_export_macro: true, default_bindings_module: "piko_plugin",
});
#[cfg(all(feature = "request", feature = "response"))]
wit_bindgen::generate!({
    path: "../../wit", world: "full-plugin", pub_export_macro: true, default_bindings_module: "piko_plugin",
});

pub use piko::plugin::http::{Request, ResponseHead};
pub use piko::plugin::types::{EditError, Response, Verdict};
pub use piko::plugin::{clock, kv, log, metrics, router};

/// A plugin. One value lives in each instance.
pub trait Plugin: Sized + 'static {
    /// Takes the text of `config`. An error refuses the plugin and says why.
    fn new(config: &str) -> Result<Self, String>;

    /// Decides about a request. Called where the feature `request` is on.
    fn on_request(&self, _request: &Request) -> Verdict {
        Verdict::Next
    }

    /// Sees a response. Called where the feature `response` is on.
    fn on_response(&self, _response: &ResponseHead) {}
}

/// Reads `config` as JSON, which is what YAML mappings arrive as. The error names the key.
pub fn config<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    let text = if text.is_empty() { "{}" } else { text };
    serde_json::from_str(text).map_err(|e| e.to_string())
}

/// An answer in plain text.
pub fn respond(status: u16, body: impl Into<String>) -> Verdict {
    respond_with(status, &[], body)
}

/// An answer in plain text with more headers.
pub fn respond_with(status: u16, headers: &[(&str, &str)], body: impl Into<String>) -> Verdict {
    let header = |(name, value): &(&str, &str)| (name.to_string(), value.as_bytes().to_vec());
    let mut headers: Vec<_> = headers.iter().map(header).collect();
    headers.push(header(&("content-type", "text/plain; charset=utf-8")));
    Verdict::Respond(Response { status, headers, body: body.into().into_bytes() })
}

/// Exports a [`Plugin`] as a component.
#[macro_export]
macro_rules! plugin {
    ($plugin:ty) => {
        $crate::__plugin!($plugin);
        $crate::export!(__Exports with_types_in $crate);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __plugin {
    ($plugin:ty) => {
        struct __Exports;

        static __PLUGIN: ::std::sync::OnceLock<$plugin> = ::std::sync::OnceLock::new();

        impl $crate::exports::piko::plugin::lifecycle::Guest for __Exports {
            fn init(config: String) -> Result<(), String> {
                let plugin = <$plugin as $crate::Plugin>::new(&config)?;
                __PLUGIN.set(plugin).map_err(|_| String::from("init was called twice"))
            }
        }

        $crate::__hooks!($plugin);
    };
}

#[cfg(feature = "request")]
#[doc(hidden)]
#[macro_export]
macro_rules! __request_hook {
    ($plugin:ty) => {
        impl $crate::exports::piko::plugin::request_hook::Guest for __Exports {
            fn on_request(request: &$crate::Request) -> $crate::Verdict {
                let plugin = __PLUGIN.get().expect("the host calls init first");
                $crate::Plugin::on_request(plugin, request)
            }
        }
    };
}

#[cfg(feature = "response")]
#[doc(hidden)]
#[macro_export]
macro_rules! __response_hook {
    ($plugin:ty) => {
        impl $crate::exports::piko::plugin::response_hook::Guest for __Exports {
            fn on_response(response: &$crate::ResponseHead) {
                let plugin = __PLUGIN.get().expect("the host calls init first");
                $crate::Plugin::on_response(plugin, response)
            }
        }
    };
}

#[cfg(all(feature = "request", not(feature = "response")))]
#[doc(hidden)]
#[macro_export]
macro_rules! __hooks {
    ($plugin:ty) => {
        $crate::__request_hook!($plugin);
    };
}

#[cfg(all(feature = "response", not(feature = "request")))]
#[doc(hidden)]
#[macro_export]
macro_rules! __hooks {
    ($plugin:ty) => {
        $crate::__response_hook!($plugin);
    };
}

#[cfg(all(feature = "request", feature = "response"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __hooks {
    ($plugin:ty) => {
        $crate::__request_hook!($plugin);
        $crate::__response_hook!($plugin);
    };
}
