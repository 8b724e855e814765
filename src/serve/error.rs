//! What a client is told when its statement fails: a SQLSTATE, a message and, where known, the position.

use std::fmt;

use datafusion::arrow::error::ArrowError;
use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::Location;

use super::{DefineError, RefreshError, ServeError};
use crate::merge::catalog::Restoring;
use crate::runtime::chain;
use crate::tables::WriteError;
use viewledger_udfs::error::Raised;

/// A code of PostgreSQL's appendix A.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SqlState(pub &'static str);

impl SqlState {
    pub const PROTOCOL_VIOLATION: Self = Self("08P01");
    pub const FEATURE_NOT_SUPPORTED: Self = Self("0A000");
    pub const NUMERIC_OUT_OF_RANGE: Self = Self("22003");
    pub const INVALID_DATETIME: Self = Self("22007");
    pub const DIVISION_BY_ZERO: Self = Self("22012");
    pub const INVALID_PARAMETER: Self = Self("22023");
    pub const CHARACTER_NOT_IN_REPERTOIRE: Self = Self("22021");
    pub const INVALID_TEXT: Self = Self("22P02");
    pub const INVALID_BINARY: Self = Self("22P03");
    pub const BAD_COPY_FILE: Self = Self("22P04");
    pub const NOT_NULL_VIOLATION: Self = Self("23502");
    pub const UNIQUE_VIOLATION: Self = Self("23505");
    pub const CHECK_VIOLATION: Self = Self("23514");
    pub const CARDINALITY: Self = Self("21000");
    pub const READ_ONLY_TRANSACTION: Self = Self("25006");
    pub const RAISED: Self = Self("P0001");
    pub const WRONG_OBJECT_TYPE: Self = Self("42809");
    pub const NO_SUCH_CONSTRAINT: Self = Self("42P10");
    pub const SERIALIZATION_FAILURE: Self = Self("40001");
    pub const IN_FAILED_TRANSACTION: Self = Self("25P02");
    pub const INVALID_AUTHORIZATION: Self = Self("28000");
    pub const INVALID_PASSWORD: Self = Self("28P01");
    pub const UNKNOWN_STATEMENT: Self = Self("26000");
    pub const UNKNOWN_CATALOG: Self = Self("3D000");
    pub const UNKNOWN_SCHEMA: Self = Self("3F000");
    pub const INSUFFICIENT_PRIVILEGE: Self = Self("42501");
    pub const SYNTAX: Self = Self("42601");
    pub const DUPLICATE_COLUMN: Self = Self("42701");
    pub const AMBIGUOUS_COLUMN: Self = Self("42702");
    pub const UNDEFINED_COLUMN: Self = Self("42703");
    pub const UNDEFINED_SETTING: Self = Self("42704");
    pub const GROUPING: Self = Self("42803");
    pub const DATATYPE_MISMATCH: Self = Self("42804");
    pub const UNDEFINED_FUNCTION: Self = Self("42883");
    pub const DUPLICATE_TABLE: Self = Self("42P07");
    pub const INVALID_DEFINITION: Self = Self("42P17");
    pub const DEPENDENT: Self = Self("2BP01");
    pub const UNDEFINED_TABLE: Self = Self("42P01");
    pub const INSUFFICIENT_RESOURCES: Self = Self("53000");
    pub const DISK_FULL: Self = Self("53100");
    pub const OUT_OF_MEMORY: Self = Self("53200");
    pub const TOO_MANY_CONNECTIONS: Self = Self("53300");
    pub const PROGRAM_LIMIT: Self = Self("54000");
    pub const TOO_COMPLEX: Self = Self("54001");
    pub const PREREQUISITE: Self = Self("55000");
    pub const CANCELLED: Self = Self("57014");
    pub const SHUTDOWN: Self = Self("57P01");
    pub const CANNOT_CONNECT_NOW: Self = Self("57P03");
    pub const IO: Self = Self("58030");
    pub const INTERNAL: Self = Self("XX000");
}

