//! The plugins of a node in their order, and the way of a request and its response through them.

use std::sync::Arc;

use http::StatusCode;
use smol_str::SmolStr;

use crate::fields::{Answer, Edit};
use crate::head::{RequestHead, ResponseHead};
use crate::version::{Step, Version};

/// Loaded plugins, in order. Never changes: a reload makes another.
#[derive(Default)]
pub struct Chain {
    pub(crate) plugins: Vec<Arc<Version>>,
}

/// The decision of all plugins on a request.
pub enum Outcome {
    /// It goes on, changed like this.
    Next {
        /// In the order they were made.
        edits: Vec<Edit>,
        /// The endpoint it goes to now. `None` if neither the client nor a plugin named one.
        endpoint: Option<SmolStr>,
    },
    /// A plugin answers it: no upstream sees the request, and no later plugin.
    Answer(Answer),
    /// A plugin failed, and may not be left out.
    Failed,
}

/// The chain a request went through, for its response.
pub struct Taken {
    chain: Arc<Chain>,
    saw: u64,
}

impl Chain {
    /// Is there no plugin? Then heads need not be copied for one.
    pub fn is_empty(&self) -> bool {
        self.plugins.is_empty()
    }

    /// The names of the plugins that see requests for this endpoint, in their order. One before may change which it is.
    pub fn seeing(&self, endpoint: Option<&str>) -> Vec<String> {
        let seeing = self.plugins.iter().filter(|plugin| plugin.matches(endpoint));
        seeing.map(|plugin| plugin.config.name.clone()).collect()
    }

    /// Asks one plugin after the other. Each sees what those before it did.
    pub async fn on_request(self: &Arc<Self>, head: RequestHead) -> (Outcome, Taken) {
        let mut taken = Taken { chain: self.clone(), saw: 0 };
        let mut head = Arc::new(head);
        let mut all = Vec::new();
        for (i, plugin) in self.plugins.iter().enumerate() {
            if !plugin.matches(head.endpoint.as_deref()) {
                continue;
            }
            // Also a plugin without a request hook: its response hook sees the response.
            taken.saw |= 1 << i;
            if !plugin.hooks().request {
                continue;
            }
            match plugin.on_request(&head).await {
                Step::Next { edits, endpoint } => {
                    let last = i + 1 == self.plugins.len();
                    let head = Arc::make_mut(&mut head);
                    // Nobody reads what the last one edited: the fields need not be copied for it.
                    if !edits.is_empty() && !last {
                        let headers = Arc::make_mut(&mut head.headers);
                        edits.iter().for_each(|edit| edit.apply(headers));
                    }
                    head.endpoint = endpoint;
                    all.extend(edits);
                }
                Step::Skip => {}
                Step::Answer(answer) => return (Outcome::Answer(answer), taken),
                Step::Deny => return (Outcome::Failed, taken),
            }
        }
        (Outcome::Next { edits: all, endpoint: head.endpoint.clone() }, taken)
    }
}

impl Taken {
    /// Does any plugin that saw the request want its response?
    pub fn wants_response(&self) -> bool {
        self.chain.plugins.iter().enumerate().any(|(i, plugin)| self.sees_response(i, plugin))
    }

    fn sees_response(&self, i: usize, plugin: &Version) -> bool {
        self.saw & (1 << i) != 0 && plugin.hooks().response
    }

    /// Asks the same plugins in the opposite order. Returns `None` if one failed and may not be left out.
    pub async fn on_response(&self, mut head: ResponseHead) -> Option<(StatusCode, Vec<Edit>)> {
        let mut all = Vec::new();
        for (i, plugin) in self.chain.plugins.iter().enumerate().rev() {
            if !self.sees_response(i, plugin) {
                continue;
            }
            let Some(subject) = plugin.on_response(&head).await.ok()? else { continue };
            head.status = subject.status;
            let headers = Arc::make_mut(&mut head.headers);
            subject.fields.edits.iter().for_each(|edit| edit.apply(headers));
            all.extend(subject.fields.edits);
        }
        Some((head.status, all))
    }
}
