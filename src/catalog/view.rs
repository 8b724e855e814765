//! Views: those that are kept, as partial states in batch and delta, and those that are only a name for a query.

use std::time::Duration;

use datafusion::sql::sqlparser::ast::Query;

use super::schedule::RefreshEvery;

/// A lambda view: one SELECT over one stream, kept as partial states in batch and delta and merged when read.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub name: String,
    pub query: Box<Query>,
    pub refresh_every: RefreshEvery,
    /// Whether money is paid by it, so that all its numbers must be exact.
    pub billable: bool,
    /// What a row is, from the comment above the statement.
    pub comment: Option<String>,
    /// The statement as it was written, with the comment above it.
    pub statement: String,
    pub file: String,
    pub line: u64,
}

impl View {
    /// Two views count the same when their queries are the same but for spaces, letter case of keywords and comments.
    pub fn same_query(&self, other: &Self) -> bool {
        self.query.to_string() == other.query.to_string()
    }
}

/// An ordinary view: a query over other views, streams and system tables, computed whenever it is read.
#[derive(Debug, Clone, PartialEq)]
pub struct OrdinaryView {
    /// As [`super::qualified`].
    pub name: String,
    pub query: Box<Query>,
    /// Whether it must have no rows after each change of a table that it reads.
    pub enforced: bool,
    /// What a row is, from the comment above the statement.
    pub comment: Option<String>,
    pub file: String,
    pub line: u64,
}

/// How often a view is refreshed that does not say so itself.
pub const REFRESH_EVERY_DEFAULT: RefreshEvery = RefreshEvery::Interval(Duration::from_secs(3600));