/// One failed statement.
#[derive(Debug, Clone)]
pub struct QueryError {
    pub state: SqlState,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// Character in the text of the message, from 1.
    pub position: Option<usize>,
    /// Where in the data that a client sent.
    pub context: Option<Box<str>>,
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for QueryError {}

impl QueryError {
    pub fn new(state: SqlState, message: impl Into<String>) -> Self {
        Self { state, message: message.into(), detail: None, hint: None, position: None, context: None }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.context = Some(context.into().into_boxed_str());
        self
    }

    /// A statement that writes, or reaches outside the catalog.
    pub fn refused(what: &str) -> Self {
        Self::new(SqlState::INSUFFICIENT_PRIVILEGE, format!("permission denied: {what} is not allowed"))
            .detail(
                "a session may read what the catalog holds, define and refresh materialized views, and change reference \
                 tables",
            )
    }

    pub fn in_failed_transaction() -> Self {
        let message = "current transaction is aborted, commands ignored until end of transaction block";
        Self::new(SqlState::IN_FAILED_TRANSACTION, message)
    }

    pub fn cancelled() -> Self {
        Self::new(SqlState::CANCELLED, "canceling statement due to user request")
    }

    pub fn timed_out() -> Self {
        Self::new(SqlState::CANCELLED, "canceling statement due to statement timeout")
    }

    pub fn too_complex() -> Self {
        Self::new(SqlState::TOO_COMPLEX, "stack depth limit exceeded: the statement is nested too deeply")
            .hint("split the statement, or write long OR chains as IN lists")
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(SqlState::INTERNAL, message)
    }

    /// What a client is told of the engine's `error`.
    pub fn of(error: &DataFusionError) -> Self {
        classify(error)
    }

    /// Fills in the position from a location that the planner reported in `sql`.
    pub fn located(mut self, sql: &str, error: &DataFusionError) -> Self {
        if self.position.is_none()
            && let Some(span) = error.diagnostic().and_then(|diagnostic| diagnostic.span)
            && span.start.line > 0
        {
            self.position = character(sql, Location::new(span.start.line, span.start.column));
        }
        self
    }
}

impl From<ServeError> for QueryError {
    fn from(error: ServeError) -> Self {
        match &error {
            ServeError::Unavailable(_) => Self::new(SqlState::CANNOT_CONNECT_NOW, error.to_string()),
            ServeError::AsOf(_) => Self::new(SqlState::INVALID_PARAMETER, error.to_string())
                .hint("RESET viewledger.as_of reads the newest generation and what came since"),
            _ => Self::internal(error.to_string()),
        }
    }
}

impl From<RefreshError> for QueryError {
    fn from(error: RefreshError) -> Self {
        let state = match &error {
            RefreshError::UnknownView(_) => SqlState::UNDEFINED_TABLE,
            RefreshError::Refused(_) => SqlState::PREREQUISITE,
            RefreshError::Failed(_) => SqlState::INTERNAL,
            RefreshError::Cancelled => SqlState::CANCELLED,
        };
        Self::new(state, error.to_string())
    }
}

impl From<DefineError> for QueryError {
    fn from(error: DefineError) -> Self {
        let (state, hint) = match &error {
            DefineError::Exists { kind: "materialized view", .. } => (
                SqlState::DUPLICATE_TABLE,
                Some("CREATE OR REPLACE MATERIALIZED VIEW builds another version beside the one that is read"),
            ),
            DefineError::Exists { .. } => (SqlState::DUPLICATE_TABLE, None),
            DefineError::Unknown(_) => (SqlState::UNDEFINED_TABLE, None),
            DefineError::UnknownVersion { .. } => (SqlState::UNDEFINED_SETTING, Some("see system.view_versions")),
            DefineError::Invalid(_) => (SqlState::INVALID_DEFINITION, None),
            DefineError::Needed(_) => (SqlState::DEPENDENT, None),
            DefineError::Failed(_) => (SqlState::INTERNAL, None),
            DefineError::Cancelled => (SqlState::CANCELLED, None),
        };
        let shown = Self::new(state, error.to_string());
        match hint {
            Some(hint) => shown.hint(hint),
            None => shown,
        }
    }
}

impl From<WriteError> for QueryError {
    fn from(error: WriteError) -> Self {
        let state = match &error {
            WriteError::Compute { source, .. } => return classify(source),
            WriteError::Unknown(_) => SqlState::UNDEFINED_TABLE,
            WriteError::NotATable(_) | WriteError::AppendOnly(_) => SqlState::WRONG_OBJECT_TYPE,
            WriteError::Null { .. } => SqlState::NOT_NULL_VIOLATION,
            WriteError::Check { .. } => SqlState::CHECK_VIOLATION,
            WriteError::Duplicate { .. } => SqlState::UNIQUE_VIOLATION,
            WriteError::Twice { .. } => SqlState::CARDINALITY,
            WriteError::NoSuchKey { .. } => SqlState::NO_SUCH_CONSTRAINT,
            WriteError::NoSuchColumn { .. } => SqlState::UNDEFINED_COLUMN,
            WriteError::NotAUuid(_) => SqlState::INVALID_TEXT,
            WriteError::TooLarge { .. } => SqlState::PROGRAM_LIMIT,
            WriteError::Conflict { .. } => SqlState::SERIALIZATION_FAILURE,
            WriteError::Fenced { .. } | WriteError::Ended => SqlState::SHUTDOWN,
            WriteError::Storage(_) | WriteError::Undecided { .. } => SqlState::IO,
            WriteError::Panicked { .. } => SqlState::INTERNAL,
        };
        let told = Self::new(state, chain(&error));
        match error {
            WriteError::Conflict { .. } => told.hint("nothing was changed; run the transaction again"),
            _ => told,
        }
    }
}

impl From<ArrowError> for QueryError {
    fn from(error: ArrowError) -> Self {
        arrow_error(&error)
    }
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        classify(&error)
    }
}

