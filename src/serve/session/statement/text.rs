//! Statements as the access log tells of them.

use std::sync::Arc;

use super::{SetScope, Statement};
use crate::serve::session::cursor::CursorStatement;
use crate::serve::{RefreshScope, ViewChange};

impl Statement {
    /// The message in which it came, where that was kept; otherwise what it says.
    pub fn text(&self) -> Arc<str> {
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let told = match self {
            Self::Query(query) => return Arc::clone(&query.sql),
            Self::Copy(copy) => return Arc::clone(&copy.query.sql),
            Self::CopyIn(copy) => return Arc::clone(&copy.write.query.sql),
            Self::Write(write) => return Arc::clone(&write.query.sql),
            Self::Cursor(CursorStatement::Declare { query, .. }) => return Arc::clone(&query.sql),
            Self::Cursor(CursorStatement::Fetch { name, silent: false, .. }) => format!("FETCH {}", quoted(name)),
            Self::Cursor(CursorStatement::Fetch { name, .. }) => format!("MOVE {}", quoted(name)),
            Self::Cursor(CursorStatement::Close(Some(name))) => format!("CLOSE {}", quoted(name)),
            Self::Cursor(CursorStatement::Close(None)) => "CLOSE ALL".to_owned(),
            Self::Show(name) => format!("SHOW {}", name.as_deref().unwrap_or("ALL")),
            Self::Set { name, value, scope } => {
                let local = if *scope == SetScope::Local { "LOCAL " } else { "" };
                match value {
                    Some(value) => format!("SET {local}{name} = '{}'", value.replace('\'', "''")),
                    None => format!("SET {local}{name} TO DEFAULT"),
                }
            }
            Self::Reset(name) => format!("RESET {}", name.as_deref().unwrap_or("ALL")),
            Self::Begin { read_only: true } => "BEGIN READ ONLY".to_owned(),
            Self::Begin { read_only: false } => "BEGIN".to_owned(),
            Self::Commit => "COMMIT".to_owned(),
            Self::Rollback => "ROLLBACK".to_owned(),
            Self::Savepoint(tag) | Self::Ignored(tag) => (*tag).to_owned(),
            Self::Refresh(view, RefreshScope::New) => format!("REFRESH MATERIALIZED VIEW {}", quoted(view)),
            Self::Refresh(view, RefreshScope::Full) => {
                format!("REFRESH MATERIALIZED VIEW {} WITH FULL DATA", quoted(view))
            }
            Self::Define(ViewChange::Create { statement, .. }) => statement.clone(),
            Self::Define(ViewChange::Promote { view, version }) => {
                format!("ALTER MATERIALIZED VIEW {} SET (version = {version})", quoted(view))
            }
            Self::Define(ViewChange::Drop { view }) => format!("DROP MATERIALIZED VIEW {}", quoted(view)),
            Self::Reload => "SELECT pg_reload_conf()".to_owned(),
            Self::Deallocate(name) => format!("DEALLOCATE {}", name.as_deref().map_or("ALL".to_owned(), quoted)),
            Self::Discard { all: true } => "DISCARD ALL".to_owned(),
            Self::Discard { all: false } => "DISCARD".to_owned(),
        };
        told.into()
    }

    /// Whether it changes what others see.
    pub fn changes(&self) -> bool {
        matches!(self, Self::Write(_) | Self::CopyIn(_) | Self::Refresh(..) | Self::Define(_) | Self::Reload)
    }
}
