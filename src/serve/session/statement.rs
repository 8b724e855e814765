//! SQL text to statements: one tokenizing, one parse per statement, bounded before anything recurses.
//!
//! The text is cut at semicolons on tokens, so that every error keeps its position in the whole message.
//! Clients' catalog queries (anything that names `pg_...`) pass through the compatibility rewrites of
//! datafusion-pg-catalog; other statements only through those rewrites that keep their meaning.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::sql::sqlparser::ast::{
    self, ContextModifier, Expr, Reset, Set, SetExpr, TransactionAccessMode, TransactionMode, Value, Visit, Visitor,
};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};
use datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use datafusion_pg_catalog::sql::rules::{
    CurrentUserVariableToSessionUserFunctionCall, FixArrayLiteral, FixVersionColumnName,
    RewriteArrayAnyAllOperation, RewritePgCatalogOperator, RewriteRegCastToSubquery, SqlStatementRewriteRule,
    StripCollate,
};

mod text;
mod views;

use self::views::{dropping, promotion, refresh};
use super::copy::Copy;
use super::copy::from::CopyIn;
use super::cursor::CursorStatement;
use super::dialect::Postgres;
use super::escape::with_backslashes;
use super::psql::without_unknowns;
use super::write::Write;
use crate::serve::error::{QueryError, SqlState, character, syntax};
use crate::serve::{Limits, RefreshScope, ViewChange};

/// Nested brackets of any kind: parentheses, subqueries, function calls. The parser recurses here.
const NESTING_MAX: usize = 60;
/// What the parser itself counts: several steps for each bracket.
const RECURSION_MAX: usize = 400;
/// The same for catalog queries, whose parser takes time exponential in nested calls.
const CATALOG_NESTING_MAX: usize = 14;

