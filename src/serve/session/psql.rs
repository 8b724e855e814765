//! What psql's catalog queries ask for and neither the engine nor the system tables have.
//!
//! Only queries that name PostgreSQL's catalog come here, and only parts that describe what this server does
//! not keep: access lists, storage options, memberships. They become NULL, which psql prints as nothing.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, Expr, FunctionArguments, Statement, Value, Visit, VisitMut, Visitor, VisitorMut,
};

pub(super) fn without_unknowns(mut statement: Statement) -> Statement {
    let _ = VisitMut::visit(&mut statement, &mut Unknowns);
    statement
}

struct Unknowns;

impl VisitorMut for Unknowns {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
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
        }
        ControlFlow::Continue(())
    }
}

fn mentions_unknown(args: &FunctionArguments) -> bool {
    struct Found(bool);
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
                let word = word.value.to_lowercase();
                self.0 |= ["acl", "options", "config"].iter().any(|end| word.ends_with(end));
            }
            if self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }
    let mut found = Found(false);
    let _ = Visit::visit(args, &mut found);
    found.0
}

fn null_text() -> Expr {
    Expr::Cast {
        kind: ast::CastKind::DoubleColon,
        expr: Box::new(Expr::Value(Value::Null.with_empty_span())),
        data_type: ast::DataType::Text,
        array: false,
        format: None,
    }
}
