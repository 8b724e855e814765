//! Column names as PostgreSQL gives them: `count`, not the engine's `count(*)`; `?column?` for the nameless.

use datafusion::sql::sqlparser::ast::{self, Expr, ObjectName, SelectItem, SetExpr};

/// The names of a query's columns that its text leaves to the server; None keeps the engine's.
/// Empty when the text alone does not tell how many columns there are.
pub(super) fn shown_names(statement: &ast::Statement) -> Vec<Option<String>> {
    let ast::Statement::Query(query) = statement else { return Vec::new() };
    let mut body = query.body.as_ref();
    // A set operation takes its names from its first part.
    let select = loop {
        match body {
            SetExpr::Select(select) => break select,
            SetExpr::SetOperation { left, .. } => body = left,
            SetExpr::Query(inner) => body = inner.body.as_ref(),
            _ => return Vec::new(),
        }
    };
    let mut names = Vec::with_capacity(select.projection.len());
    for item in &select.projection {
        match item {
            SelectItem::UnnamedExpr(expr) => names.push(given(expr)),
            SelectItem::ExprWithAlias { .. } => names.push(None),
            _ => return Vec::new(),
        }
    }
    names
}

fn given(expr: &Expr) -> Option<String> {
    match expr {
        // The engine's own names are right.
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) => None,
        other => Some(name_of(other).unwrap_or_else(|| "?column?".to_owned())),
    }
}

/// PostgreSQL's FigureColname, for the expressions that clients write.
fn name_of(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(word) => Some(word.value.to_lowercase()),
        Expr::CompoundIdentifier(words) => words.last().map(|word| word.value.to_lowercase()),
        Expr::Function(function) => last(&function.name),
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => name_of(inner),
        Expr::Cast { expr, data_type, .. } => name_of(expr).or_else(|| {
            let name = data_type.to_string().to_lowercase();
            let name = name.split('(').next().unwrap_or_default().trim().to_owned();
            Some(match name.as_str() {
                "int" | "integer" => "int4".to_owned(),
                "bigint" => "int8".to_owned(),
                "smallint" => "int2".to_owned(),
                "boolean" => "bool".to_owned(),
                "double precision" | "float" => "float8".to_owned(),
                "timestamp with time zone" => "timestamptz".to_owned(),
                _ => name,
            })
        }),
        Expr::Case { else_result: Some(result), .. } => Some(name_of(result).unwrap_or_else(|| "case".to_owned())),
        Expr::Case { .. } => Some("case".to_owned()),
        Expr::Array(_) => Some("array".to_owned()),
        Expr::Exists { .. } => Some("exists".to_owned()),
        Expr::Extract { .. } => Some("extract".to_owned()),
        Expr::Substring { .. } => Some("substring".to_owned()),
        Expr::Position { .. } => Some("position".to_owned()),
        Expr::Trim { .. } => Some("btrim".to_owned()),
        Expr::Ceil { .. } => Some("ceil".to_owned()),
        Expr::Floor { .. } => Some("floor".to_owned()),
        _ => None,
    }
}

fn last(name: &ObjectName) -> Option<String> {
    name.0.last().and_then(|part| part.as_ident()).map(|word| word.value.to_lowercase())
}
