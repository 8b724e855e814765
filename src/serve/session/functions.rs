//! Functions that clients of PostgreSQL call about the server, the session and the catalog.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, BooleanBuilder, Int32Builder, StringBuilder};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::utils::quote_identifier;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::FunctionRegistry;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use datafusion::prelude::SessionContext;

use super::settings::{SERVER_VERSION, Settings};
use super::statement::SetScope;
use crate::serve::error::{QueryError, SqlState};

/// One relation as the system tables number it.
#[derive(Debug, Clone)]
pub struct Relation {
    pub oid: i32,
    pub schema: String,
    pub table: String,
}

/// Who asks: what the functions about the session answer.
#[derive(Debug, Clone)]
pub struct Identity {
    pub user: String,
    pub backend: i32,
}

/// The functions that answer the same for everybody.
pub fn register_fixed(context: &SessionContext) {
    let register = |function: Function| context.register_udf(ScalarUDF::new_from_impl(function));
    register(Function::text("version", |_| {
        Ok(Some(format!("PostgreSQL {SERVER_VERSION}, DataFusion {}", datafusion::DATAFUSION_VERSION)))
    }));
    register(Function::text("getdatabaseencoding", |_| Ok(Some("UTF8".to_owned()))));
    register(Function::flag("pg_is_in_recovery", |_| Ok(Some(false))));
    register(Function::flag("pg_is_wal_replay_paused", |_| Ok(Some(false))));
    // What there is nothing to say about is NULL, as for an object without it.
    for name in [
        "obj_description",
        "col_description",
        "shobj_description",
        "pg_get_viewdef",
        "pg_get_indexdef",
        "pg_get_ruledef",
        "pg_get_triggerdef",
        "pg_get_function_result",
        "pg_get_function_arguments",
        "pg_get_function_identity_arguments",
        "pg_get_functiondef",
        "pg_get_serial_sequence",
        "pg_tablespace_location",
        "pg_get_function_sqlbody",
        "pg_get_statisticsobjdef",
        "inet_server_addr",
        "inet_client_addr",
        "to_regtype",
        "pg_size_pretty",
    ] {
        register(Function::text(name, |_| Ok(None)));
    }
    for name in [
        "pg_function_is_visible",
        "pg_type_is_visible",
        "pg_operator_is_visible",
        "pg_opclass_is_visible",
        "pg_collation_is_visible",
        "pg_conversion_is_visible",
        "pg_ts_config_is_visible",
        "pg_ts_dict_is_visible",
        "pg_ts_parser_is_visible",
        "pg_ts_template_is_visible",
        "pg_opfamily_is_visible",
        "pg_statistics_obj_is_visible",
        "has_function_privilege",
        "has_column_privilege",
        "has_sequence_privilege",
        "has_type_privilege",
        "pg_has_role",
    ] {
        register(Function::flag(name, |_| Ok(Some(true))));
    }
    for name in [
        "age",
        "pg_table_size",
        "pg_indexes_size",
        "pg_database_size",
        "pg_tablespace_size",
        "pg_char_to_encoding",
        "to_regnamespace",
        "to_regproc",
        "to_regrole",
    ] {
        register(Function::number(name, |_| Ok(None)));
    }
    register(Function::text("pg_describe_object", |_| Ok(None)));
    register(Function::text("format", |args| match args {
        [Some(form), values @ ..] => formatted(form, values).map(Some),
        _ => Ok(None),
    }));
    register(Function::flag("pg_advisory_unlock", |_| Ok(Some(false))));
    register(Function::text("pg_advisory_unlock_all", |_| Ok(Some(String::new()))));
}

