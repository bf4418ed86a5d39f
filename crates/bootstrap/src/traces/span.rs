//! What is told of one step of a request: kept while it goes on, handed over when it has ended.

use std::time::SystemTime;

use super::context::Context;

/// A span that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Who it is.
    pub context: Context,
    /// The span it is a part of.
    pub parent: Option<Parent>,
    /// Which side of the step this is.
    pub kind: Kind,
    /// What is done: a method, or `tunnel`.
    pub name: String,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// By the names of OpenTelemetry's semantic conventions, where they have one.
    pub attributes: Vec<Attribute>,
    /// What happened in between.
    pub events: Vec<Event>,
    /// The code of the failure it ended with (docs/errors.md).
    pub failure: Option<&'static str>,
}

/// The span that another one is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// Its id.
    pub span: u64,
    /// Another program's.
    pub remote: bool,
}

/// Which side of a step a span tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It was asked.
    Server,
    /// It asks.
    Client,
}

/// A fact about a span.
pub type Attribute = (&'static str, Value);

/// The value of a fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A word.
    Text(String),
    /// A number.
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Value {
        Value::Number(number.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Value {
        Value::Number(number.try_into().unwrap_or(i64::MAX))
    }
}

/// Something that happened in a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub name: &'static str,
    /// When.
    pub at: SystemTime,
    /// What else is known of it.
    pub attributes: Vec<Attribute>,
}
