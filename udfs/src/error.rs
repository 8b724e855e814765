//! `error(message)`: ends the statement with a message of its own, so that a script can refuse to go on.

use datafusion::arrow::array::{AsArray, new_null_array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

/// What a statement said when it ended itself; SQLSTATE P0001.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised(pub String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// Raises its argument for the first row on which it is not NULL; NULL otherwise.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Raise {
    signature: Signature,
}

impl Raise {
    pub(crate) fn new() -> Self {
        // Volatile: it must not be evaluated before there is a row.
        Self { signature: Signature::exact(vec![DataType::Utf8], Volatility::Volatile) }
    }
}

impl ScalarUDFImpl for Raise {
    fn name(&self) -> &str {
        "error"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        for message in ColumnarValue::values_to_arrays(&args.args)?.iter().filter(|_| rows > 0) {
            let texts = cast(message, &DataType::Utf8)?;
            if let Some(text) = texts.as_string::<i32>().iter().flatten().next() {
                return Err(DataFusionError::External(Box::new(Raised(text.to_owned()))));
            }
        }
        Ok(ColumnarValue::Array(new_null_array(&DataType::Utf8, rows)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use datafusion::logical_expr::ScalarUDF;
    use datafusion::prelude::SessionContext;

    use super::*;

    async fn run(sql: &str) -> Result<usize> {
        let session = SessionContext::new();
        session.register_udf(ScalarUDF::new_from_impl(Raise::new()));
        session.sql(sql).await?.count().await
    }

    #[tokio::test]
    async fn it_is_raised_by_a_row_and_not_without_one() {
        let from = "FROM (VALUES (1), (2)) AS t (n)";
        assert_eq!(run(&format!("SELECT error('no') {from} WHERE n > 2")).await.unwrap(), 0);
        assert_eq!(run("SELECT error(CAST(NULL AS TEXT))").await.unwrap(), 1);
        let error = SessionContext::new();
        error.register_udf(ScalarUDF::new_from_impl(Raise::new()));
        let sql = format!("SELECT error('two is ' || CAST(n AS TEXT)) {from} WHERE n > 1");
        let raised = error.sql(&sql).await.unwrap().collect().await.unwrap_err();
        assert!(raised.to_string().contains("two is 2"), "{raised}");
    }
}
