//! From a parsed statement to its plan over what is pinned, and the types of its parameters and results.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::{DataType, Int32Type, SchemaRef};
use datafusion::catalog::CatalogProvider;
use datafusion::common::ParamValues;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, cast as cast_expr, col};
use datafusion::prelude::SessionContext;
use datafusion_pg_catalog::sql::rules::{SqlStatementRewriteRule, StripCallableQualifier};

use super::by_key::same_types;
use super::functions::{self, Identity, Relation};
use super::policy::Rights;
use super::run::{Planned, Work};
use super::statement::Query;
use super::{QueryService, Session, Settings, guard};
use crate::catalog::function::expand;
use crate::serve::access_log::entry::Entry;
use crate::serve::error::{QueryError, SqlState};

impl Session {
    pub(super) async fn plan(
        &mut self,
        query: &Query,
        parameters: Option<ParamValues>,
    ) -> Result<Planned, QueryError> {
        let pinned = self.pin()?;
        self.plan_over(pinned, query, parameters).await
    }

    /// The plan of a query; of a statement that changes a table, of the rows that it changes.
    pub(super) async fn plan_over(
        &self,
        pinned: Arc<dyn CatalogProvider>,
        query: &Query,
        parameters: Option<ParamValues>,
    ) -> Result<Planned, QueryError> {
        self.plan_as(self.rights()?, pinned, query, parameters).await
    }

    pub(super) async fn plan_as(
        &self,
        rights: Rights,
        pinned: Arc<dyn CatalogProvider>,
        query: &Query,
        parameters: Option<ParamValues>,
    ) -> Result<Planned, QueryError> {
        self.planner().plan(rights, pinned, query, parameters).await
    }

    pub(super) fn planner(&self) -> Planner {
        Planner {
            service: Arc::clone(&self.service),
            settings: Arc::clone(&self.settings),
            identity: self.identity.clone(),
        }
    }
}

/// Plans for one session.
pub(super) struct Planner {
    pub(super) service: Arc<QueryService>,
    pub(super) settings: Arc<Settings>,
    pub(super) identity: Identity,
}

impl Planner {
    pub(super) async fn plan(
        &self,
        rights: Rights,
        pinned: Arc<dyn CatalogProvider>,
        query: &Query,
        parameters: Option<ParamValues>,
    ) -> Result<Planned, QueryError> {
        let Self { service, settings, identity } = self;
        let (service, settings, identity) = (Arc::clone(service), Arc::clone(settings), identity.clone());
        let query = query.clone();
        Work::start(&self.service.queries, async move {
            let mut state = service.template.clone();
            let default_schema = settings.default_schema();
            let (catalogs, named) = service.system.over(&pinned, &rights, &settings);
            state.register_catalog_list(catalogs);
            state.config_mut().options_mut().catalog.default_schema.clone_from(&default_schema);
            functions::register_session(&mut state, &identity, &settings, &default_schema)?;
            for (name, function) in service.database.table_functions(pinned.as_ref()) {
                state.register_udtf(&name, rights.guarded(function));
            }
            if query.catalog {
                let relations = relations(&state).await?;
                let database = &service.database;
                functions::register_relations(&mut state, &relations, &default_schema, |relation| {
                    database.comment(&relation.schema, &relation.table)
                })?;
            }
            state.mark_start_execution();
            let mut statement = query.ast.as_ref().clone();
            expand(&mut statement, &service.database.functions(pinned.as_ref()))
                .map_err(|reason| QueryError::new(SqlState::UNDEFINED_FUNCTION, reason))?;
            // The engine knows its own functions without a schema.
            let statement = StripCallableQualifier.rewrite(statement);
            let plan = state
                .statement_to_plan(datafusion::sql::parser::Statement::Statement(Box::new(statement)))
                .await
                .map_err(|error| {
                    let shown = QueryError::of(&error);
                    if query.catalog { shown } else { shown.located(&query.sql, &error) }
                })?;
            let plan = match plan {
                LogicalPlan::Dml(change) if matches!(query.tag, "INSERT" | "UPDATE" | "DELETE") => {
                    change.input.as_ref().clone()
                }
                plan => plan,
            };
            guard::check(&plan)?;
            rights.read(&query, &named, &default_schema)?;
            let plan = match parameters {
                Some(values) => plan.with_param_values(values)?,
                None => plan,
            };
            Ok(Planned { plan, state, pinned, entry: Entry::default(), turn: None, begun: None })
        })
        .finish()
        .await?
    }
}