/// One statement, as far as it differs in what the session does with it.
#[derive(Debug, Clone)]
pub enum Statement {
    Query(Query),
    Copy(Copy),
    /// Rows of a reference table that the client sends.
    CopyIn(CopyIn),
    Cursor(CursorStatement),
    /// A change of a reference table.
    Write(Write),
    /// `SHOW name`, or every setting.
    Show(Option<String>),
    Set {
        name: String,
        /// None sets the default.
        value: Option<String>,
        scope: SetScope,
    },
    /// One setting, or all.
    Reset(Option<String>),
    Begin {
        read_only: bool,
    },
    Commit,
    Rollback,
    /// `SAVEPOINT`, `RELEASE`, `ROLLBACK TO`: a reading transaction has nothing to undo. Holds the tag.
    Savepoint(&'static str),
    Refresh(String, RefreshScope),
    Define(ViewChange),
    /// `SELECT pg_reload_conf()`: files in `sql/` are read again.
    Reload,
    /// Forgets one prepared statement, or all.
    Deallocate(Option<String>),
    /// `DISCARD ALL`, or only a part that this server does not keep.
    Discard {
        all: bool,
    },
    /// `LISTEN`, `UNLISTEN` and other requests that ask for nothing here. Holds the tag.
    Ignored(&'static str),
}

/// What the planner sees.
#[derive(Debug, Clone)]
pub struct Query {
    pub ast: Arc<ast::Statement>,
    pub tag: &'static str,
    /// Names catalog tables or functions of PostgreSQL.
    pub catalog: bool,
    /// The text it came from, for the position of a planner's error.
    pub sql: Arc<str>,
}

impl Query {
    /// Types that the text itself gives to parameters: `$1::int`, `CAST($2 AS text)`, `LIMIT $3`.
    pub fn declared_parameters(&self) -> BTreeMap<String, DataType> {
        let mut declared = Declared::default();
        let _ = self.ast.visit(&mut declared);
        declared.0
    }
}

#[derive(Default)]
struct Declared(BTreeMap<String, DataType>);

impl Declared {
    fn note(&mut self, expr: &Expr, data_type: DataType) {
        if let Expr::Value(value) = expr
            && let Value::Placeholder(name) = &value.value
        {
            self.0.entry(name.clone()).or_insert(data_type);
        }
    }
}

impl Visitor for Declared {
    type Break = ();

    fn pre_visit_query(&mut self, query: &ast::Query) -> ControlFlow<()> {
        if let Some(ast::LimitClause::LimitOffset { limit, offset, .. }) = &query.limit_clause {
            let bounds = limit.iter().chain(offset.iter().map(|offset| &offset.value));
            bounds.for_each(|bound| self.note(bound, DataType::Int64));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Cast { expr, data_type, .. } = expr
            && let Some(found) = arrow_type(data_type)
        {
            self.note(expr, found);
        }
        ControlFlow::Continue(())
    }
}

/// The common types by which clients cast parameters.
fn arrow_type(data_type: &ast::DataType) -> Option<DataType> {
    let name = data_type.to_string().to_lowercase();
    Some(match name.as_str() {
        "smallint" | "int2" => DataType::Int16,
        "int" | "integer" | "int4" => DataType::Int32,
        "bigint" | "int8" => DataType::Int64,
        "text" | "varchar" | "character varying" => DataType::Utf8,
        "real" | "float4" => DataType::Float32,
        "float8" | "double precision" | "float" => DataType::Float64,
        "boolean" | "bool" => DataType::Boolean,
        "date" => DataType::Date32,
        "timestamp" | "timestamp without time zone" => DataType::Timestamp(TimeUnit::Microsecond, None),
        "timestamptz" | "timestamp with time zone" => {
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
        }
        "bytea" => DataType::Binary,
        _ => return None,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetScope {
    Session,
    /// Until the end of the transaction.
    Local,
}

/// Turns SQL text into statements.
#[derive(Debug)]
pub struct StatementParser {
    compatibility: PostgresCompatibilityParser,
    rewrites: Vec<Arc<dyn SqlStatementRewriteRule>>,
    sql_bytes_max: usize,
    depth_max: usize,
}

impl StatementParser {
    pub fn new(limits: &Limits) -> Self {
        Self {
            compatibility: PostgresCompatibilityParser::new(),
            rewrites: vec![
                Arc::new(RewriteArrayAnyAllOperation),
                Arc::new(FixArrayLiteral),
                Arc::new(CurrentUserVariableToSessionUserFunctionCall),
                Arc::new(StripCollate),
                Arc::new(RewritePgCatalogOperator),
                Arc::new(RewriteRegCastToSubquery::new()),
                Arc::new(FixVersionColumnName),
            ],
            sql_bytes_max: limits.sql_bytes_max,
            depth_max: limits.depth_max,
        }
    }

    /// The statements of one message, in order; none for an empty text.
    pub fn parse(&self, sql: &str) -> Result<Vec<Statement>, QueryError> {
        if sql.len() > self.sql_bytes_max {
            return Err(QueryError::new(
                SqlState::PROGRAM_LIMIT,
                format!("statement of {} bytes is longer than {} bytes", sql.len(), self.sql_bytes_max),
            ));
        }
        let tokens = Tokenizer::new(&Postgres, sql).tokenize_with_location().map_err(|error| {
            let mut shown = QueryError::new(SqlState::SYNTAX, format!("syntax error: {}", error.message));
            shown.position = character(sql, error.location);
            shown
        })?;
        let text: Arc<str> = sql.into();
        tokens
            .split(|token| token.token == Token::SemiColon)
            .filter(|tokens| tokens.iter().any(is_solid))
            .map(|tokens| self.parse_one(&text, tokens))
            .collect()
    }

    fn parse_one(&self, sql: &Arc<str>, tokens: &[TokenWithSpan]) -> Result<Statement, QueryError> {
        let catalog = tokens.iter().any(names_catalog);
        let nesting_max = if catalog { CATALOG_NESTING_MAX } else { NESTING_MAX };
        check_depth(tokens, self.depth_max, nesting_max)?;
        let words = leading_words(tokens);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if let ["DECLARE" | "FETCH" | "MOVE" | "CLOSE", ..] = words.as_slice() {
            let query = |tokens: &[TokenWithSpan]| match self.parse_one(sql, tokens)? {
                Statement::Query(query) if query.tag == "SELECT" => Ok(query),
                _ => Err(QueryError::new(SqlState::SYNTAX, "a cursor is declared for a SELECT")),
            };
            return CursorStatement::read(tokens, query).map(Statement::Cursor);
        }
        if let Some(statement) = own_statement(sql, &words, tokens)? {
            return Ok(statement);
        }
        if let Some(refusal) = refusal(&words) {
            return Err(refusal);
        }
        let statement = if catalog {
            let range = byte_range(sql, tokens);
            let part = sql.get(range).unwrap_or(sql);
            let mut statements = self.compatibility.parse(part).map_err(|error| syntax(part, &error))?;
            match (statements.pop(), statements.is_empty()) {
                (Some(statement), true) => with_backslashes(without_unknowns(statement)),
                _ => return Err(QueryError::new(SqlState::SYNTAX, "syntax error: expected one statement")),
            }
        } else {
            let parsed = parse_tokens(tokens).map_err(|error| syntax(sql, &error))?;
            self.rewrites.iter().fold(with_backslashes(parsed), |statement, rule| rule.rewrite(statement))
        };
        classify(statement, sql, catalog)
    }
}

fn parse_tokens(
    tokens: &[TokenWithSpan],
) -> Result<ast::Statement, datafusion::sql::sqlparser::parser::ParserError> {
    let mut parser =
        Parser::new(&Postgres).with_recursion_limit(RECURSION_MAX).with_tokens_with_locations(tokens.to_vec());
    let statement = parser.parse_statement()?;
    let next = parser.peek_token();
    if next.token == Token::EOF { Ok(statement) } else { parser.expected("end of statement", next) }
}

fn classify(statement: ast::Statement, sql: &Arc<str>, catalog: bool) -> Result<Statement, QueryError> {
    use ast::Statement as S;
    let query = |statement, tag| {
        Ok(Statement::Query(Query { ast: Arc::new(statement), tag, catalog, sql: Arc::clone(sql) }))
    };
    let write = |statement| {
        let query = |ast, tag| Query { ast, tag, catalog, sql: Arc::clone(sql) };
        Write::read(statement, query).map(Statement::Write)
    };
    match &statement {
        S::Query(inner) => {
            check_select(inner)?;
            query(statement, "SELECT")
        }
        S::Explain { statement: inner, .. } => match inner.as_ref() {
            S::Query(inner) => {
                check_select(inner)?;
                query(statement, "EXPLAIN")
            }
            other => Err(QueryError::refused(&format!("EXPLAIN of {}", command(other)))),
        },
        S::Copy { to: false, .. } => {
            let query = |ast| Query { ast: Arc::new(ast), tag: "COPY", catalog, sql: Arc::clone(sql) };
            CopyIn::read(statement, query).map(Statement::CopyIn)
        }
        S::Copy { .. } => {
            let copy = Copy::read(statement, |ast| Query {
                ast: Arc::new(ast),
                tag: "COPY",
                catalog,
                sql: Arc::clone(sql),
            })?;
            if let S::Query(inner) = copy.query.ast.as_ref() {
                check_select(inner)?;
            }
            Ok(Statement::Copy(copy))
        }
        S::ExplainTable { .. } | S::ShowTables { .. } | S::ShowColumns { .. } => query(statement, "SHOW"),
        S::ShowVariable { variable } => Ok(show(variable)),
        S::Set(set) => set_statement(set),
        S::Reset(reset) => Ok(Statement::Reset(match &reset.reset {
            Reset::ALL => None,
            Reset::ConfigurationParameter(name) => Some(name.to_string().to_lowercase()),
        })),
        S::StartTransaction { modes, .. } => Ok(Statement::Begin { read_only: access(modes) == Some("on") }),
        S::Commit { .. } => Ok(Statement::Commit),
        S::Rollback { savepoint: None, .. } => Ok(Statement::Rollback),
        S::Rollback { .. } => Ok(Statement::Savepoint("ROLLBACK")),
        S::Savepoint { .. } => Ok(Statement::Savepoint("SAVEPOINT")),
        S::ReleaseSavepoint { .. } => Ok(Statement::Savepoint("RELEASE")),
        S::Discard { object_type } => {
            Ok(Statement::Discard { all: matches!(object_type, ast::DiscardObject::ALL) })
        }
        S::Deallocate { name, .. } => {
            Ok(Statement::Deallocate((!name.value.eq_ignore_ascii_case("all")).then(|| name.value.clone())))
        }
        S::Insert(ast::Insert { source: Some(source), .. }) => {
            check_select(source)?;
            write(statement)
        }
        S::Insert(_) | S::Update(_) | S::Delete(_) | S::Truncate(_) => write(statement),
        S::LISTEN { .. } => Ok(Statement::Ignored("LISTEN")),
        S::UNLISTEN { .. } => Ok(Statement::Ignored("UNLISTEN")),
        other => Err(QueryError::refused(&command(other))),
    }
}

/// `SELECT ... INTO` creates a table, and row locks promise what this server does not do.
fn check_select(query: &ast::Query) -> Result<(), QueryError> {
    if let SetExpr::Select(select) = query.body.as_ref()
        && select.into.is_some()
    {
        return Err(QueryError::refused("SELECT INTO"));
    }
    if query.locks.is_empty() { Ok(()) } else { Err(QueryError::refused("SELECT FOR UPDATE or FOR SHARE")) }
}

fn show(variable: &[ast::Ident]) -> Statement {
    let words: Vec<String> = variable.iter().map(|word| word.value.to_lowercase()).collect();
    let name = words.join(".");
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["all"] => Statement::Show(None),
        ["time", "zone"] => Statement::Show(Some("timezone".into())),
        ["transaction", "isolation", "level"] => Statement::Show(Some("transaction_isolation".into())),
        ["session", "authorization"] => Statement::Show(Some("session_authorization".into())),
        _ => Statement::Show(Some(name)),
    }
}

fn set_statement(set: &Set) -> Result<Statement, QueryError> {
    let scope = |local: bool| if local { SetScope::Local } else { SetScope::Session };
    match set {
        Set::SingleAssignment { scope: modifier, variable, values, .. } => {
            let texts: Vec<String> = values.iter().map(setting_text).collect::<Result<_, _>>()?;
            let value = texts.join(", ");
            Ok(Statement::Set {
                name: variable.to_string().to_lowercase(),
                value: (!value.eq_ignore_ascii_case("default")).then_some(value),
                scope: scope(matches!(modifier, Some(ContextModifier::Local))),
            })
        }
        Set::SetTimeZone { local, value } => {
            let value = setting_text(value)?;
            Ok(Statement::Set {
                name: "timezone".into(),
                value: (!matches!(value.to_lowercase().as_str(), "default" | "local")).then_some(value),
                scope: scope(*local),
            })
        }
        Set::SetNames { charset_name, .. } => Ok(Statement::Set {
            name: "client_encoding".into(),
            value: Some(charset_name.value.clone()),
            scope: SetScope::Session,
        }),
        Set::SetNamesDefault {} => {
            Ok(Statement::Set { name: "client_encoding".into(), value: None, scope: SetScope::Session })
        }
        Set::SetTransaction { snapshot: None, modes, session } => Ok(match (access(modes), session) {
            (Some(value), true) => Statement::Set {
                name: "default_transaction_read_only".into(),
                value: Some(value.to_owned()),
                scope: SetScope::Session,
            },
            (Some(value), false) => Statement::Set {
                name: "transaction_read_only".into(),
                value: Some(value.to_owned()),
                scope: SetScope::Local,
            },
            // Every transaction reads one snapshot, which is what the strictest level asks for.
            (None, _) => Statement::Ignored("SET"),
        }),
        other => Err(QueryError::refused(&other.to_string())),
    }
}

/// Whether a transaction is to be `READ ONLY`, as a setting's value; None when nothing is said of it.
fn access(modes: &[TransactionMode]) -> Option<&'static str> {
    modes.iter().rev().find_map(|mode| match mode {
        TransactionMode::AccessMode(TransactionAccessMode::ReadOnly) => Some("on"),
        TransactionMode::AccessMode(TransactionAccessMode::ReadWrite) => Some("off"),
        TransactionMode::IsolationLevel(_) => None,
    })
}

fn setting_text(expr: &Expr) -> Result<String, QueryError> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text)
            | Value::DoubleQuotedString(text)
            | Value::EscapedStringLiteral(text) => Ok(text.clone()),
            Value::Number(number, _) => Ok(number.clone()),
            Value::Boolean(flag) => Ok(if *flag { "on" } else { "off" }.to_owned()),
            other => Err(QueryError::new(SqlState::INVALID_PARAMETER, format!("not a setting's value: {other}"))),
        },
        Expr::Identifier(word) => Ok(word.value.clone()),
        Expr::UnaryOp { op: ast::UnaryOperator::Minus, expr } => Ok(format!("-{}", setting_text(expr)?)),
        other => Err(QueryError::new(SqlState::INVALID_PARAMETER, format!("not a setting's value: {other}"))),
    }
}

