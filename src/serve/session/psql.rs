//! What psql's and drivers' catalog queries ask for and neither the engine nor the system tables have.
//!
//! Only queries that name PostgreSQL's catalog come here, and only parts that describe what this server does
//! not keep: access lists, storage options, memberships, sequences, indices. They become NULL, which psql prints as
//! nothing.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, AccessExpr, Expr, FunctionArguments, GroupByExpr, SelectItem, SetExpr, Statement, TableFactor, Value,
    Visit, VisitMut, Visitor, VisitorMut,
};

pub(super) fn without_unknowns(mut statement: Statement) -> Statement {
    let _ = VisitMut::visit(&mut statement, &mut Unknowns);
    statement
}

struct Unknowns;

impl VisitorMut for Unknowns {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut ast::Query) -> ControlFlow<()> {
        if let SetExpr::Select(select) = query.body.as_mut() {
            name_columns(&mut select.projection);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::CompoundIdentifier(_) if is_access_list(expr) => {
                *expr = null_text();
                return ControlFlow::Continue(());
            }
            // `(keys).x`: a part of what lists the columns of an index.
            Expr::CompoundFieldAccess { root, access_chain }
                if matches!(root.as_ref(), Expr::Nested(_))
                    && matches!(access_chain.as_slice(), [AccessExpr::Dot(_)]) =>
            {
                *expr = null_of(ast::DataType::Integer(None));
                return ControlFlow::Continue(());
            }
            Expr::Subquery(query) => {
                if of_sequences(query) {
                    *expr = null_text();
                } else {
                    one_row(query);
                }
                return ControlFlow::Continue(());
            }
            _ => {}
        }
        let Expr::Function(function) = expr else { return ControlFlow::Continue(()) };
        let name = function.name.0.last().and_then(|part| part.as_ident());
        let Some(name) = name.map(|name| name.value.to_lowercase()) else { return ControlFlow::Continue(()) };
        let unknown = match name.as_str() {
            // `array(SELECT ...)`
            "array" => matches!(function.args, FunctionArguments::Subquery(_)),
            "array_to_string" => mentions_unknown(&function.args),
            _ => false,
        };
        if unknown {
            *expr = null_text();
        } else if name == "_pg_expandarray" {
            *expr = null_of(ast::DataType::Integer(None));
        } else if name == "unnest" && mentions(&function.args, &["key", "indclass", "indoption"]) {
            function.args = list_of_nothing();
        }
        ControlFlow::Continue(())
    }
}

/// PostgreSQL's own `acl` columns, which its system tables here do not have.
fn is_access_list(expr: &Expr) -> bool {
    match expr {
        Expr::CompoundIdentifier(words) => {
            words.last().is_some_and(|word| ["relacl", "attacl"].contains(&word.value.to_lowercase().as_str()))
        }
        _ => false,
    }
}

/// Columns that become NULL keep their names, and columns that are NULL get one each: the engine wants them to differ.
fn name_columns(projection: &mut [SelectItem]) {
    for (index, item) in projection.iter_mut().enumerate() {
        let SelectItem::UnnamedExpr(expr) = item else { continue };
        let name = match &*expr {
            Expr::Value(value) if value.value == Value::Null => format!("column{}", index + 1),
            Expr::CompoundIdentifier(words) if is_access_list(expr) => {
                words.last().map(|word| word.value.clone()).unwrap_or_default()
            }
            _ => continue,
        };
        *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: ast::Ident::new(name) };
    }
}

/// Whether a subquery describes an identity column: there are none.
fn of_sequences(query: &ast::Query) -> bool {
    let SetExpr::Select(select) = query.body.as_ref() else { return false };
    let mut tables = select
        .from
        .iter()
        .flat_map(|from| std::iter::once(&from.relation).chain(from.joins.iter().map(|join| &join.relation)));
    tables.any(|table| match table {
        TableFactor::Table { name, .. } => {
            name.0.last().and_then(|part| part.as_ident()).is_some_and(|name| name.value == "pg_sequence")
        }
        _ => false,
    })
}

/// The engine wants to see that a subquery gives no more than one row, which PostgreSQL finds out.
fn one_row(query: &mut ast::Query) {
    let ungrouped = |group: &GroupByExpr| matches!(group, GroupByExpr::Expressions(by, _) if by.is_empty());
    if query.limit_clause.is_some() || query.with.is_some() {
        return;
    }
    let SetExpr::Select(select) = query.body.as_mut() else { return };
    if select.distinct.is_some() || !ungrouped(&select.group_by) || select.from.is_empty() {
        return;
    }
    let [SelectItem::UnnamedExpr(value) | SelectItem::ExprWithAlias { expr: value, .. }] =
        select.projection.as_mut_slice()
    else {
        return;
    };
    // What may be an aggregate already is left alone.
    if !matches!(value, Expr::Function(_)) {
        *value = call("max", value.clone());
        query.order_by = None;
    }
}

fn call(name: &str, argument: Expr) -> Expr {
    Expr::Function(ast::Function {
        name: ast::ObjectName::from(vec![ast::Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: list(argument),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

fn list(argument: Expr) -> FunctionArguments {
    FunctionArguments::List(ast::FunctionArgumentList {
        duplicate_treatment: None,
        args: vec![ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(argument))],
        clauses: Vec::new(),
    })
}

fn list_of_nothing() -> FunctionArguments {
    list(call("make_array", null_of(ast::DataType::Integer(None))))
}

fn mentions_unknown(args: &FunctionArguments) -> bool {
    mentions(args, &["acl", "options", "config"])
}

/// Whether a column is named whose name ends so, or there is a subquery.
fn mentions(args: &FunctionArguments, ends: &[&str]) -> bool {
    struct Found<'a>(bool, &'a [&'a str]);
    impl Visitor for Found<'_> {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            let word = match expr {
                Expr::Identifier(word) => Some(word),
                Expr::CompoundIdentifier(words) => words.last(),
                Expr::Function(function) if matches!(function.args, FunctionArguments::Subquery(_)) => {
                    self.0 = true;
                    None
                }
                _ => None,
            };
            if let Some(word) = word {
                let word = word.value.to_lowercase();
                self.0 |= self.1.iter().any(|end| word.ends_with(end));
            }
            if self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }
    let mut found = Found(false, ends);
    let _ = Visit::visit(args, &mut found);
    found.0
}

fn null_text() -> Expr {
    null_of(ast::DataType::Text)
}

fn null_of(data_type: ast::DataType) -> Expr {
    Expr::Cast {
        kind: ast::CastKind::DoubleColon,
        expr: Box::new(Expr::Value(Value::Null.with_empty_span())),
        data_type,
        array: false,
        format: None,
    }
}
