//! `view_diff('view', 1, 2)`: the groups on which two versions of a view differ, over the same records.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::catalog::{TableFunctionImpl, TableProvider};
use datafusion::common::{Column, JoinType, NullEquality, Result, ScalarValue, plan_err};
use datafusion::datasource::provider_as_source;
use datafusion::functions::core::expr_fn::coalesce;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, Operator, binary_expr, lit};

use super::catalog::{PinnedCatalog, VersionTable};
use super::provider::PlanTable;

const LEFT: &str = "a";
const RIGHT: &str = "b";
/// A column that is true where a side has the group.
const PRESENT: &str = "_present";

/// The function over one pinned snapshot.
#[derive(Debug)]
pub struct ViewDiff {
    catalog: PinnedCatalog,
}

impl ViewDiff {
    pub const NAME: &str = "view_diff";

    pub fn over(catalog: &PinnedCatalog) -> Self {
        Self { catalog: catalog.clone() }
    }
}

impl TableFunctionImpl for ViewDiff {
    fn call(&self, args: &[Expr]) -> Result<Arc<dyn TableProvider>> {
        let [view, first, second] = args else {
            return plan_err!("view_diff takes a view and the numbers of two versions: view_diff('views', 1, 2)");
        };
        let Expr::Literal(ScalarValue::Utf8(Some(view)) | ScalarValue::Utf8View(Some(view)), _) = view else {
            return plan_err!("view_diff takes the name of a view as a text, not {view}");
        };
        let (first, second) = (number(first)?, number(second)?);
        if first == second {
            return plan_err!("view_diff compares two versions, and {first} is one");
        }
        let plan = difference(view, first, self.version(view, first)?, second, self.version(view, second)?)?;
        Ok(Arc::new(PlanTable::new(plan)))
    }
}

impl ViewDiff {
    fn version(&self, view: &str, number: u32) -> Result<VersionTable> {
        match self.catalog.version_table(view, number)? {
            Some(table) => Ok(table),
            None => plan_err!(
                "version {number} of view {view} is not kept up to date: see system.view_versions, and build it \
                 with CREATE OR REPLACE MATERIALIZED VIEW"
            ),
        }
    }
}

fn number(expr: &Expr) -> Result<u32> {
    let number = match expr {
        Expr::Literal(value, _) => value.to_string().parse().ok(),
        _ => None,
    };
    match number {
        Some(number) => Ok(number),
        None => plan_err!("view_diff takes the number of a version, not {expr}"),
    }
}

/// The group key, then each column of either version with the version's number behind its name; of groups whose values
/// are not the same, or that only one version has.
fn difference(view: &str, first: u32, left: VersionTable, second: u32, right: VersionTable) -> Result<LogicalPlan> {
    if left.keys != right.keys {
        return plan_err!(
            "view {view} is grouped by {} in version {first} and by {} in version {second}: there are no groups to \
             compare",
            left.keys.join(", "),
            right.keys.join(", ")
        );
    }
    let keys = left.keys;
    let scan = |table, alias| LogicalPlanBuilder::scan(alias, provider_as_source(table), None);
    let (left, right) = (scan(left.table, LEFT)?, scan(right.table, RIGHT)?);
    let names = |plan: &LogicalPlanBuilder| -> Vec<String> {
        let fields = plan.schema().fields().iter().map(|field| field.name().clone());
        fields.filter(|name| !keys.contains(name)).collect()
    };
    let (mine, theirs) = (names(&left), names(&right));
    let column = |side: &str, name: &str| Expr::Column(Column::new(Some(side), name));
    // Whether a side has the group: its columns may all be NULL.
    let present = |plan: LogicalPlanBuilder, side: &str| -> Result<LogicalPlanBuilder> {
        let columns: Vec<Expr> = plan.schema().columns().into_iter().map(Expr::Column).collect();
        let columns = columns.into_iter().chain([lit(true).alias_qualified(Some(side), PRESENT)]);
        plan.project(columns)
    };
    let (left, right) = (present(left, LEFT)?, present(right, RIGHT)?.build()?);
    let on = |side: &str| keys.iter().map(|key| Column::new(Some(side), key)).collect::<Vec<_>>();
    let joined = match keys.is_empty() {
        true => left.cross_join(right)?,
        false => {
            left.join_detailed(right, JoinType::Full, (on(LEFT), on(RIGHT)), None, NullEquality::NullEqualsNull)?
        }
    };
    let distinct = |name: &str| binary_expr(column(LEFT, name), Operator::IsDistinctFrom, column(RIGHT, name));
    let theirs_too: BTreeSet<&String> = theirs.iter().collect();
    let differs = mine.iter().filter(|name| theirs_too.contains(name)).map(|name| distinct(name));
    let differs = differs.fold(distinct(PRESENT), Expr::or);
    let mut shown: Vec<Expr> =
        keys.iter().map(|key| coalesce(vec![column(LEFT, key), column(RIGHT, key)]).alias(key)).collect();
    for name in &mine {
        shown.push(column(LEFT, name).alias(format!("{name}_{first}")));
        if theirs_too.contains(name) {
            shown.push(column(RIGHT, name).alias(format!("{name}_{second}")));
        }
    }
    let only_theirs = theirs.iter().filter(|name| !mine.contains(name));
    shown.extend(only_theirs.map(|name| column(RIGHT, name).alias(format!("{name}_{second}"))));
    joined.filter(differs)?.project(shown)?.build()
}