/// Statements that the SQL parser does not know.
fn own_statement(sql: &str, words: &[&str], tokens: &[TokenWithSpan]) -> Result<Option<Statement>, QueryError> {
    Ok(match words {
        ["REFRESH", "MATERIALIZED", "VIEW", ..] => {
            let (view, scope) = refresh(tokens)?;
            Some(Statement::Refresh(view, scope))
        }
        ["CREATE", "MATERIALIZED", "VIEW", ..] | ["CREATE", "OR", "REPLACE", "MATERIALIZED", "VIEW", ..] => {
            // With the comment above it, which says what a row is.
            let start = tokens.first().and_then(|token| byte_offset(sql, token.span.start)).unwrap_or(0);
            let statement = sql.get(start..byte_range(sql, tokens).end).unwrap_or(sql).trim().to_owned();
            let replace = words.get(1) == Some(&"OR");
            Some(Statement::Define(ViewChange::Create { statement, replace }))
        }
        ["ALTER", "MATERIALIZED", "VIEW", ..] => Some(Statement::Define(promotion(tokens)?)),
        ["DROP", "MATERIALIZED", "VIEW", ..] => Some(Statement::Define(dropping(tokens)?)),
        ["SELECT", RELOAD] if is_call(tokens) => Some(Statement::Reload),
        ["ABORT", ..] => Some(Statement::Rollback),
        ["END"] | ["END", "TRANSACTION" | "WORK"] => Some(Statement::Commit),
        ["UNLISTEN", ..] => Some(Statement::Ignored("UNLISTEN")),
        ["SHOW", "ALL"] => Some(Statement::Show(None)),
        ["DISCARD", "PLANS" | "SEQUENCES" | "TEMP" | "TEMPORARY"] => Some(Statement::Discard { all: false }),
        _ => None,
    })
}