/// `$1`, `$2`, ... in order, with the types that the planner found.
pub(super) fn parameter_types(query: &Query, plan: &LogicalPlan) -> Result<Vec<Option<DataType>>, QueryError> {
    let mut numbered = BTreeMap::new();
    let found = plan.get_parameter_types()?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let (declared, arrays) = (query.declared_parameters(), array_parameters(plan)?);
    for (name, data_type) in found {
        let data_type = declared.get(&name).cloned().or(data_type).or_else(|| arrays.get(&name).cloned());
        let number = name.strip_prefix('$').and_then(|number| number.parse::<usize>().ok());
        let Some(number @ 1..=65_535) = number else {
            return Err(QueryError::new(SqlState::SYNTAX, format!("there is no parameter {name}")));
        };
        numbered.insert(number, data_type);
    }
    let last = numbered.keys().next_back().copied().unwrap_or(0);
    Ok((1..=last).map(|number| numbered.get(&number).cloned().flatten()).collect())
}

/// The types of parameters that stand for arrays, as in `x = ANY($1)`, of which the planner says nothing: taken for a text,
/// no value would be found in one.
fn array_parameters(plan: &LogicalPlan) -> Result<BTreeMap<String, DataType>, QueryError> {
    let mut arrays = BTreeMap::new();
    plan.apply_with_subqueries(|node| {
        let inputs = node.inputs();
        let Some(schema) = inputs.first().map(|input| input.schema()) else {
            return Ok(TreeNodeRecursion::Continue);
        };
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::ScalarFunction(call) = expr
                    && call.name() == "array_has"
                    && let [Expr::Placeholder(array), value] = call.args.as_slice()
                    && let Ok(item) = value.get_type(schema.as_ref())
                {
                    arrays.insert(array.id.clone(), DataType::new_list(item, true));
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(arrays)
}

/// Casts a result to the types that were described before its parameters had values.
pub(super) fn keep_promise(planned: Planned, promised: &SchemaRef) -> Result<Planned, QueryError> {
    let own = planned.plan.schema();
    if own.fields().len() != promised.fields().len() {
        return Err(QueryError::new(SqlState::FEATURE_NOT_SUPPORTED, "cached plan must not change result type"));
    }
    if same_types(own.inner(), promised) {
        return Ok(planned);
    }
    let casts: Vec<Expr> = own
        .columns()
        .into_iter()
        .zip(own.fields().iter().zip(promised.fields()))
        .map(|(column, (has, wants))| {
            let name = column.name.clone();
            let expr = Expr::Column(column);
            if has.data_type() == wants.data_type() || wants.data_type() == &DataType::Null {
                expr
            } else {
                cast_expr(expr, wants.data_type().clone()).alias(name)
            }
        })
        .collect();
    let plan = LogicalPlanBuilder::from(planned.plan).project(casts)?.build()?;
    // What runs already has other types.
    Ok(Planned { plan, begun: None, ..planned })
}

/// Every relation with its number, for functions that are asked about numbers.
async fn relations(state: &SessionState) -> Result<Vec<Relation>, QueryError> {
    let context = SessionContext::new_with_state(state.clone());
    let namespaces = context
        .table("pg_catalog.pg_namespace")
        .await?
        .select(vec![col("oid").alias("namespace"), col("nspname")])?;
    let classes = context.table("pg_catalog.pg_class").await?.select(vec![
        col("oid"),
        col("relname"),
        col("relnamespace"),
    ])?;
    let joined =
        classes.join(namespaces, datafusion::common::JoinType::Inner, &["relnamespace"], &["namespace"], None)?;
    let batches = joined.select_columns(&["oid", "nspname", "relname"])?.collect().await?;
    let mut found = Vec::new();
    for batch in &batches {
        let oids = batch.column(0).as_primitive::<Int32Type>();
        let (schemas, tables) = (batch.column(1).as_string::<i32>(), batch.column(2).as_string::<i32>());
        for row in 0..batch.num_rows() {
            found.push(Relation {
                oid: oids.value(row),
                schema: schemas.value(row).to_owned(),
                table: tables.value(row).to_owned(),
            });
        }
    }
    Ok(found)
}
