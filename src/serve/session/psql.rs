//! What psql's and drivers' catalog queries ask for and neither the engine nor the system tables have.
//!
//! Only queries that name PostgreSQL's catalog come here, and only parts that describe what this server does
//! not keep: access lists, storage options, memberships, defaults, sequences, collations, indices. They become NULL, which psql
//! prints as nothing.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, AccessExpr, BinaryOperator, Expr, FunctionArguments, GroupByExpr, SelectItem, SetExpr, Statement,
    TableFactor, Value, Visit, VisitMut, Visitor, VisitorMut,
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
            if splits_search_path(select) {
                select.from.clear();
                select.projection = vec![SelectItem::UnnamedExpr(call("current_schema", []))];
            }
            name_columns(&mut select.projection);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::CompoundIdentifier(words) => {
                if let Some(unkept) = unkept(words) {
                    *expr = unkept;
                }
                return ControlFlow::Continue(());
            }
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right } if is_oid_of_name(left, right) => {
                rename(left, "proname");
                return ControlFlow::Continue(());
            }
            Expr::BinaryOp { left, op: BinaryOperator::Eq | BinaryOperator::NotEq, right }
                if last_word(left).is_some_and(|word| is_flag(&word)) && truth_of(right).is_some() =>
            {
                let truth = truth_of(right).unwrap_or_default();
                **right = Expr::Value(Value::Boolean(truth).with_empty_span());
                return ControlFlow::Continue(());
            }
            // The system table has names of functions, where the rewrites before have made an oid of `'array_in'::regproc`.
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right }
                if matches!(right.as_ref(), Expr::Subquery(_))
                    && last_word(left).as_deref() == Some("typinput") =>
            {
                **right = Expr::Value(Value::SingleQuotedString("array_in".to_owned()).with_empty_span());
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
            // A part of a key.
            Expr::CompoundFieldAccess { root, access_chain }
                if match access_chain.as_slice() {
                    [AccessExpr::Subscript(_)] => last_word(root).is_some_and(|word| of_keys(&word)),
                    [AccessExpr::Dot(column), AccessExpr::Subscript(_)] => {
                        last_word(column).is_some_and(|word| of_keys(&word))
                    }
                    _ => false,
                } =>
            {
                *expr = null_of(ast::DataType::Integer(None));
                return ControlFlow::Continue(());
            }
            Expr::Subquery(query) => {
                if of_unkept(query) {
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
        if unknown || name == "col_description" {
            *expr = null_text();
        } else if name == "pg_postmaster_start_time" {
            *expr = null_of(ast::DataType::Timestamp(None, ast::TimezoneInfo::WithTimeZone));
        } else if name == "_pg_expandarray" {
            *expr = null_of(ast::DataType::Integer(None));
        } else if matches!(name.as_str(), "unnest" | "generate_subscripts") && mentions(&function.args, of_keys) {
            // Both give a row for each part.
            function.name = ast::ObjectName::from(vec![ast::Ident::new("unnest")]);
            function.args = list_of_nothing();
        }
        ControlFlow::Continue(())
    }
}

fn last_word(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(word) => Some(word),
        Expr::CompoundIdentifier(words) => words.last(),
        _ => None,
    }
    .map(|word| word.value.to_lowercase())
}

/// What stands for columns that PostgreSQL's system tables have and those here do not.
fn unkept(words: &[ast::Ident]) -> Option<Expr> {
    let last = words.last()?.value.to_lowercase();
    match last.as_str() {
        "relacl" | "attacl" => Some(null_text()),
        "reloptions" => Some(null_of(ast::DataType::Array(ast::ArrayElemTypeDef::SquareBracket(
            Box::new(ast::DataType::Text),
            None,
        )))),
        "tableoid" | "xmin" => Some(null_of(ast::DataType::Integer(None))),
        // As it was called until PostgreSQL 16.
        "colliculocale" => {
            let mut words = words.to_vec();
            words.last_mut()?.value = "colllocale".to_owned();
            Some(Expr::CompoundIdentifier(words))
        }
        _ => None,
    }
}

/// Grafana's way to the schemas of the search path, which takes it apart with functions in FROM.
fn splits_search_path(select: &ast::Select) -> bool {
    select.from.iter().any(|from| match &from.relation {
        TableFactor::Table { name, args: Some(_), .. } => {
            name.0.last().and_then(|part| part.as_ident()).is_some_and(|name| name.value == "string_to_array")
        }
        _ => false,
    })
}