/// The functions that answer for one session.
pub fn register_session(
    state: &mut SessionState,
    identity: &Identity,
    settings: &Arc<Settings>,
    default_schema: &str,
) -> Result<()> {
    let mut register = |function| state.register_udf(Arc::new(ScalarUDF::new_from_impl(function))).map(drop);
    let schema = default_schema.to_owned();
    register(Function::text("current_schema", move |_| Ok(Some(schema.clone()))))?;
    for name in ["session_user", "current_user", "user", "current_role"] {
        let user = identity.user.clone();
        register(Function::text(name, move |_| Ok(Some(user.clone()))))?;
    }
    let backend = identity.backend;
    register(Function::number("pg_backend_pid", move |_| Ok(Some(backend))))?;
    let shown = Arc::clone(settings);
    register(Function::text("current_setting", move |args| {
        let [Some(name), rest @ ..] = args else { return Ok(None) };
        match shown.show(name) {
            Ok((_, value)) => Ok(Some(value)),
            Err(_) if matches!(rest, [Some(missing_ok)] if missing_ok == "true") => Ok(None),
            Err(error) => Err(external(error)),
        }
    }))?;
    let changed = Arc::clone(settings);
    register(Function::text("set_config", move |args| {
        let [Some(name), value, local] = args else { return Ok(None) };
        let scope = if local.as_deref() == Some("true") { SetScope::Local } else { SetScope::Session };
        changed.set(name, value.as_deref(), scope).map_err(external)?;
        changed.show(name).map(|(_, value)| Some(value)).map_err(external)
    }))
}

/// The functions about relations, for one statement that asks about them.
pub fn register_relations(
    state: &mut SessionState,
    relations: &[Relation],
    default_schema: &str,
    comment: impl Fn(&Relation) -> Option<String>,
) -> Result<()> {
    let visible: HashMap<String, bool> = relations
        .iter()
        .map(|relation| {
            let seen = relation.schema == default_schema || relation.schema == "pg_catalog";
            (relation.oid.to_string(), seen)
        })
        .collect();
    let comments: HashMap<String, String> =
        relations.iter().filter_map(|relation| Some((relation.oid.to_string(), comment(relation)?))).collect();
    let names: HashMap<String, i32> = relations
        .iter()
        .flat_map(|relation| {
            let qualified = (format!("{}.{}", relation.schema, relation.table), relation.oid);
            let bare = (relation.schema == default_schema || relation.schema == "pg_catalog")
                .then(|| (relation.table.clone(), relation.oid));
            [Some(qualified), bare].into_iter().flatten()
        })
        .collect();
    let mut register = |function| state.register_udf(Arc::new(ScalarUDF::new_from_impl(function))).map(drop);
    register(Function::flag("pg_table_is_visible", move |args| match args {
        [Some(oid)] => Ok(visible.get(oid).copied()),
        _ => Ok(None),
    }))?;
    register(Function::text("obj_description", move |args| match args {
        [Some(oid)] => Ok(comments.get(oid).cloned()),
        [Some(oid), Some(class)] if class == "pg_class" => Ok(comments.get(oid).cloned()),
        _ => Ok(None),
    }))?;
    register(Function::number("to_regclass", move |args| match args {
        [Some(name)] => Ok(names.get(name).copied()),
        _ => Ok(None),
    }))
}

/// PostgreSQL's `format`: `%s`, `%I`, `%L` and `%%`, without positions and widths.
fn formatted(form: &str, values: Row<'_>) -> Result<String> {
    let wrong = |reason: String| external(QueryError::new(SqlState::INVALID_PARAMETER, reason));
    let mut values = values.iter();
    let mut next = || values.next().ok_or_else(|| wrong("too few arguments for format()".to_owned()));
    let mut made = String::new();
    let mut letters = form.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            made.push(letter);
            continue;
        }
        match letters.next() {
            Some('%') => made.push('%'),
            Some('s') => made.push_str(next()?.as_deref().unwrap_or_default()),
            Some('I') => match next()? {
                Some(name) => made.push_str(&quote_identifier(name)),
                None => return Err(wrong("null values cannot be formatted as an SQL identifier".to_owned())),
            },
            Some('L') => match next()? {
                Some(value) => made.push_str(&format!("'{}'", value.replace('\'', "''"))),
                None => made.push_str("NULL"),
            },
            other => {
                let other = other.map(String::from).unwrap_or_default();
                return Err(wrong(format!("format() knows %s, %I, %L and %%, not %{other}")));
            }
        }
    }
    Ok(made)
}

