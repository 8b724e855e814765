//! A lambda view: one SELECT over one stream, kept as partial states in batch and delta and merged when read.

use std::time::Duration;

use datafusion::sql::sqlparser::ast::Query;

use super::schedule::RefreshEvery;

#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub name: String,
    pub query: Box<Query>,
    pub refresh_every: RefreshEvery,
    /// What a row is, from the comment above the statement.
    pub comment: Option<String>,
    pub file: String,
    pub line: u64,
}

/// How often a view is refreshed that does not say so itself.
pub const REFRESH_EVERY_DEFAULT: RefreshEvery = RefreshEvery::Interval(Duration::from_secs(3600));
