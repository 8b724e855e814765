//! Functions that give tables, written in SQL: a name for a query with parameters.
//!
//! A call stands for the query in its place, with the arguments where `$1`, `$2`, ... stand: it is planned with everything around
//! it, and whoever calls it needs the rights on what it reads, as with PostgreSQL's `SECURITY INVOKER`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{
    self, CastKind, CreateFunction, CreateFunctionBody, DataType, Expr, FunctionArg, FunctionArgExpr,
    FunctionReturnType, Ident, Query, Statement, TableAlias, TableFactor, Value, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;

use super::ddl::normalize;
use super::{DEFAULT_SCHEMA, qualified};

/// How deep functions may call functions.
const DEPTH_MAX: usize = 16;

/// A function in `sql/functions`.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// As [`qualified`].
    pub name: String,
    /// Of the parameters.
    pub types: Vec<DataType>,
    pub query: Box<Query>,
    /// What a row is, from the comment above the statement.
    pub comment: Option<String>,
    pub file: String,
    /// Where the statement begins.
    pub line: u64,
}

/// Every function, by name.
pub type Functions = BTreeMap<String, Arc<Function>>;

impl Function {
    /// Reads `CREATE FUNCTION name(TEXT, DATE) RETURNS SETOF RECORD LANGUAGE SQL AS $$ SELECT ... $$`; the error says what
    /// is not understood.
    pub(super) fn read(
        declared: CreateFunction,
        name: String,
        comment: Option<String>,
        file: &str,
        line: u64,
    ) -> Result<Self, String> {
        if !matches!(&declared.return_type, Some(FunctionReturnType::SetOf(_))) {
            return Err(format!("function {name}: write RETURNS SETOF RECORD, for it gives rows"));
        }
        if !declared.language.as_ref().is_some_and(|language| language.value.eq_ignore_ascii_case("sql")) {
            return Err(format!("function {name}: write LANGUAGE SQL"));
        }
        let types: Vec<DataType> = declared.args.into_iter().flatten().map(|arg| arg.data_type).collect();
        let text = match &declared.function_body {
            Some(
                CreateFunctionBody::AsBeforeOptions { body: Expr::Value(body), .. }
                | CreateFunctionBody::AsAfterOptions(Expr::Value(body)),
            ) => body.value.clone().into_string(),
            _ => None,
        };
        let text = text.ok_or_else(|| format!("function {name}: write its query as AS $$ SELECT ... $$"))?;
        let parsed = Parser::parse_sql(&PostgreSqlDialect {}, &text);
        let mut parsed = parsed.map_err(|error| format!("function {name}: {error}"))?;
        let query = match (parsed.pop(), parsed.is_empty()) {
            (Some(Statement::Query(query)), true) => query,
            _ => return Err(format!("function {name}: its text must be one query")),
        };
        let function = Self { name, types, query, comment, file: file.to_owned(), line };
        let nulls = vec![Expr::value(Value::Null); function.types.len()];
        function.called(&nulls).map(|_| function)
    }

    /// Its query with these arguments.
    fn called(&self, arguments: &[Expr]) -> Result<Query, String> {
        if arguments.len() != self.types.len() {
            let (name, takes, given) = (&self.name, self.types.len(), arguments.len());
            return Err(format!("function {name} takes {takes} arguments, not {given}"));
        }
        let mut query = self.query.as_ref().clone();
        let unknown = ast::visit_expressions_mut(&mut query, |expr| {
            let Expr::Value(value) = expr else { return ControlFlow::Continue(()) };
            let Value::Placeholder(text) = &value.value else { return ControlFlow::Continue(()) };
            let number = text.strip_prefix('$').and_then(|number| number.parse::<usize>().ok()).unwrap_or_default();
            let index = number.wrapping_sub(1);
            let (Some(argument), Some(data_type)) = (arguments.get(index), self.types.get(index)) else {
                return ControlFlow::Break(text.clone());
            };
            *expr = Expr::Cast {
                kind: CastKind::Cast,
                expr: Box::new(argument.clone()),
                data_type: data_type.clone(),
                array: false,
                format: None,
            };
            ControlFlow::Continue(())
        });
        match unknown {
            ControlFlow::Break(text) => Err(format!("function {} has no parameter {text}", self.name)),
            ControlFlow::Continue(()) => Ok(query),
        }
    }

    /// A call of it with NULL for each argument.
    pub fn rehearsal(&self) -> Result<Query, String> {
        self.called(&vec![Expr::value(Value::Null); self.types.len()])
    }
}

/// Puts queries in the place of the calls in `statement`.
///
/// # Errors
/// When a call has too many or too few arguments, or functions call each other without end.
pub fn expand<T: VisitMut>(statement: &mut T, functions: &Functions) -> Result<(), String> {
    if functions.is_empty() {
        return Ok(());
    }
    for _ in 0..DEPTH_MAX {
        let mut calls = Calls { functions, found: false };
        if let ControlFlow::Break(error) = statement.visit(&mut calls) {
            return Err(error);
        }
        if !calls.found {
            return Ok(());
        }
    }
    Err("functions call each other without end".to_owned())
}