const RELOAD: &str = "PG_RELOAD_CONF";

/// `SELECT f()`, and nothing else.
fn is_call(tokens: &[TokenWithSpan]) -> bool {
    let mut solid = tokens.iter().filter(|token| is_solid(token)).skip(2).map(|token| &token.token);
    solid.next() == Some(&Token::LParen) && solid.next() == Some(&Token::RParen) && solid.next().is_none()
}

/// Commands that are known and refused, so that the client reads why and not about syntax.
fn refusal(words: &[&str]) -> Option<QueryError> {
    match words.first().copied()? {
        "COPY" => (!words.contains(&"STDOUT") && !words.contains(&"STDIN"))
            .then(|| QueryError::refused("COPY from anything but STDIN or to anything but STDOUT")),
        "PREPARE" | "EXECUTE" => Some(QueryError::new(
            SqlState::FEATURE_NOT_SUPPORTED,
            format!("{} is not supported yet", words.first().copied().unwrap_or_default()),
        )),
        word @ ("CREATE" | "ALTER" | "DROP") if words.get(1) == Some(&"STREAM") => Some(
            QueryError::refused(&format!("{word} STREAM"))
                .hint("streams are declared in sql/streams: change the file, then SELECT pg_reload_conf()"),
        ),
        word @ ("MERGE" | "CREATE" | "DROP" | "ALTER" | "GRANT" | "REVOKE" | "COMMENT" | "VACUUM" | "ANALYZE"
        | "CLUSTER" | "REINDEX" | "LOCK" | "CALL" | "DO" | "LOAD" | "INSTALL" | "ATTACH" | "DETACH"
        | "EXPORT" | "IMPORT" | "UNLOAD" | "CHECKPOINT" | "SECURITY" | "REASSIGN" | "NOTIFY" | "KILL"
        | "USE" | "CACHE" | "UNCACHE" | "MSCK" | "OPTIMIZE") => {
            let second = words.get(1).copied().unwrap_or_default();
            Some(QueryError::refused(format!("{word} {second}").trim()))
        }
        _ => None,
    }
}

