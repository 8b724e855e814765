//! What exists: streams, reference tables, views, functions, endpoints of HTTP and roles, as declared by the files in `sql/`.
//!
//! Nothing here touches data. A [`Catalog`] is loaded once, checked as a whole, and handed around read-only.

use std::collections::BTreeMap;
use std::sync::Arc;

use self::endpoint::Endpoint;
use self::function::Functions;
use self::role::Roles;
use self::stream::Stream;
use self::table::Table;
use self::view::{OrdinaryView, View};

pub mod closed;
pub mod ddl;
pub mod endpoint;
pub mod function;
pub mod loader;
pub mod role;
pub mod schedule;
pub mod stream;
pub mod table;
pub mod verifier;
pub mod version;
pub mod view;

/// The schema of names that are written without one.
pub const DEFAULT_SCHEMA: &str = "public";

/// Schemas in which everything is made by the engine.
pub const RESERVED_SCHEMAS: [&str; 7] =
    ["batch", "speed", "raw", "quarantine", "system", "pg_catalog", "information_schema"];

/// The one name of a table or ordinary view: without its schema when that is [`DEFAULT_SCHEMA`].
pub fn qualified(schema: &str, table: &str) -> String {
    if schema == DEFAULT_SCHEMA { table.to_owned() } else { format!("{schema}.{table}") }
}

/// Schema and table of a [`qualified`] name.
pub fn schema_and_table(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or((DEFAULT_SCHEMA, name))
}

/// Everything declared, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalog {
    pub streams: BTreeMap<String, Arc<Stream>>,
    pub tables: BTreeMap<String, Arc<Table>>,
    pub views: BTreeMap<String, Arc<View>>,
    /// Names of tables and views are told apart: readers find all of them in one schema.
    pub ordinary: BTreeMap<String, Arc<OrdinaryView>>,
    pub functions: Functions,
    /// By route.
    pub endpoints: BTreeMap<String, Arc<Endpoint>>,
    pub roles: Arc<Roles>,
}

/// Where in which file something is wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub file: String,
    /// 1-based; 0 when the fault concerns the whole file.
    pub line: u64,
    pub column: u64,
    pub reason: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // One line a fault, for people and for editors.
        let reason = self.reason.trim().replace('\n', "; ");
        match self.line {
            0 => write!(f, "{}: {reason}", self.file),
            line => write!(f, "{}:{line}:{}: {reason}", self.file, self.column),
        }
    }
}

impl std::error::Error for Fault {}