struct Calls<'a> {
    functions: &'a Functions,
    found: bool,
}

impl VisitorMut for Calls<'_> {
    type Break = String;

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<String> {
        let TableFactor::Table { name, args: Some(args), alias, .. } = factor else {
            return ControlFlow::Continue(());
        };
        let parts: Vec<String> = name.0.iter().filter_map(|part| part.as_ident()).map(normalize).collect();
        let called = match parts.as_slice() {
            [function] => qualified(DEFAULT_SCHEMA, function),
            [schema, function] => qualified(schema, function),
            _ => return ControlFlow::Continue(()),
        };
        let Some(function) = self.functions.get(&called) else { return ControlFlow::Continue(()) };
        let arguments: Option<Vec<Expr>> = args
            .args
            .iter()
            .map(|arg| match arg {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
                _ => None,
            })
            .collect();
        let query = match arguments {
            Some(arguments) => function.called(&arguments),
            None => Err(format!("function {called} takes its arguments by position")),
        };
        let query = match query {
            Ok(query) => query,
            Err(error) => return ControlFlow::Break(error),
        };
        let name = parts.last().cloned().unwrap_or_default();
        let own =
            || TableAlias { explicit: true, name: Ident::with_quote('"', name), columns: Vec::new(), at: None };
        let alias = Some(alias.take().unwrap_or_else(own));
        *factor = TableFactor::Derived { lateral: false, subquery: Box::new(query), alias, sample: None };
        self.found = true;
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::catalog::ddl::{self, Definition};

    fn functions(sql: &str) -> Result<Functions, String> {
        let definitions = ddl::parse("f.sql", sql).map_err(|fault| fault.to_string())?;
        let function = |definition| match definition {
            Definition::Function(function) => (function.name.clone(), Arc::new(function)),
            other => panic!("{other:?}"),
        };
        Ok(definitions.into_iter().map(function).collect())
    }

    fn expanded(sql: &str, functions: &Functions) -> Result<String, String> {
        let mut statement = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap();
        expand(&mut statement, functions)?;
        Ok(statement.pop().unwrap().to_string())
    }

    #[test]
    fn a_call_becomes_its_query() {
        let functions = functions(
            "CREATE FUNCTION audit.above(BIGINT) RETURNS SETOF RECORD LANGUAGE SQL AS $$ SELECT n FROM t WHERE n > $1 $$;\n\
             CREATE FUNCTION twice(BIGINT, TEXT) RETURNS SETOF RECORD LANGUAGE SQL AS $$ SELECT * FROM audit.above($1 + 1) WHERE $2 = 'x' $$;",
        )
        .unwrap();
        assert_eq!(
            expanded("SELECT * FROM audit.above(7) AS a", &functions).unwrap(),
            "SELECT * FROM (SELECT n FROM t WHERE n > CAST(7 AS BIGINT)) AS a"
        );
        assert_eq!(
            expanded("SELECT 1 WHERE EXISTS (SELECT 1 FROM twice($1, $2))", &functions).unwrap(),
            "SELECT 1 WHERE EXISTS (SELECT 1 FROM (SELECT * FROM (SELECT n FROM t WHERE n > CAST(CAST($1 AS BIGINT) + 1 AS BIGINT)) \
             AS \"above\" WHERE CAST($2 AS TEXT) = 'x') AS \"twice\")"
        );
        assert_eq!(expanded("SELECT * FROM other(1)", &functions).unwrap(), "SELECT * FROM other(1)");
        assert!(
            expanded("SELECT * FROM audit.above(1, 2)", &functions)
                .unwrap_err()
                .contains("takes 1 arguments, not 2")
        );
    }

    #[test]
    fn what_is_no_function_is_refused() {
        for (sql, told) in [
            ("CREATE FUNCTION f() RETURNS BIGINT LANGUAGE SQL AS $$ SELECT 1 $$", "RETURNS SETOF RECORD"),
            ("CREATE FUNCTION f() RETURNS SETOF RECORD AS $$ SELECT 1 $$", "LANGUAGE SQL"),
            ("CREATE FUNCTION f() RETURNS SETOF RECORD LANGUAGE SQL AS $$ DELETE FROM t $$", "one query"),
            ("CREATE FUNCTION f(TEXT) RETURNS SETOF RECORD LANGUAGE SQL AS $$ SELECT $2 $$", "no parameter $2"),
        ] {
            let error = functions(sql).unwrap_err();
            assert!(error.contains(told), "{sql}: {error}");
        }
        let endless =
            functions("CREATE FUNCTION f() RETURNS SETOF RECORD LANGUAGE SQL AS $$ SELECT * FROM f() $$").unwrap();
        assert!(expanded("SELECT * FROM f()", &endless).unwrap_err().contains("without end"));
    }
}