/// The first keyword of a statement that the parser read but the list does not hold.
fn command(statement: &ast::Statement) -> String {
    let text = statement.to_string();
    text.split_whitespace().take(2).collect::<Vec<_>>().join(" ").to_uppercase()
}

fn is_solid(token: &TokenWithSpan) -> bool {
    !matches!(token.token, Token::Whitespace(_) | Token::EOF)
}

fn is_word(token: &TokenWithSpan, text: &str) -> bool {
    matches!(&token.token, Token::Word(word) if word.value.eq_ignore_ascii_case(text))
}

fn leading_words(tokens: &[TokenWithSpan]) -> Vec<String> {
    tokens
        .iter()
        .filter(|token| is_solid(token))
        .map_while(|token| match &token.token {
            Token::Word(word) if word.quote_style.is_none() => Some(word.value.to_uppercase()),
            _ => None,
        })
        .chain(
            ["STDIN", "STDOUT"]
                .into_iter()
                .filter(|word| tokens.iter().any(|token| is_word(token, word)))
                .map(str::to_owned),
        )
        .take(12)
        .collect()
}

fn names_catalog(token: &TokenWithSpan) -> bool {
    let Token::Word(word) = &token.token else { return false };
    let name = word.value.to_ascii_lowercase();
    name.starts_with("pg_")
        || name.starts_with("has_")
        || matches!(
            name.as_str(),
            "information_schema"
                | "regclass"
                | "regtype"
                | "regproc"
                | "regnamespace"
                | "to_regclass"
                | "obj_description"
                | "col_description"
        )
}

