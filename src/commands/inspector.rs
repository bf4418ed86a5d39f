//! Asks the inspector of an agent on this machine: what `piko requests` and `piko replay` share.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::{Arg, ArgMatches};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::commands::admin::Unanswered;

/// The whole answer. Longer than the inspector waits for news.
const WITHIN: Duration = Duration::from_secs(40);
/// Largest answer read, bytes: the inspector keeps less.
const MAX_ANSWER: usize = 256 << 20;

pub(super) fn url_arg() -> Arg {
    let arg = Arg::new("url").long("url").value_name("URL").default_value("http://127.0.0.1:4040");
    arg.help("The inspector of the agent, as the agent says when it starts")
}

/// An inspector.
pub(super) struct Inspector {
    url: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Inspector {
    pub(super) fn new(matches: &ArgMatches) -> Inspector {
        let url = matches.get_one::<String>("url").cloned().unwrap_or_default();
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        Inspector { url: url.trim_end_matches('/').to_owned(), client }
    }

    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(Method::GET, path, None).await
    }

    /// Changes something, with the token that the inspector gives to this machine's programs.
    pub(super) async fn post(&self, path: &str) -> anyhow::Result<Value> {
        let token = self.get("/api/token").await?;
        let token = token["token"].as_str().context("the answer has no token; is this an inspector?")?;
        self.ask(Method::POST, path, Some(token)).await
    }

    async fn ask(&self, method: Method, path: &str, token: Option<&str>) -> anyhow::Result<Value> {
        let url = &self.url;
        let mut request = Request::builder().method(method).uri(format!("{url}{path}"));
        if let Some(token) = token {
            request = request.header("x-piko-inspect-token", token);
        }
        let request = request.body(Full::default());
        let request =
            request.with_context(|| format!("{url:?} is no URL; write it like http://127.0.0.1:4040"))?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(Unanswered::Unreachable)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|e| anyhow::anyhow!("read answer: {e}"))?.to_bytes();
            let answer: Value =
                serde_json::from_slice(&body).context("answer is no JSON; is this an inspector?")?;
            match (status.is_success(), answer["error"].as_str()) {
                (true, _) => Ok(answer),
                (false, Some(words)) => bail!("{words}"),
                (false, None) => Err(Unanswered::Status(status, String::new()).into()),
            }
        };
        match tokio::time::timeout(WITHIN, exchange).await {
            Ok(done) => done,
            Err(_) => Err(Unanswered::Late.into()),
        }
    }
}