/// The character in `sql` (from 1) at a line and column, both from 1.
pub(crate) fn character(sql: &str, at: Location) -> Option<usize> {
    let line = usize::try_from(at.line).ok()?.checked_sub(1)?;
    let column = usize::try_from(at.column).ok()?;
    let before: usize = sql.split_inclusive('\n').take(line).map(|line| line.chars().count()).sum();
    Some((before + column).min(sql.chars().count() + 1))
}

/// A syntax error, with the location that the parser appended to its message turned into a position.
pub(crate) fn syntax(sql: &str, error: &ParserError) -> QueryError {
    let text = match error {
        ParserError::RecursionLimitExceeded => return QueryError::too_complex(),
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text,
    };
    let (message, position) = match text.rsplit_once(" at Line: ") {
        Some((message, place)) => {
            let location = place.split_once(", Column: ").and_then(|(line, column)| {
                Some(Location::new(line.trim().parse().ok()?, column.trim().parse().ok()?))
            });
            (message, location.and_then(|at| character(sql, at)))
        }
        None => (text.as_str(), None),
    };
    // At the end of the text the parser has no location.
    let position = position.or_else(|| text.contains("found: EOF").then(|| sql.chars().count() + 1));
    QueryError { position, ..QueryError::new(SqlState::SYNTAX, format!("syntax error: {}", lower_first(message))) }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match (chars.next(), chars.clone().next()) {
        // "SELECT needs" keeps its capitals, "Expected: x" does not.
        (Some(first), Some(second)) if second.is_lowercase() => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

fn classify(error: &DataFusionError) -> QueryError {
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => classify(inner),
        DataFusionError::Shared(inner) => classify(inner),
        DataFusionError::Collection(errors) => match errors.first() {
            Some(first) => classify(first),
            None => QueryError::internal("no error was reported"),
        },
        DataFusionError::SQL(parser, _) => syntax("", parser),
        DataFusionError::SchemaError(schema, _) => schema_error(schema),
        DataFusionError::ArrowError(arrow, _) => arrow_error(arrow),
        DataFusionError::NotImplemented(text) => {
            QueryError::new(SqlState::FEATURE_NOT_SUPPORTED, lower_first(first_line(text)))
        }
        DataFusionError::ResourcesExhausted(text) => resources(text),
        DataFusionError::IoError(io) if io.kind() == std::io::ErrorKind::StorageFull => {
            QueryError::new(SqlState::DISK_FULL, "no space left on the disk that queries spill to")
        }
        DataFusionError::IoError(io) => QueryError::new(SqlState::IO, io.to_string()),
        DataFusionError::External(inner) => external(inner.as_ref()),
        DataFusionError::Plan(text) | DataFusionError::Configuration(text) => plan_error(text),
        DataFusionError::Execution(text) => by_words(text, SqlState::INTERNAL),
        other => by_words(&other.strip_backtrace(), SqlState::INTERNAL),
    }
}

fn external(inner: &(dyn std::error::Error + Send + Sync + 'static)) -> QueryError {
    if let Some(error) = inner.downcast_ref::<QueryError>() {
        return error.clone();
    }
    if let Some(error) = inner.downcast_ref::<DataFusionError>() {
        return classify(error);
    }
    if let Some(Raised(message)) = inner.downcast_ref::<Raised>() {
        return QueryError::new(SqlState::RAISED, message.clone());
    }
    if inner.is::<Restoring>() {
        return QueryError::new(SqlState::CANNOT_CONNECT_NOW, inner.to_string())
            .hint("try again in a moment; the schema batch has what the last generation holds");
    }
    if let Some(error) = inner.downcast_ref::<ArrowError>() {
        return arrow_error(error);
    }
    by_words(&inner.to_string(), SqlState::INTERNAL)
}

fn schema_error(error: &SchemaError) -> QueryError {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let message = format!("column \"{}\" does not exist", field.flat_name());
            let error = QueryError::new(SqlState::UNDEFINED_COLUMN, message);
            if valid_fields.is_empty() {
                return error;
            }
            let names: Vec<String> = valid_fields.iter().take(20).map(|c| c.flat_name()).collect();
            error.hint(format!("columns here: {}", names.join(", ")))
        }
        SchemaError::AmbiguousReference { field } => {
            QueryError::new(SqlState::AMBIGUOUS_COLUMN, format!("column reference \"{}\" is ambiguous", field.name))
        }
        other => QueryError::new(SqlState::DUPLICATE_COLUMN, other.to_string()),
    }
}