/// `pg_proc.oid = pg_type.typreceive`, which has the name of the function here.
fn is_oid_of_name(left: &Expr, right: &Expr) -> bool {
    let of_type = ["typinput", "typoutput", "typreceive", "typsend"];
    last_word(left).as_deref() == Some("oid")
        && last_word(right).is_some_and(|word| of_type.contains(&word.as_str()))
}

fn rename(column: &mut Expr, name: &str) {
    match column {
        Expr::Identifier(word) => name.clone_into(&mut word.value),
        Expr::CompoundIdentifier(words) => {
            if let Some(word) = words.last_mut() {
                name.clone_into(&mut word.value);
            }
        }
        _ => {}
    }
}

fn is_flag(word: &str) -> bool {
    ["indis", "attis", "atthas", "relhas", "relis", "datis"].iter().any(|begin| word.starts_with(begin))
}

/// A flag as a text, which the engine does not compare with one.
fn truth_of(expr: &Expr) -> Option<bool> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) if text == "t" || text == "true" => Some(true),
            Value::SingleQuotedString(text) if text == "f" || text == "false" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// Columns that become NULL keep their names, and columns that are NULL get one each: the engine wants them to differ.
fn name_columns(projection: &mut [SelectItem]) {
    for (index, item) in projection.iter_mut().enumerate() {
        let SelectItem::UnnamedExpr(expr) = item else { continue };
        let name = match &*expr {
            Expr::Value(value) if value.value == Value::Null => format!("column{}", index + 1),
            Expr::CompoundIdentifier(words) if unkept(words).is_some() => {
                words.last().map(|word| word.value.clone()).unwrap_or_default()
            }
            _ => continue,
        };
        *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: ast::Ident::new(name) };
    }
}

/// Whether a subquery describes a default, an identity column or a collation: there are none.
fn of_unkept(query: &ast::Query) -> bool {
    let SetExpr::Select(select) = query.body.as_ref() else { return false };
    if let [SelectItem::UnnamedExpr(value)] = select.projection.as_slice()
        && last_word(value).as_deref() == Some("typcollation")
    {
        return true;
    }
    let mut tables = select
        .from
        .iter()
        .flat_map(|from| std::iter::once(&from.relation).chain(from.joins.iter().map(|join| &join.relation)));
    tables.any(|table| match table {
        TableFactor::Table { name, .. } => {
            let name = name.0.last().and_then(|part| part.as_ident()).map(|name| name.value.as_str());
            matches!(name, Some("pg_sequence" | "pg_collation" | "pg_attrdef"))
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
    let may_aggregate = match value {
        Expr::Function(function) => !function
            .name
            .0
            .last()
            .and_then(|part| part.as_ident())
            .is_some_and(|name| name.value.to_lowercase().starts_with("pg_get_")),
        _ => false,
    };
    if !may_aggregate {
        *value = call("max", [value.clone()]);
        query.order_by = None;
    }
}

pub(super) fn call<const N: usize>(name: &str, arguments: [Expr; N]) -> Expr {
    Expr::Function(ast::Function {
        name: ast::ObjectName::from(vec![ast::Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: list(arguments),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

fn list<const N: usize>(arguments: [Expr; N]) -> FunctionArguments {
    FunctionArguments::List(ast::FunctionArgumentList {
        duplicate_treatment: None,
        args: arguments.map(|argument| ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(argument))).into(),
        clauses: Vec::new(),
    })
}

fn list_of_nothing() -> FunctionArguments {
    list([call("make_array", [null_of(ast::DataType::Integer(None))])])
}

fn mentions_unknown(args: &FunctionArguments) -> bool {
    mentions(args, |word| ["acl", "options", "config"].iter().any(|end| word.ends_with(end)))
}

/// Columns of keys and indices.
fn of_keys(word: &str) -> bool {
    ["key", "indclass", "indoption", "indcollation", "conexclop"].iter().any(|end| word.ends_with(end))
}

/// Whether such a column is named, or there is a subquery.
fn mentions(args: &FunctionArguments, such: fn(&str) -> bool) -> bool {
    struct Found(bool, fn(&str) -> bool);
    impl Visitor for Found {
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
                self.0 |= self.1(&word.value.to_lowercase());
            }
            if self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }
    let mut found = Found(false, such);
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