/// Where a statement lies in the text, so that it can be parsed again by other rules.
fn byte_range(sql: &str, tokens: &[TokenWithSpan]) -> Range<usize> {
    let solid = || tokens.iter().filter(|token| is_solid(token));
    let start = solid().next().and_then(|token| byte_offset(sql, token.span.start)).unwrap_or(0);
    let end = solid().next_back().and_then(|token| byte_offset(sql, token.span.end)).unwrap_or(sql.len());
    start..end.max(start)
}

fn byte_offset(sql: &str, at: Location) -> Option<usize> {
    let position = character(sql, at)?.checked_sub(1)?;
    Some(sql.char_indices().nth(position).map_or(sql.len(), |(offset, _)| offset))
}

/// Bounds what later code walks recursively: chains of operators, joins and set operations, and brackets.
/// A comma or a clause begins a new chain, because the elements of a list lie side by side in the tree.
fn check_depth(tokens: &[TokenWithSpan], depth_max: usize, nesting_max: usize) -> Result<(), QueryError> {
    #[derive(Default)]
    struct Level {
        chain: usize,
        relations: usize,
    }
    let mut levels = vec![Level::default()];
    for token in tokens.iter().filter(|token| is_solid(token)) {
        let Some(level) = levels.last_mut() else { break };
        match &token.token {
            Token::LParen | Token::LBracket | Token::LBrace => levels.push(Level::default()),
            Token::RParen | Token::RBracket | Token::RBrace => {
                if levels.len() > 1 {
                    levels.pop();
                }
            }
            Token::Comma => level.chain = 0,
            Token::Word(word) => match word.keyword {
                Keyword::SELECT
                | Keyword::FROM
                | Keyword::WHERE
                | Keyword::HAVING
                | Keyword::GROUP
                | Keyword::ORDER
                | Keyword::WHEN
                | Keyword::THEN
                | Keyword::ELSE => level.chain = 0,
                Keyword::JOIN | Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT => level.relations += 1,
                Keyword::CASE => level.relations += 1,
                Keyword::AND
                | Keyword::OR
                | Keyword::NOT
                | Keyword::IS
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::SIMILAR
                | Keyword::BETWEEN
                | Keyword::COLLATE
                | Keyword::AT
                | Keyword::OPERATOR => {
                    level.chain += 1;
                }
                _ => {}
            },
            Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::Period
            | Token::Placeholder(_)
            | Token::EscapedStringLiteral(_)
            | Token::NationalStringLiteral(_)
            | Token::HexStringLiteral(_)
            | Token::DollarQuotedString(_)
            | Token::UnicodeStringLiteral(_) => {}
            _ => level.chain += 1,
        }
        let deep = levels.iter().any(|level| level.chain > depth_max || level.relations > depth_max);
        if deep || levels.len() > nesting_max {
            return Err(QueryError::too_complex());
        }
    }
    Ok(())
}
#[cfg(test)]
mod tests;