fn external(error: QueryError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

type Row<'a> = &'a [Option<String>];
type Text = Arc<dyn Fn(Row<'_>) -> Result<Option<String>> + Send + Sync>;
type Flag = Arc<dyn Fn(Row<'_>) -> Result<Option<bool>> + Send + Sync>;
type Number = Arc<dyn Fn(Row<'_>) -> Result<Option<i32>> + Send + Sync>;

#[derive(Clone)]
enum Body {
    Text(Text),
    Flag(Flag),
    Number(Number),
}

/// Whether a function is one of these here, which may ask or change a session.
pub fn is_of_a_session(function: &ScalarUDF) -> bool {
    let function: &dyn Any = function.inner().as_ref();
    function.is::<Function>()
}

/// A function over texts, called once a row; any arguments are read as text. For catalog queries, which
/// are small.
struct Function {
    name: &'static str,
    signature: Signature,
    body: Body,
}

impl Function {
    fn new(name: &'static str, body: Body) -> Self {
        let any = TypeSignature::OneOf(vec![TypeSignature::Nullary, TypeSignature::VariadicAny]);
        Self { name, signature: Signature::new(any, Volatility::Stable), body }
    }

    fn text(name: &'static str, body: impl Fn(Row<'_>) -> Result<Option<String>> + Send + Sync + 'static) -> Self {
        Self::new(name, Body::Text(Arc::new(body)))
    }

    fn flag(name: &'static str, body: impl Fn(Row<'_>) -> Result<Option<bool>> + Send + Sync + 'static) -> Self {
        Self::new(name, Body::Flag(Arc::new(body)))
    }

    fn number(name: &'static str, body: impl Fn(Row<'_>) -> Result<Option<i32>> + Send + Sync + 'static) -> Self {
        Self::new(name, Body::Number(Arc::new(body)))
    }

    fn address(&self) -> usize {
        match &self.body {
            Body::Text(body) => Arc::as_ptr(body).cast::<()>() as usize,
            Body::Flag(body) => Arc::as_ptr(body).cast::<()>() as usize,
            Body::Number(body) => Arc::as_ptr(body).cast::<()>() as usize,
        }
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function").field("name", &self.name).finish_non_exhaustive()
    }
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.address() == other.address()
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
        self.address().hash(state);
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.body {
            Body::Text(_) => DataType::Utf8,
            Body::Flag(_) => DataType::Boolean,
            Body::Number(_) => DataType::Int32,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let columns: Vec<ArrayRef> = args.args.iter().map(|value| value.to_array(rows)).collect::<Result<_>>()?;
        let options = FormatOptions::default();
        let texts = columns.iter().map(|column| Ok(ArrayFormatter::try_new(column, &options)?));
        let texts: Vec<ArrayFormatter<'_>> = texts.collect::<Result<_>>()?;
        let row = |index: usize| -> Vec<Option<String>> {
            columns
                .iter()
                .zip(&texts)
                .map(|(column, text)| (!column.is_null(index)).then(|| text.value(index).to_string()))
                .collect()
        };
        let array: ArrayRef = match &self.body {
            Body::Text(body) => {
                let mut built = StringBuilder::new();
                for index in 0..rows {
                    built.append_option(body(&row(index))?);
                }
                Arc::new(built.finish())
            }
            Body::Flag(body) => {
                let mut built = BooleanBuilder::new();
                for index in 0..rows {
                    built.append_option(body(&row(index))?);
                }
                Arc::new(built.finish())
            }
            Body::Number(body) => {
                let mut built = Int32Builder::new();
                for index in 0..rows {
                    built.append_option(body(&row(index))?);
                }
                Arc::new(built.finish())
            }
        };
        // The planner may have promised another text type.
        let array = if array.data_type() == args.return_field.data_type() {
            array
        } else {
            cast(&array, args.return_field.data_type())?
        };
        Ok(ColumnarValue::Array(array))
    }
}