fn arrow_error(error: &ArrowError) -> QueryError {
    match error {
        ArrowError::DivideByZero => QueryError::new(SqlState::DIVISION_BY_ZERO, "division by zero"),
        ArrowError::ArithmeticOverflow(text) => {
            QueryError::new(SqlState::NUMERIC_OUT_OF_RANGE, format!("out of range: {}", lower_first(text)))
        }
        ArrowError::CastError(text) => cast_error(text),
        ArrowError::ParseError(text) => QueryError::new(SqlState::INVALID_TEXT, lower_first(text)),
        ArrowError::MemoryError(text) => QueryError::new(SqlState::OUT_OF_MEMORY, lower_first(text)),
        ArrowError::IoError(text, io) if io.kind() == std::io::ErrorKind::StorageFull => {
            QueryError::new(SqlState::DISK_FULL, text.clone())
        }
        ArrowError::ExternalError(inner) => external(inner.as_ref()),
        other => by_words(&other.to_string(), SqlState::INTERNAL),
    }
}

fn cast_error(text: &str) -> QueryError {
    let lower = text.to_lowercase();
    let state = if lower.contains("overflow") || lower.contains("out of range") || lower.contains("too large") {
        SqlState::NUMERIC_OUT_OF_RANGE
    } else if lower.contains("timestamp") || lower.contains("date") || lower.contains("time") {
        SqlState::INVALID_DATETIME
    } else if lower.contains("not supported") {
        SqlState::DATATYPE_MISMATCH
    } else if lower.contains("string") {
        SqlState::INVALID_TEXT
    } else {
        SqlState::NUMERIC_OUT_OF_RANGE
    };
    QueryError::new(state, lower_first(text))
}

