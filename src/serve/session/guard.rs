//! The allow-list over logical plans: the second line after the one over statements.

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;

use crate::serve::error::QueryError;

/// Ok when every node of `plan`, subqueries included, only reads.
pub(super) fn check(plan: &LogicalPlan) -> Result<(), QueryError> {
    let mut refused = None;
    plan.apply_with_subqueries(|node| {
        refused = refusal(node);
        Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    match refused {
        Some(what) => Err(QueryError::refused(what)),
        None => Ok(()),
    }
}

/// Every node that reads is named here; a node that a later release adds is refused until someone looks.
fn refusal(node: &LogicalPlan) -> Option<&'static str> {
    match node {
        LogicalPlan::Projection(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::Window(_)
        | LogicalPlan::Aggregate(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Join(_)
        | LogicalPlan::Repartition(_)
        | LogicalPlan::Union(_)
        | LogicalPlan::TableScan(_)
        | LogicalPlan::EmptyRelation(_)
        | LogicalPlan::Subquery(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Values(_)
        | LogicalPlan::Explain(_)
        | LogicalPlan::Analyze(_)
        | LogicalPlan::Distinct(_)
        | LogicalPlan::DescribeTable(_)
        | LogicalPlan::Unnest(_)
        | LogicalPlan::RecursiveQuery(_) => None,
        LogicalPlan::Dml(_) => Some("writing to a table"),
        LogicalPlan::Ddl(_) => Some("changing the catalog"),
        LogicalPlan::Copy(_) => Some("COPY to the server's files"),
        LogicalPlan::Statement(_) => Some("this statement"),
        LogicalPlan::Extension(_) => Some("an extension node"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use datafusion::prelude::SessionContext;

    use super::*;

    #[tokio::test]
    async fn only_reading_plans_pass() {
        let context = SessionContext::new();
        let state = context.state();
        context.sql("CREATE TABLE t AS VALUES (1)").await.unwrap();
        for (sql, passes) in [
            ("SELECT * FROM t WHERE column1 IN (SELECT 1)", true),
            ("EXPLAIN ANALYZE SELECT 1", true),
            ("COPY t TO '/tmp/never.parquet'", false),
            ("EXPLAIN COPY t TO '/tmp/never.parquet'", false),
            ("EXPLAIN ANALYZE COPY t TO '/tmp/never.parquet'", false),
            ("CREATE EXTERNAL TABLE f STORED AS PARQUET LOCATION '/tmp/x'", false),
            ("INSERT INTO t VALUES (2)", false),
            ("DROP TABLE t", false),
            ("SET datafusion.execution.batch_size = 1", false),
        ] {
            let plan = state.create_logical_plan(sql).await.unwrap();
            assert_eq!(check(&plan).is_ok(), passes, "{sql}");
        }
    }
}