fn resources(text: &str) -> QueryError {
    let lower = text.to_lowercase();
    let state = if lower.contains("disk") || lower.contains("spill") && lower.contains("limit") {
        SqlState::DISK_FULL
    } else {
        SqlState::OUT_OF_MEMORY
    };
    QueryError::new(state, format!("the query needs more than its share: {}", lower_first(first_line(text))))
        .hint("narrow the query, or raise `query.memory_bytes_max`")
}

/// Planner errors come as text only; the words were read from the planner's source.
fn plan_error(text: &str) -> QueryError {
    if let Some(rest) = text.strip_prefix("table '")
        && let Some((name, _)) = rest.split_once("' not found")
    {
        let name = name.strip_prefix("viewledger.").unwrap_or(name);
        let name = name.strip_prefix("public.").unwrap_or(name);
        return QueryError::new(SqlState::UNDEFINED_TABLE, format!("relation \"{name}\" does not exist"));
    }
    by_words(text, SqlState::SYNTAX)
}

fn by_words(text: &str, otherwise: SqlState) -> QueryError {
    let message = lower_first(first_line(text));
    let lower = message.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let state = if has(&["divide by zero", "division by zero"]) {
        SqlState::DIVISION_BY_ZERO
    } else if has(&["invalid function", "no function matches", "table function '", "function signature"]) {
        SqlState::UNDEFINED_FUNCTION
    } else if has(&["failed to resolve schema"]) {
        SqlState::UNKNOWN_SCHEMA
    } else if has(&["failed to resolve catalog"]) {
        SqlState::UNKNOWN_CATALOG
    } else if has(&["ambiguous"]) {
        SqlState::AMBIGUOUS_COLUMN
    } else if has(&["no field named", "column not found"]) {
        SqlState::UNDEFINED_COLUMN
    } else if has(&[
        "must be in group by",
        "must appear in the group by",
        "could not be resolved from available columns",
    ]) {
        SqlState::GROUPING
    } else if has(&["overflow", "out of range", "too large to store", "too small to store"]) {
        SqlState::NUMERIC_OUT_OF_RANGE
    } else if has(&["cannot cast string", "failed to parse", "error parsing", "parser error"]) {
        SqlState::INVALID_TEXT
    } else if has(&[
        "cannot coerce",
        "coercion",
        "cannot infer common",
        "type mismatch",
        "unsupported cast",
        "cannot be cast",
        "incompatible",
        "must be of type",
        "boolean",
    ]) {
        SqlState::DATATYPE_MISMATCH
    } else if has(&["not supported", "not implemented", "unsupported"]) {
        SqlState::FEATURE_NOT_SUPPORTED
    } else if has(&["no space left"]) {
        SqlState::DISK_FULL
    } else {
        otherwise
    };
    QueryError::new(state, message)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_over_lines() {
        assert_eq!(character("ab\ncäd x", Location::new(2, 5)), Some(8));
        assert_eq!(character("ab", Location::new(1, 99)), Some(3));
        assert_eq!(character("ab", Location::new(0, 0)), None);
    }

    #[test]
    fn syntax_errors_lose_the_location_text_and_gain_a_position() {
        let error = ParserError::ParserError("Expected: identifier, found: FROM at Line: 1, Column: 8".into());
        let shown = syntax("SELECT FROM", &error);
        assert_eq!(shown.message, "syntax error: expected: identifier, found: FROM");
        assert_eq!(shown.position, Some(8));
        assert_eq!(shown.state, SqlState::SYNTAX);
    }

    #[test]
    fn data_errors_are_classified_through_their_wrappers() {
        let zero = DataFusionError::ArrowError(Box::new(ArrowError::DivideByZero), None);
        let wrapped = DataFusionError::Context("while projecting".into(), Box::new(zero));
        assert_eq!(QueryError::from(wrapped).state, SqlState::DIVISION_BY_ZERO);
        let memory = DataFusionError::ResourcesExhausted("Failed to allocate additional 1 KB".into());
        assert_eq!(QueryError::from(memory).state, SqlState::OUT_OF_MEMORY);
        let inner = QueryError::new(SqlState::IO, "file gone");
        assert_eq!(QueryError::from(DataFusionError::External(Box::new(inner))).state, SqlState::IO);
    }
}
